"""Interpolation between the weights of two models."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from droneseg.core.errors import ModelError
from droneseg.nnunet.checkpoint import build_networks, interpolate_weights, load_trained_model
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
