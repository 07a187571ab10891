"""Tests of the export of a trained model, and of prediction, evaluation and comparison with its bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.workspace import Workspace

pytestmark = pytest.mark.slow

TABLE = {(155, 38, 182): 1, (14, 135, 204): 2, (124, 252, 0): 3, (255, 20, 147): 4, (169, 169, 169): 5}
KAGGLE = "data/classes_dataset/classes_dataset"


def test_the_manifest_states_provenance_and_quality(exported: Workspace) -> None:
    manifest = json.loads((exported.root / "nnUNet_results/champion/manifest.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["ground"] is None
    assert manifest["calibration"] is None, "calibrated on fewer than 20 images"
    assert set(manifest["profiles"]) == {"exact", "fast", "int8"}
    assert set(manifest["files"]) == {
        "model.onnx",
        "model.int8.onnx",
        "reference.csv",
        "self_check.json",
        "self_check.png",
    }
    assert manifest["normalisation"] == "rgb_to_0_1"
    assert manifest["patch_size"] == [64, 64]
    assert manifest["mirror_axes"] == [0, 1]
    provenance = manifest["provenance"]
    assert (provenance["trainer"], provenance["configuration"], provenance["epochs"]) == (
        "DroneSegTrainer", "2d_smoke", [2],
    )  # fmt: skip
    assert provenance["agreement_with_torch"]["agreement"] > 0.999
    for profile in manifest["profiles"].values():
        assert 0 <= profile["figures"]["miou"] <= 1
    assert 0 < manifest["profiles"]["fast"]["figures"]["agreement_with_exact"] <= 1
    split = json.loads((exported.root / "split.json").read_text())
    assert manifest["quality"]["images"] == len(split["val"])
    assert manifest["license"] == "Apache-2.0"


def test_an_existing_bundle_is_replaced_only_with_force(exported: Workspace) -> None:
    refused = exported.run("export", "--from", str(exported.fold().parent), check=False)
    assert refused.returncode == 1
    assert "already exists and was not changed. Use --force" in refused.stderr


def test_the_test_part_is_predicted_and_evaluated(exported: Workspace) -> None:
    stems = json.loads((exported.root / "split.json").read_text())["test"]
    images = [f"{KAGGLE}/original_images/{stem}.png" for stem in stems]
    done = exported.run("predict", *images, "--out", "masks", "--overlay", "--json")
    results = json.loads(done.stdout)["results"]
    assert [result["status"] for result in results] == ["predicted"] * len(stems)
    assert all(1 / 6 <= result["confidence"] <= 1 for result in results)
    for stem in stems:
        with Image.open(exported.root / "masks" / f"{stem}.png") as opened:
            assert (opened.mode, opened.size) == ("P", (96, 80))
    found = json.loads(exported.run("evaluate", "masks", "data", "--json").stdout)["scores"]
    assert found["images"] == len(stems)
    assert found["miou"] == pytest.approx(independent_miou(exported.root, stems))
    again = exported.run("predict", *images, "--out", "masks", "--overlay")
    assert f"{len(stems)} skipped" in again.stdout


def test_two_models_are_compared_on_the_same_images(exported: Workspace) -> None:
    champion, other = "nnUNet_results/champion", "other"
    model = str(exported.fold().parent)
    scale = ("--train-gsd", "0.02", "--train-gsd-range", "0.01", "0.03", "--train-gsd-source", "a tape measure")
    exported.run(
        "export",
        "--from",
        model,
        "--out",
        other,
        "--images",
        "4",
        "--default-profile",
        "exact",
        *scale,
        "--gsd",
        "0.04",
    )
    manifests = [json.loads((exported.root / name / "manifest.json").read_text()) for name in (champion, other)]
    assert manifests[1]["ground"] == {"gsd_m": 0.02, "gsd_range_m": [0.01, 0.03], "source": "a tape measure"}
    assert manifests[1]["context"] is not None
    exact, fast = ([manifest["profiles"][name]["figures"] for manifest in manifests] for name in ("exact", "fast"))
    assert exact[0] == exact[1]
    assert fast[0] != fast[1], "the images were not resampled"
    options = ("--data", "data", "--split", "split.json", "--part", "test", "--report", "compared")
    found = json.loads(exported.run("models", "compare", champion, other, *options, "--json").stdout)
    split = json.loads((exported.root / "split.json").read_text())
    assert found["images"] == len(split["test"])
    difference = found["differences"]["miou"]["value"]
    assert difference == pytest.approx(found["figures"][1]["miou"]["value"] - found["figures"][0]["miou"]["value"])
    text = (exported.root / "compared/report.md").read_text()
    assert "A: champion, model" in text
    assert "part test of split.json" in text
    assert "**Few images**" in text
    assert not (exported.root / "compared_masks").exists()
    same = exported.run("models", "compare", champion, champion, *options, "--force", check=False)
    assert (same.returncode, "contain the same model" in same.stderr) == (1, True)
    no_split = exported.run("models", "compare", champion, other, "--data", "data", "--part", "val", check=False)
    assert no_split.returncode == 2


def test_predict_reports_a_bad_file_and_exits_1(exported: Workspace) -> None:
    (exported.root / "bad").mkdir()
    (exported.root / "bad/broken.png").write_bytes(b"junk")
    Image.new("RGB", (50, 40), (90, 90, 90)).save(exported.root / "bad/good.png")
    done = exported.run("predict", "bad", "--out", "bad_masks", "--profile", "int8", check=False)
    assert done.returncode == 1
    assert "failed: bad/broken.png: Unknown image format" in done.stderr
    assert "1 predicted, 1 failed" in done.stdout
    assert (exported.root / "bad_masks/good.png").is_file()


def test_a_checkpoint_that_can_run_code_is_refused(trained: Workspace, tmp_path: Path) -> None:
    import torch

    spoilt = tmp_path / "spoilt"
    shutil.copytree(trained.fold().parent, spoilt)
    file = spoilt / "fold_0/checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save(content | {"surprise": Path("a")}, file)
    refused = trained.run("export", "--from", str(spoilt), "--out", str(tmp_path / "bundle"), check=False)
    assert refused.returncode == 1
    assert "pathlib.PosixPath" in refused.stderr
    assert "--trust" in refused.stderr
    assert not (tmp_path / "bundle").exists()
    trusted = trained.run(
        "export", "--from", str(spoilt), "--out", str(tmp_path / "bundle"), "--trust", "--images", "4", check=False
    )
    assert trusted.returncode == 0, trusted.stderr


def independent_miou(root: Path, stems: list[str]) -> float:
    """Return the mean IoU over classes 1-5, computed with sets of pixels instead of a confusion matrix."""
    pixels: dict[int, list[set[tuple[str, int]]]] = {c: [set(), set()] for c in range(1, 6)}
    for stem in stems:
        truth = np.asarray(Image.open(root / f"{KAGGLE}/label_images_semantic/{stem}.png").convert("RGB"))
        predicted = np.asarray(Image.open(root / f"masks/{stem}.png")).ravel()
        for index, (colour, predicted_class) in enumerate(
            zip(truth.reshape(-1, 3).tolist(), predicted.tolist(), strict=True)
        ):
            pixels[TABLE[tuple(colour)]][0].add((stem, index))
            if predicted_class:
                pixels[predicted_class][1].add((stem, index))
    ious = [len(t & p) / len(t | p) for t, p in pixels.values() if t | p]
    return sum(ious) / len(ious)


def test_a_model_with_enough_validation_images_is_calibrated(trained: Workspace, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained.root, tmp_path / "copy", symlinks=True))
    raw, preprocessed = (root / folder / "Dataset101_DroneSeg" for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    case = splits[0]["val"][0]
    splits[0]["val"] = [f"copy{index:02d}" for index in range(20)]
    for name in splits[0]["val"]:
        shutil.copy(raw / f"imagesTr/{case}_0000.png", raw / f"imagesTr/{name}_0000.png")
        shutil.copy(raw / f"labelsTr/{case}.png", raw / f"labelsTr/{name}.png")
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    model = trained.fold().parent.relative_to(trained.root)
    Workspace(root).run("export", "--from", str(model), "--out", "bundle", "--images", "4")
    calibration = json.loads((root / "bundle/manifest.json").read_text())["calibration"]
    assert 1 <= calibration["temperature"] <= 3
    assert calibration["source"] == "20 images, validation part of fold 0"
    assert "brightness" in calibration["unlike_training"]["features"]
