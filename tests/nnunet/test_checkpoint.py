"""Interpolation between the weights of two models, and the network of a teacher."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from droneseg.core.classes import Normalisation
from droneseg.core.errors import ModelError
from droneseg.nnunet.checkpoint import (
    build_networks,
    find_trainer,
    interpolate_weights,
    load_teacher,
    load_trained_model,
)
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths
from support.workspace import Workspace

pytestmark = pytest.mark.slow


def changed(model: Path, folder: Path, name: str = "") -> Path:
    """Copy a model and triple one of its weights, or change its shape."""
    shutil.copytree(model, folder)
    file = folder / "fold_0" / FINAL_CHECKPOINT
    content = torch.load(file, weights_only=False)
    weights = content["network_weights"]
    last = list(weights)[-1]  # encoder weights occur twice, since nnU-Net's decoder also contains the encoder
    weights[last] = weights[last][:1] if name == "shape" else 3 * weights[last]
    torch.save(content, file)
    return folder


def weights(model: Path) -> dict[str, torch.Tensor]:
    loaded = load_trained_model(model, NnunetPaths(model, model, model), checkpoint=FINAL_CHECKPOINT)
    return build_networks(loaded)[0].state_dict()


def test_interpolated_weights_load_into_the_network(trained: Workspace, tmp_path: Path) -> None:
    model = trained.fold().parent
    other = changed(model, tmp_path / "other")
    trained.run("models", "blend", str(model), str(other), "--share", "0.25", "--out", str(tmp_path / "made"))
    before, after = weights(model), weights(tmp_path / "made")
    *rest, last = before
    assert torch.allclose(after[last], 1.5 * before[last])  # a quarter of the way from 1 to 3
    assert all(torch.equal(after[name], before[name]) for name in rest)
    sources = json.loads((tmp_path / "made" / "blend.json").read_text())
    assert sources["share_of_second"] == 0.25
    assert sources["fold_0"]["first_sha256"] != sources["fold_0"]["second_sha256"]
    again = ("models", "blend", str(model), str(model), "--out", str(tmp_path / "made"))
    assert trained.run(*again, check=False).returncode == 1
    trained.run(*again, "--force")
    assert torch.equal(weights(tmp_path / "made")[last], before[last])


def test_trainings_are_never_replaced_and_different_networks_are_refused(trained: Workspace, tmp_path: Path) -> None:
    model = trained.fold().parent
    other = changed(model, tmp_path / "other", "shape")
    with pytest.raises(ModelError, match="different networks"):
        interpolate_weights(model, other, tmp_path / "made", share=0.5)
    assert not (tmp_path / "made").exists()
    before = (other / "fold_0" / FINAL_CHECKPOINT).read_bytes()
    onto_a_training = ("models", "blend", str(model), str(model), "--out", str(other), "--force")
    assert trained.run(*onto_a_training, check=False).returncode == 1
    assert (other / "fold_0" / FINAL_CHECKPOINT).read_bytes() == before


def test_teacher_has_the_weights_of_its_checkpoint_and_no_gradients(trained: Workspace) -> None:
    model = trained.fold().parent
    expected = weights(model)
    labels, normalisation = described(model)
    with_ignore = {**labels, "ignore": 6}
    file = model / "fold_0" / FINAL_CHECKPOINT
    teacher = load_teacher(file, labels=with_ignore, normalisation=normalisation, crop=(64, 64))
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert not any(value.requires_grad for value in teacher.parameters())


def test_teacher_of_other_classes_normalisation_or_crops_is_refused(trained: Workspace, tmp_path: Path) -> None:
    model = trained.fold().parent
    weights(model)  # sets the folder in which nnU-Net finds our trainer
    file = model / "fold_0" / FINAL_CHECKPOINT
    labels, normalisation = described(model)
    (other,) = set(Normalisation) - {normalisation}
    with pytest.raises(ModelError, match="this training has background, roof"):
        load_teacher(file, labels={"background": 0, "roof": 1}, normalisation=normalisation, crop=(64, 64))
    with pytest.raises(ModelError, match=f"but this training by {other}"):
        load_teacher(file, labels=labels, normalisation=other, crop=(64, 64))
    with pytest.raises(ModelError, match="cannot take crops of 65x64 pixels"):
        load_teacher(file, labels=labels, normalisation=normalisation, crop=(64, 65))
    elsewhere = Path(shutil.copy(file, tmp_path))
    with pytest.raises(ModelError, match="is not in a model folder"):
        load_teacher(elsewhere, labels=labels, normalisation=normalisation, crop=(64, 64))


def described(model: Path) -> tuple[dict[str, int], Normalisation]:
    """Return the labels and the normalisation of a model."""
    loaded = load_trained_model(model, NnunetPaths(model, model, model), checkpoint=FINAL_CHECKPOINT)
    return loaded.dataset["labels"], loaded.normalisation


def test_missing_trainer_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(ModelError, match="trained with MeadowTrainer, which is neither in nnU-Net nor in") as caught:
        find_trainer("MeadowTrainer")
    assert "export nnUNet_extTrainer=FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)
