"""Tests of initial weights from a checkpoint and from the network of a bundle."""

import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import onnx
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from droneseg.core.errors import ModelError, TrainingError, UntrustedCheckpointError
from droneseg.nnunet.networks import PretrainedUNet
from droneseg.nnunet.warm_start import (
    exported_weights,
    fine_classes_of,
    fit_weights,
    load_folded,
    read_folded_convolutions,
    read_weights,
    restore_normalisation,
)

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


def test_a_bundle_of_other_classes_initialises_all_but_the_output_layer(exported: Path) -> None:
    network = PretrainedUNet(3, 9, "efficientnet-lite0", 1, (16, 12, 8, 8, 8), [[1, 1]] * 6)
    weights = exported_weights(exported, network, [torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8).numpy()])
    fitted = fit_weights(network, {"network_weights": weights}, {}, {})
    assert fitted.heads[-2:] == ("decoder.seg_layers.4.weight", "decoder.seg_layers.4.bias")
    assert not fitted.others


LABELS = {"background": 0, "road": 1, "tree": 2}
RGB = {"0": "R", "1": "G", "2": "B"}
PLANS = {"normalization_schemes": ["ZScoreNormalization"] * 3}


def plain(classes: int = 3, features: tuple[int, ...] = (4, 8), decoder: int = 1) -> PlainConvUNet:
    """Return a network of nnU-Net."""
    stages = len(features)
    return PlainConvUNet(
        3, stages, features, nn.Conv2d, 3, [1, *[2] * (stages - 1)], 1, classes, [decoder] * (stages - 1)
    )


def checkpoint(network: nn.Module, labels: dict[str, int] | None = None, **description: Any) -> dict[str, Any]:
    """Return what nnU-Net stores, as far as it matters here."""
    plans = {"configurations": {"2d": PLANS}}
    dataset = {"labels": labels or LABELS, "channel_names": RGB} | description
    return {
        "network_weights": network.state_dict(),
        "init_args": {"plans": plans, "configuration": "2d", "dataset_json": dataset},
    }


def test_nnunets_pretrained_weights_leave_the_output_layers_out(trained: PretrainedUNet, tmp_path: Path) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    network = PretrainedUNet(3, 9, "efficientnet-lite0", 1, (16, 12, 8, 8, 8), [[1, 1]] * 6)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    for weights in (trained.state_dict(), former_names(trained)):
        network.load_state_dict(own)
        torch.save({"network_weights": weights}, tmp_path / "checkpoint_final.pth")
        load_pretrained_weights(network, tmp_path / "checkpoint_final.pth")
        for name, value in network.state_dict().items():
            expected = own if name.startswith("decoder.seg_layers.") else trained.state_dict()
            assert torch.equal(value, expected[name]), name


def former_names(network: PretrainedUNet) -> dict[str, torch.Tensor]:
    """Return the weights as earlier versions named them."""
    return {name.replace("seg_layers", "heads"): value for name, value in network.state_dict().items()}


def test_checkpoints_of_earlier_versions_are_read(trained: PretrainedUNet, tmp_path: Path) -> None:
    network, file = build(), tmp_path / "checkpoint_final.pth"
    network.load_state_dict(former_names(trained))  # as nnU-Net does to predict and to continue a training
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in network.state_dict().items())
    torch.save(checkpoint(trained) | {"network_weights": former_names(trained)}, file)
    fitted = fit_weights(build(), read_weights(file), PLANS, {"labels": LABELS, "channel_names": RGB})
    assert fitted.describe() == f"{len(fitted.weights)} of {len(network.state_dict())}"


def test_all_weights_of_a_model_with_the_same_classes_are_taken() -> None:
    source = plain()
    fitted = fit_weights(plain(), checkpoint(source), PLANS, {"labels": LABELS | {"ignore": 3}, "channel_names": RGB})
    assert all(torch.equal(fitted.weights[name], value) for name, value in source.state_dict().items())
    count = len(source.state_dict())
    assert fitted.describe() == f"{count} of {count}"


def test_output_layers_of_other_classes_are_left_out_even_if_their_number_is_the_same() -> None:
    others = {"labels": {"background": 0, "water": 1, "roof": 2}, "channel_names": RGB}
    for network, dataset in ((plain(), others), (plain(5), {})):
        fitted = fit_weights(network, checkpoint(plain()), PLANS, dataset)
        assert fitted.heads == ("decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias")
        assert not fitted.others
        assert "not the output layers, whose classes differ (decoder.seg_layers.0.weight" in fitted.describe()


def test_weights_of_another_decoder_are_named_and_those_of_another_encoder_refused() -> None:
    fitted = fit_weights(plain(decoder=2), checkpoint(plain()), PLANS, {"labels": LABELS})
    assert fitted.others
    assert "decoder.stages.0.convs.1" in fitted.others[0]
    assert "do not fit (decoder.stages.0.convs.1" in fitted.describe()
    with pytest.raises(ModelError, match=r"differ; encoder\.\S+ is \[4, 3, 3, 3\] in the file and \[8, 3, 3, 3\]"):
        fit_weights(plain(features=(8, 16)), checkpoint(plain()), PLANS, {"labels": LABELS})
    with pytest.raises(ModelError, match="is missing in the file"):
        fit_weights(plain(features=(4, 8, 16)), checkpoint(plain()), PLANS, {"labels": LABELS})


def test_other_colours_at_the_input_are_reported() -> None:
    here = {"labels": LABELS, "channel_names": {"0": "B", "1": "G", "2": "R"}}
    divided = {"normalization_schemes": ["RGBTo01Normalization"] * 3}
    described = fit_weights(plain(), checkpoint(plain()), divided, here).describe()
    assert "normalisation ZScoreNormalization, ZScoreNormalization, ZScoreNormalization, but here with RGBTo01" in (
        described
    )
    assert "channels R, G, B, but here with B, G, R" in described


def test_checkpoint_is_read_from_a_model_that_nnunet_exported(tmp_path: Path) -> None:
    source = plain()
    torch.save(checkpoint(source), tmp_path / "checkpoint_final.pth")
    torch.save(checkpoint(plain()), tmp_path / "checkpoint_best.pth")
    model = "Dataset205_Meadow/nnUNetTrainer__nnUNetPlans__2d"
    with ZipFile(tmp_path / "model.zip", "w") as archive:
        for name in ("checkpoint_best.pth", "checkpoint_final.pth"):
            archive.write(tmp_path / name, f"{model}/fold_0/{name}")
    weights = read_weights(tmp_path / "model.zip")["network_weights"]
    assert all(torch.equal(weights[name], value) for name, value in source.state_dict().items())
    with ZipFile(tmp_path / "model.zip", "a") as archive:
        archive.write(tmp_path / "checkpoint_final.pth", f"{model}/fold_1/checkpoint_final.pth")
    with pytest.raises(ModelError, match=r"has 2 checkpoints\. Unpack it and choose(?s:.*)fold_1/checkpoint_final"):
        read_weights(tmp_path / "model.zip")
    (tmp_path / "other.zip").write_bytes(b"no archive")
    with pytest.raises(ModelError, match="is not a zip file"):
        read_weights(tmp_path / "other.zip")


def test_checkpoint_that_can_execute_code_is_refused_without_naming_an_option_of_export(tmp_path: Path) -> None:
    torch.save(checkpoint(plain()) | {"extra": Path("x")}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(UntrustedCheckpointError, match="save its network_weights alone") as caught:
        read_weights(tmp_path / "checkpoint_final.pth")
    assert "--trust" not in str(caught.value)


def test_fine_classes_are_those_of_the_weights_if_the_classes_are_the_same(tmp_path: Path) -> None:
    file, dataset = tmp_path / "checkpoint_final.pth", {"labels": LABELS | {"ignore": 3}}
    content = checkpoint(plain())
    plans = content["init_args"]["plans"]["configurations"]["2d"]
    for fine_classes in ([], [1, 1, 2]):
        arguments = {"fine_classes": fine_classes} if fine_classes else {}
        content["init_args"]["plans"]["configurations"]["2d"] = plans | {"architecture": {"arch_kwargs": arguments}}
        torch.save(content, file)
        assert fine_classes_of(file, dataset) == fine_classes
    assert fine_classes_of(file, {"labels": {"background": 0, "water": 1, "roof": 2}}) == []
    torch.save({"network_weights": {}}, file)
    assert fine_classes_of(file, dataset) == []
