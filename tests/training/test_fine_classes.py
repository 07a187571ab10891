"""Training with fine classes, pixel weights and an ignore label; export; and training from a checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.images import read_image
from droneseg.core.masks import read_mask
from droneseg.nnunet.paths import NnunetPaths
from support.images import png
from support.workspace import TINY_CROPS, Workspace

pytestmark = pytest.mark.slow

LITTLE = ("preset=multiscale", *TINY_CROPS)
FINE = [
    {"name": "roof", "class": "landing-zones"},
    {"name": "road", "class": "landing-zones"},
    {"name": "tree", "class": "obstacles"},
]


@pytest.fixture(scope="module")
def fine(preprocessed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Generated data with fine classes: landing zones are roofs on the left and roads on the right."""
    root = Path(
        shutil.copytree(preprocessed_folder, tmp_path_factory.mktemp("fine"), symlinks=True, dirs_exist_ok=True)
    )
    raw = root / "nnUNet_raw/Dataset101_DroneSeg"
    (raw / "targetsTr").mkdir()
    for file in sorted((raw / "labelsTr").glob("*.png")):
        label = read_mask(file, "ids", DEFAULT_CLASSES)
        left = np.arange(label.shape[1])[None] < label.shape[1] // 2
        ids = np.where(label == 5, np.where(left, 1, 2), np.where(label == 1, 3, 0))
        targets = np.dstack([ids, np.full_like(label, 80), np.zeros_like(label)]).astype(np.uint8)
        (raw / "targetsTr" / file.name).write_bytes(png(targets))
    for file in (raw / "dataset.json", root / "nnUNet_preprocessed/Dataset101_DroneSeg/dataset.json"):
        description = json.loads(file.read_text())
        description["droneseg"]["fine_classes"] = FINE
        file.write_text(json.dumps(description))
    return Workspace(root)


def test_network_with_fine_classes_is_exported_with_the_classes_only(fine: Workspace) -> None:
    import onnxruntime

    from droneseg.nnunet.predictor import NnunetPredictor

    fine.run("train", *LITTLE, "fine_weight=0.5", "deep_supervision=true", "configuration=2d_fine")
    folder = fine.fold("2d_fine")
    plans = json.loads((folder.parent / "plans.json").read_text())
    assert plans["configurations"]["2d_fine"]["architecture"]["arch_kwargs"]["fine_classes"] == [5, 5, 1]
    fine.run("export", "--from", str(folder.parent), "--out", "fine", "--images", "4", "--license", "none")
    session = onnxruntime.InferenceSession(fine.root / "fine/model.onnx")
    image = next((fine.root / "nnUNet_raw/Dataset101_DroneSeg/imagesTr").glob("*.png"))
    patch = np.zeros((1, 3, 128, 128), np.float32)
    pixels = read_image(image)
    patch[0, :, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1) / 255
    assert session.run(None, {"patch": patch})[0].shape == (1, 6, 128, 128)
    root = fine.root
    paths = NnunetPaths(root / "nnUNet_raw", root / "nnUNet_preprocessed", root / "nnUNet_results")
    assert NnunetPredictor(folder.parent, paths, mirrored=False).segment_file(image).max() <= 5


def test_training_starts_from_the_weights_of_a_checkpoint(fine: Workspace) -> None:
    import torch

    fine.run("train", *LITTLE, "configuration=2d_first", "averaged_weights=null")
    first = fine.fold("2d_first") / "checkpoint_final.pth"
    kept = ("learning_rate=1e-12", "averaged_weights=null", "frozen_stages=3")
    fine.run("train", *LITTLE, *kept, "configuration=2d_again", f"weights={first}", "fine_weight=0.1")
    log = (fine.fold("2d_again") / "droneseg.log").read_text()
    assert "initial weights from" in log
    assert "do not fit" not in log
    before, after = (
        torch.load(file, map_location="cpu", weights_only=False)["network_weights"]
        for file in (first, fine.fold("2d_again") / "checkpoint_final.pth")
    )
    names = [name for name, value in before.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in names if "seg_layers" not in name)
    smaller = ("decoder_features=[64,64,48,32,24]", "configuration=2d_smaller", f"weights={first}")
    fine.run("train", *LITTLE, *smaller)
    assert "decoder.joins.0.0.weight" in (fine.fold("2d_smaller") / "droneseg.log").read_text()
    missing = fine.run("train", *LITTLE, "configuration=2d_none", "weights=none.pth", check=False)
    assert missing.returncode == 1
    assert "weights=none.pth does not exist" in missing.stderr


def test_training_starts_from_the_network_of_a_bundle(fine: Workspace) -> None:
    import onnxruntime

    fine.run("train", *LITTLE, "configuration=2d_first", "averaged_weights=null", "overwrite=true")
    export = ("export", "--images", "4", "--license", "none")
    fine.run(*export, "--from", str(fine.fold("2d_first").parent), "--out", "first")
    unchanged = ("learning_rate=1e-12", "averaged_weights=null", "weights=first/model.onnx", "fine_weight=0.1")
    fine.run("train", *LITTLE, *unchanged, "configuration=2d_bundle")
    log = (fine.fold("2d_bundle") / "droneseg.log").read_text()
    assert "initial weights from first/model.onnx" in log
    assert "do not fit" not in log
    fine.run(*export, "--from", str(fine.fold("2d_bundle").parent), "--out", "second")
    image = read_image(next((fine.root / "nnUNet_raw/Dataset101_DroneSeg/imagesTr").glob("*.png")))
    patch = np.zeros((1, 3, 128, 128), np.float32)
    patch[0, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1) / 255
    first, second = (
        onnxruntime.InferenceSession(fine.root / bundle / "model.onnx").run(None, {"patch": patch})[0].argmax(1)
        for bundle in ("first", "second")
    )
    # the statistics of the normalisation move while the weights do not
    assert (first == second).mean() > 0.9


def test_ignored_pixels_and_missing_fine_classes(preprocessed_folder: Path, tmp_path: Path) -> None:
    workspace = Workspace(Path(shutil.copytree(preprocessed_folder, tmp_path / "ignore", symlinks=True)))
    refused = workspace.run("train", *LITTLE, "fine_weight=0.5", "configuration=2d_none", check=False)
    assert refused.returncode == 1
    assert "fine_weight needs a class with several fine classes" in refused.stderr
    root = workspace.root
    raw = root / "nnUNet_raw/Dataset101_DroneSeg"
    for file in (raw / "dataset.json", root / "nnUNet_preprocessed/Dataset101_DroneSeg/dataset.json"):
        description = json.loads(file.read_text())
        description["labels"]["ignore"] = 6
        file.write_text(json.dumps(description))
    for file in (raw / "labelsTr").glob("*.png"):
        label = read_mask(file, "ids", DEFAULT_CLASSES).copy()
        label[: label.shape[0] // 2] = 6
        file.write_bytes(png(label))
    workspace.run("train", *LITTLE, "configuration=2d_ignore", "deep_supervision=true")
    (epoch,) = json.loads((workspace.fold("2d_ignore") / "epochs.json").read_text())
    assert 0 < epoch["train_loss"] < 3
    model = workspace.fold("2d_ignore").parent
    workspace.run("export", "--from", str(model), "--out", "bundle", "--images", "4", "--license", "none")
    assert (root / "bundle/manifest.json").is_file()


def test_a_small_network_learns_from_a_teacher(fine: Workspace) -> None:
    fine.run("train", *LITTLE, "configuration=2d_teacher")
    teacher = fine.fold("2d_teacher") / "checkpoint_final.pth"
    small = (*LITTLE, "decoder_features=[32,24,16,16,16]", f"teacher={teacher}")
    losses = {}
    for weight in (0.01, 100):
        name = f"2d_weight{weight:g}".replace(".", "")
        fine.run("train", *small, f"configuration={name}", f"teacher_weight={weight}", "fine_weight=0.1")
        (epoch,) = json.loads((fine.fold(name) / "epochs.json").read_text())
        losses[weight] = epoch["train_loss"]
    assert losses[100] > 10 * max(1, losses[0.01])
    for wrong, message in (
        ("deep_supervision=true", "deep_supervision=false"),
        ("teacher=none.pth", "teacher=none.pth does not exist"),
    ):
        refused = fine.run("train", *small, wrong, "configuration=2d_none", check=False)
        assert refused.returncode != 0
        assert message in refused.stderr


def test_images_without_labels_learn_from_the_teacher_alone(fine: Workspace, tmp_path: Path) -> None:
    import torch

    fine.run("train", *LITTLE, "configuration=2d_certain")
    workspace = Workspace(Path(shutil.copytree(fine.root, tmp_path / "unlabelled", symlinks=True)))
    raw = workspace.root / "nnUNet_raw/Dataset101_DroneSeg"
    shutil.rmtree(raw / "targetsTr")
    for file in (raw / "dataset.json", workspace.root / "nnUNet_preprocessed/Dataset101_DroneSeg/dataset.json"):
        description = json.loads(file.read_text())
        description["labels"]["ignore"] = 6
        del description["droneseg"]["fine_classes"]
        file.write_text(json.dumps(description))
    for file in (raw / "labelsTr").glob("*.png"):
        file.write_bytes(png(np.full_like(read_mask(file, "ids", DEFAULT_CLASSES), 6)))
    teacher = workspace.fold("2d_certain") / "checkpoint_final.pth"
    content = torch.load(teacher, weights_only=False)
    content["network_weights"]["decoder.seg_layers.4.bias"] += torch.tensor([0.0, 0, 20, 0, 0, 0])  # water everywhere
    torch.save(content, teacher)
    long = ("epochs=2", "iterations=20", "repeat_rare=false", "averaged_weights=null")
    losses = {}
    for name, overrides in (("2d_alone", ()), ("2d_taught", (f"teacher={teacher}",))):
        workspace.run("train", *LITTLE, *long, *overrides, f"configuration={name}")
        losses[name] = [epoch["train_loss"] for epoch in json.loads((workspace.fold(name) / "epochs.json").read_text())]
    assert losses["2d_alone"] == pytest.approx([losses["2d_alone"][0]] * 2, abs=1e-3), "nothing to learn from"
    assert losses["2d_taught"][1] < losses["2d_taught"][0] - 0.1


def test_network_keeps_the_fine_classes_of_its_weights(fine: Workspace, tmp_path: Path) -> None:
    import torch

    fine.run("train", *LITTLE, "fine_weight=0.5", "configuration=2d_source")
    workspace = Workspace(Path(shutil.copytree(fine.root, tmp_path / "classes_only", symlinks=True)))
    raw = workspace.root / "nnUNet_raw/Dataset101_DroneSeg"
    shutil.rmtree(raw / "targetsTr")
    for file in (raw / "dataset.json", workspace.root / "nnUNet_preprocessed/Dataset101_DroneSeg/dataset.json"):
        description = json.loads(file.read_text())
        del description["droneseg"]["fine_classes"]
        file.write_text(json.dumps(description))
    source = workspace.fold("2d_source") / "checkpoint_final.pth"
    train = ("train", "preset=pretrained", *TINY_CROPS, "deep_supervision=true", "averaged_weights=null")
    losses = []
    for output in (5, 6):  # both are landing zones; 6 is no class
        content = torch.load(source, weights_only=False)
        for level in range(5):
            content["network_weights"][f"decoder.seg_layers.{level}.bias"][output] += 20
        torch.save(content, tmp_path / f"{output}.pth")
        given = (f"configuration=2d_{output}", f"weights={tmp_path / f'{output}.pth'}")
        workspace.run(*train, *given, "learning_rate=1e-12")
        fold = workspace.fold(f"2d_{output}")
        assert "do not fit" not in (log := (fold / "droneseg.log").read_text())
        assert "not the output layers" not in log
        losses.append(json.loads((fold / "epochs.json").read_text())[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02), "the loss must add up the fine classes"
    folders = (str(source.parent.parent), str(fold.parent))
    workspace.run("models", "blend", *folders, "--out", str(tmp_path / "blended"))
    (tmp_path / "6.pth").unlink()
    workspace.run(*train, *given, "epochs=2", "resume=true")
    assert len(json.loads((fold / "epochs.json").read_text())) == 2
