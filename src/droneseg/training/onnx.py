"""Export trained networks to ONNX, compare them with torch, and quantise them to INT8."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from droneseg.core.errors import MissingDependencyError, ModelError
from droneseg.core.system import no_telemetry
from droneseg.model.bundle import NNUNET_OUTPUT
from droneseg.nnunet.checkpoint import TrainedModel, build_networks
from droneseg.nnunet.preprocess import redirect_stdout_to_log

logger = logging.getLogger(__name__)

_OPSET = 17
_LOGITS = "logits"
# the two networks sum the same products in different orders; a lower agreement indicates an error in the export
_MIN_AGREEMENT = 0.999


class MeanOfFolds(nn.Module):
    """Mean of the logits of several networks, as nnU-Net averages folds.

    Args:
        networks: Networks.
        channel_order: Index of the colour (red, green, blue) that each of their channels is.
        keep_folds: Whether to also return the logits of each network.
    """

    def __init__(
        self, networks: Sequence[nn.Module], channel_order: tuple[int, int, int], *, keep_folds: bool = False
    ) -> None:
        super().__init__()
        self.keep_folds = keep_folds
        self.networks = nn.ModuleList(networks)
        self.channel_order = None if list(channel_order) == sorted(channel_order) else list(channel_order)

    def forward(self, patch: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of the logits of RGB tiles, shape (N, C, H, W).

        With `keep_folds`, the second result contains the logits of the networks one after the other, shape
        (N, networks * C, H, W).
        """
        if self.channel_order:
            patch = patch[:, self.channel_order]
        by_fold: list[torch.Tensor] = [network(patch) for network in self.networks]
        logits = by_fold[0]
        for other in by_fold[1:]:
            logits = logits + other
        mean = logits / len(by_fold) if len(by_fold) > 1 else logits
        return (mean, torch.cat(by_fold, 1)) if self.keep_folds else mean


class TwoPassInstanceNorm(nn.Module):
    """Instance normalisation from elementary operations: the mean first, then the variance around it.

    With OpenVINO's fused operator, the logits of the default nnU-Net differ from those of torch by up to 2e-2; with
    this module, by 1e-4.
    """

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        weight = torch.ones(norm.num_features) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros(norm.num_features) if norm.bias is None else norm.bias.detach()
        self.weight = nn.Parameter(weight[None, :, None, None])
        self.bias = nn.Parameter(bias[None, :, None, None])
        self.eps = norm.eps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each image over its pixels, shape (N, C, H, W)."""
        centred = features - features.mean((2, 3), keepdim=True)
        variance = (centred * centred).mean((2, 3), keepdim=True)
        return centred * (self.weight / torch.sqrt(variance + self.eps)) + self.bias


def _exportable(module: nn.Module) -> nn.Module:
    """Replace all instance normalisation layers of a network with `TwoPassInstanceNorm`, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, TwoPassInstanceNorm(child))
        else:
            _exportable(child)
    return module


@dataclass(frozen=True)
class TorchAgreement:
    """Comparison of an exported network with torch.

    Attributes:
        agreement: Fraction of pixels with the same class.
        largest_difference: Largest absolute difference of any logit.
    """

    agreement: float
    largest_difference: float


def export_onnx(model: TrainedModel, target: Path, patches: NDArray[np.float32]) -> TorchAgreement:
    """Export the network of a model to ONNX and compare it with torch.

    Args:
        model: Trained model; folds are averaged in one graph.
        target: ONNX file to write, with input `patch`, shape (N, 3, h, w), dtype float32, and output `logits`,
            shape (N, C, h, w). Of several folds, it also has the output `nnunet_logits`, shape (N, folds * C, h, w).
        patches: Normalised tiles for the comparison, shape (N, 3, h, w), dtype float32.

    Raises:
        ModelError: If fewer than 99.9 % of the pixels have the same class.
    """
    network = MeanOfFolds(build_networks(model), model.channel_order).eval()
    several = len(model.folds) > 1
    outputs = [_LOGITS, NNUNET_OUTPUT] if several else [_LOGITS]
    exportable = _exportable(MeanOfFolds(build_networks(model), model.channel_order, keep_folds=several)).eval()
    example = torch.from_numpy(patches[:1])
    # torch.inference_mode breaks the export
    with torch.no_grad(), redirect_stdout_to_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            exportable,
            (example,),
            str(target),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["patch"],
            output_names=outputs,
            dynamic_axes={name: {0: "n"} for name in ("patch", *outputs)},
        )
    result = _compare(network, target, patches)
    logger.info("exported network agrees with torch on %.4f %% of pixels", 100 * result.agreement)
    if not result.agreement >= _MIN_AGREEMENT:
        raise ModelError(
            f"The exported network agrees with torch on only {result.agreement:.2%} of pixels, and no bundle was "
            "written. Report this with the model's plans.json."
        )
    return result


def _compare(network: nn.Module, exported: Path, patches: NDArray[np.float32]) -> TorchAgreement:
    import onnxruntime as ort

    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    same, largest = [], 0.0
    for patch in patches:
        with torch.no_grad():
            expected = network(torch.from_numpy(patch[None])).numpy()
        logits = session.run([_LOGITS], {"patch": patch[None]})[0]
        same.append(float((expected.argmax(1) == logits.argmax(1)).mean()))
        largest = max(largest, float(np.abs(expected - logits).max()))
    return TorchAgreement(agreement=float(np.mean(same)), largest_difference=largest)


def quantise(network: Path, target: Path, patches: NDArray[np.float32]) -> None:
    """Quantise an ONNX network to INT8, calibrated on tiles.

    Weights and activations become 8-bit integers: NNCF's mixed preset, with symmetric weights and asymmetric
    activations, which are then made unsigned; see `make_activations_unsigned`. Weights use half of their range, so that
    the 16-bit sums of processors without VNNI do not overflow.

    Args:
        network: ONNX file with an input named `patch`.
        target: ONNX file to write.
        patches: Normalised tiles for calibration, shape (N, 3, h, w), dtype float32.

    Raises:
        MissingDependencyError: If NNCF is not installed.
    """
    try:
        with no_telemetry():
            import nncf
            import openvino  # noqa: F401  # NNCF imports it later, outside `no_telemetry`
    except ImportError as error:
        raise MissingDependencyError("nncf", "train") from error

    model = _with_logits_only(onnx.load(str(network)))
    with redirect_stdout_to_log():
        quantised = nncf.quantize(
            model,
            nncf.Dataset([{"patch": patch[None]} for patch in patches]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(patches),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    make_activations_unsigned(quantised)
    onnx.save(quantised, str(target))


def _with_logits_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the output with the logits of single folds, which only the profile `exact` needs, in place."""
    for items in (model.graph.output, model.graph.node):
        for item in [item for item in items if NNUNET_OUTPUT in (item.name, *getattr(item, "output", ()))]:
            items.remove(item)
    return model


def make_network_unsigned(network: Path, target: Path) -> bool:
    """Write a quantised network with unsigned activations, and return True; False if it has no signed ones."""
    model = onnx.load(str(network))
    changed = make_activations_unsigned(model)
    if changed:
        onnx.save(model, str(target))
    return changed > 0


def make_activations_unsigned(model: onnx.ModelProto) -> int:
    """Store the signed activations of a quantised network as unsigned integers, in place. No value changes.

    OpenVINO (2026.4) computes the convolution of concatenated signed activations incorrectly, without an error, on
    processors without AMX: 10 % of the standard deviation in one layer. With unsigned activations it is correct.

    Args:
        model: Network with `QuantizeLinear` and `DequantizeLinear` nodes.

    Returns:
        Number of tensors that were changed.
    """
    nodes = model.graph.node
    quantised = {node.output[0] for node in nodes if node.op_type == "QuantizeLinear"}
    activations = [node for node in nodes if quantised & {*node.input[:1], *node.output}]
    zero_points = {node.input[2] for node in activations if len(node.input) > 2}
    changed = 0
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if initializer.name in zero_points and values.dtype == np.int8:
            shifted = (values.astype(np.int16) + 128).astype(np.uint8)
            initializer.CopyFrom(numpy_helper.from_array(shifted, initializer.name))
            changed += 1
    # the inferred types of quantised tensors are no longer correct
    kept = [value for value in model.graph.value_info if value.name not in quantised]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return changed
