"""Tests of initial weights from the network of a bundle."""

import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from droneseg.core.errors import TrainingError
from droneseg.nnunet.networks import PretrainedUNet
from droneseg.nnunet.warm_start import load_folded, read_folded_convolutions, restore_normalisation

PATCHES = 2
SIDE = 64


def build(*, features: tuple[int, ...] = (16, 12, 8, 8, 8)) -> PretrainedUNet:
    return PretrainedUNet(3, 6, "efficientnet-lite0", 1, features, [[1, 1]] * 6)


@pytest.fixture(scope="module")
def trained() -> PretrainedUNet:
    """Return a network whose normalisation has seen a few patches and has scales and shifts of its own."""
    generator = torch.Generator().manual_seed(0)
    network = build().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(PATCHES, 3, SIDE, SIDE, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def exported(trained: PretrainedUNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the network as ONNX, with batch normalisation folded into the convolutions."""
    file = tmp_path_factory.mktemp("bundle") / "model.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(trained, (torch.zeros(1, 3, SIDE, SIDE),), str(file), dynamo=False, opset_version=17)
    assert not [node for node in onnx.load(file).graph.node if node.op_type == "BatchNormalization"]
    return file


def test_a_warm_started_network_has_the_outputs_of_the_bundle(trained: PretrainedUNet, exported: Path) -> None:
    network = build().eval()
    patches = torch.rand(PATCHES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    load_folded(network, read_folded_convolutions(exported))
    with torch.no_grad():
        torch.testing.assert_close(network(patches), trained(patches), rtol=1e-3, atol=1e-3)
        restore_normalisation(network, [patches, patches.flip(3)])
        torch.testing.assert_close(network(patches), trained(patches), rtol=1e-3, atol=1e-3)


def test_restored_normalisation_has_the_statistics_of_the_patches(exported: Path) -> None:
    network = build()
    patches = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    load_folded(network, read_folded_convolutions(exported))
    restore_normalisation(network, [patches[:4], patches[4:]])

    # in training mode, normalisation uses the statistics of the batch, here those of the same patches
    with torch.no_grad():
        torch.testing.assert_close(network.train()(patches), network.eval()(patches), rtol=1e-2, atol=1e-2)
    assert network.training is False


def test_a_bundle_of_another_architecture_is_refused(exported: Path) -> None:
    with pytest.raises(TrainingError, match="another architecture"):
        load_folded(build(features=(16, 12, 8)), read_folded_convolutions(exported))


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(TrainingError, match="cannot be read as an ONNX network"):
        read_folded_convolutions(tmp_path / "model.onnx")
