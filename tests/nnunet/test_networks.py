"""Pretrained networks: encoder weights, resolutions, deep supervision and gradients."""

from pathlib import Path

import pytest
import torch

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.checkpoint import read_checkpoint
from droneseg.nnunet.networks import (
    EfficientNetLite,
    EncoderName,
    PretrainedUNet,
    fine_outputs,
    sum_fine_classes,
    unwrap,
)
from droneseg.nnunet.optimization import parameter_groups
from droneseg.nnunet.plans import add_configuration
from droneseg.nnunet.preprocess import redirect_stdout_to_log

BASE = {"patch_size": [768, 1024], "batch_size": 2, "spacing": [1.0, 1.0]}
KEEP = {"patch_size": None, "batch_size": None, "base_features": None, "max_features": None}


def build(**changes: object) -> PretrainedUNet:
    plans = {"configurations": {"2d": BASE}}
    made = add_configuration(plans, "2d_p", **KEEP, network="efficientnet-lite0", **changes)  # type: ignore[arg-type]
    return PretrainedUNet(3, 6, **made["configurations"]["2d_p"]["architecture"]["arch_kwargs"])


# Shape, mean and standard deviation of the features at each level, computed once with the network of the package
# efficientnet-lite-pytorch 0.1.0, padded for inputs that are multiples of the strides (image_size=224). The features
# were equal bit for bit.
EXPECTED = {
    "efficientnet-lite0": (
        ((1, 16, 32, 48), -0.51608, 7.07200),
        ((1, 24, 16, 24), 1.73651, 7.84627),
        ((1, 40, 8, 12), 0.43384, 6.81545),
        ((1, 112, 4, 6), -0.35945, 5.78247),
        ((1, 320, 2, 3), 0.02538, 1.58237),
    ),
    "efficientnet-lite1": (
        ((1, 16, 32, 48), 1.56426, 6.45836),
        ((1, 24, 16, 24), 2.79281, 9.55353),
        ((1, 40, 8, 12), -0.79519, 8.41585),
        ((1, 112, 4, 6), -0.70888, 6.32935),
        ((1, 320, 2, 3), -0.15749, 1.54243),
    ),
    "efficientnet-lite2": (
        ((1, 16, 32, 48), 0.68984, 5.51782),
        ((1, 24, 16, 24), -1.99875, 8.81955),
        ((1, 48, 8, 12), -0.36095, 7.56740),
        ((1, 120, 4, 6), -0.37777, 5.78089),
        ((1, 352, 2, 3), -0.07771, 1.58509),
    ),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_encoder_matches_the_reference_implementation(name: EncoderName) -> None:
    encoder = EfficientNetLite(name).eval()
    encoder.load_pretrained()
    with torch.no_grad():
        levels = encoder(torch.linspace(-1, 1, 3 * 64 * 96).reshape(1, 3, 64, 96))
    for features, (shape, mean, deviation) in zip(levels, EXPECTED[name], strict=True):
        assert tuple(features.shape) == shape
        assert features.mean().item() == pytest.approx(mean, abs=2e-4)
        assert features.std().item() == pytest.approx(deviation, abs=2e-4)


FINE = [1, 5, 1, 5, 5]
"""Two fine classes of obstacles and three of landing zones."""


def test_outputs_are_ordered_by_class_and_every_class_has_one() -> None:
    assert fine_outputs(FINE, 6) == [(0, 0), (1, 1), (1, 3), (2, 0), (3, 0), (4, 0), (5, 2), (5, 4), (5, 5)]
    assert fine_outputs([], 3) == [(0, 0), (1, 0), (2, 0)]


def test_probability_of_a_class_is_the_sum_of_its_fine_classes() -> None:
    logits = 20 * torch.randn(2, 9, 3, 4)
    fine = logits.double().softmax(1)
    summed = sum_fine_classes(logits, (1, 2, 1, 1, 1, 3)).double().softmax(1)
    expected = torch.stack([fine[:, [0]].sum(1), fine[:, 1:3].sum(1), fine[:, 3], fine[:, 4], fine[:, 5]], 1)
    torch.testing.assert_close(summed[:, :5], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(summed[:, 5], fine[:, 6:].sum(1), rtol=1e-4, atol=1e-6)


def test_fine_logits_are_returned_only_to_a_training_that_asks_for_them() -> None:
    network = build(fine_classes=FINE)
    patch = torch.rand(2, 3, 64, 128)
    assert network.train()(patch).shape == (2, 6, 32, 64), "nnU-Net's own trainer compares them with labels of classes"
    network.separates_fine_classes = True
    assert network.train()(patch).shape == (2, 9, 32, 64)
    assert network.eval()(patch).shape == (2, 6, 64, 128)
    network.decoder.deep_supervision = True
    assert {logits.shape[1] for logits in network.eval()(patch)} == {6}
    assert {logits.shape[1] for logits in network.train()(patch)} == {9}


def with_earlier_names(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network as checkpoints of earlier versions name them."""
    weights = network.state_dict()
    assert any(".seg_layers." in name for name in weights)
    return {name.replace(".seg_layers.", ".heads."): value for name, value in weights.items()}


def test_checkpoints_with_earlier_names_of_the_output_layers_are_loaded(tmp_path: Path) -> None:
    former, network = build(), build()
    network.load_state_dict(with_earlier_names(former))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in former.state_dict().items())
    torch.save({"network_weights": with_earlier_names(former)}, tmp_path / "earlier.pth")
    assert read_checkpoint(tmp_path / "earlier.pth")["network_weights"].keys() == former.state_dict().keys()


def test_nnunet_takes_weights_of_a_model_with_other_classes(tmp_path: Path) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    former, network = build(fine_classes=FINE), PretrainedUNet(3, 4, "efficientnet-lite0", 2, (128, 64, 48, 32, 24), ())
    own_head = network.decoder.seg_layers[4].weight.clone()  # type: ignore[union-attr, operator]  # a convolution
    torch.save({"network_weights": with_earlier_names(former)}, tmp_path / "former.pth")
    with redirect_stdout_to_log():
        load_pretrained_weights(network, str(tmp_path / "former.pth"))
    weights = network.state_dict()
    taken = {name: value for name, value in former.state_dict().items() if ".seg_layers." not in name}
    assert all(torch.equal(value, weights[name]) for name, value in taken.items())
    assert torch.equal(own_head, weights["decoder.seg_layers.4.weight"])


def test_network_with_fine_classes_starts_from_one_without() -> None:
    plain, fine = build().eval(), build(fine_classes=FINE).eval()
    fine.load_state_dict(fine.split_heads(plain.state_dict()))
    patch = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fine(patch), plain(patch), rtol=1e-4, atol=1e-4)


def test_frozen_stages_keep_weights_and_statistics() -> None:
    network = build()
    network.encoder.freeze(2)
    network.train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network(torch.rand(2, 3, 64, 64)).square().mean().backward()
    after = network.encoder.state_dict()
    frozen = [name for name in before if name.startswith(("stem.", "stages.0.", "stages.1."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["stages.2.0.layers.1.running_mean"], after["stages.2.0.layers.1.running_mean"])
    with_gradient = {name for name, value in network.encoder.named_parameters() if value.grad is not None}
    assert with_gradient == {name for name, _ in network.encoder.named_parameters()} - set(frozen)


def test_decoder_has_the_given_widths() -> None:
    network = build(decoder_features=(40, 32, 24), decoder_levels=3)
    assert [join[0].out_channels for join in network.decoder.joins] == [40, 32, 24]  # type: ignore[index]  # modules
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 6, 64, 64)


@pytest.mark.parametrize(("downscale", "levels"), [(1, 5), (2, 5), (4, 5), (1, 4), (2, 3)])
def test_logits_have_the_resolution_of_the_patch(downscale: int, levels: int) -> None:
    network = build(downscale=downscale, decoder_levels=levels).eval()
    side = 32 * downscale
    with torch.no_grad():
        assert network(torch.rand(1, 3, side, 2 * side)).shape == (1, 6, side, 2 * side)
        network.decoder.deep_supervision = True  # as nnU-Net sets it
        sizes = [logits.shape[2] for logits in network(torch.rand(1, 3, side, 2 * side))]
    # nnU-Net weights each resolution of the strides except the deepest
    finest = downscale * 2 ** (5 - levels)
    strides = [1, *([finest] if finest > 1 else []), *[2] * (levels - 1)]
    expected, size = [], side
    for stride in strides:
        size //= stride
        expected.append(size)
    assert sizes == expected


def test_patch_size_is_rounded_up_to_a_multiple_of_the_network() -> None:
    plans = {"configurations": {"2d": BASE}}
    made = add_configuration(plans, "2d_p", **(KEEP | {"patch_size": (600, 640)}), network="efficientnet-lite0")
    assert made["configurations"]["2d_p"]["patch_size"] == [640, 640]


def test_unsupported_options_of_pretrained_networks_are_refused() -> None:
    plans = {"configurations": {"2d": BASE | {"normalization_schemes": ["ZScoreNormalization"] * 3}}}
    with pytest.raises(ConfigurationError, match="leave base_features and max_features null"):
        add_configuration(plans, "2d_p", **(KEEP | {"base_features": 16}), network="efficientnet-lite0")
    with pytest.raises(ConfigurationError, match="colours divided by 255"):
        add_configuration(plans, "2d_p", **KEEP, network="efficientnet-lite0")
    with pytest.raises(ValueError, match="RGB"):
        PretrainedUNet(1, 6, "efficientnet-lite0", 2, (128, 64, 48, 32, 24), ())


def test_logits_are_not_upscaled_while_training() -> None:
    network = build(downscale=2).train()
    patch = torch.rand(2, 3, 64, 128)
    assert network(patch).shape == (2, 6, 32, 64)
    network.decoder.deep_supervision = True
    assert network(patch)[0].shape == (2, 6, 64, 128)


def test_depthwise_gradients_in_bfloat16_match_float32() -> None:
    encoder = EfficientNetLite("efficientnet-lite0").eval()
    encoder.load_pretrained()
    image = torch.rand(1, 3, 64, 64)
    gradients = []
    for enabled in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            features = encoder(image)
        assert features[0].dtype == (torch.bfloat16 if enabled else torch.float32)
        sum(level.float().square().mean() for level in features).backward()  # type: ignore[union-attr]
        depthwise = [m.weight.grad for m in encoder.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
        gradients.append(torch.cat([gradient.flatten() for gradient in depthwise if gradient is not None]))
    similarity = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert similarity > 0.98


def test_unwrap_finds_the_network_below_torch_compile() -> None:
    network = build()
    compiled = torch.compile(network)
    assert unwrap(compiled) is unwrap(network) is network
    encoder, decoder = parameter_groups(unwrap(compiled), 0.5)
    assert len(encoder["params"]) == len(list(network.encoder.parameters()))
    assert len(decoder["params"]) == len(list(network.decoder.parameters()))
