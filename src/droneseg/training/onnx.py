"""Export to ONNX, compare with torch, quantise to INT8."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from droneseg.core.errors import ConfigurationError, MissingDependencyError, ModelError
from droneseg.core.system import no_telemetry
from droneseg.nnunet.checkpoint import TrainedModel, build_networks
from droneseg.nnunet.plans import resolve_plan
from droneseg.nnunet.preprocess import redirect_stdout_to_log

logger = logging.getLogger(__name__)

_OPSET = 17
# Both sum the same products in another order; what differs more is not the same network.
_MIN_AGREEMENT = 0.999
_NORMALISATIONS: dict[str, Literal["rgb_to_0_1", "zscore"]] = {
    "RGBTo01Normalization": "rgb_to_0_1",
    "ZScoreNormalization": "zscore",
}


class MeanOfFolds(nn.Module):
    """The mean of several networks' logits, as nnU-Net averages folds."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, patch: torch.Tensor) -> torch.Tensor:
        """Return the mean of the logits, (N, C, H, W)."""
        logits: torch.Tensor = self.networks[0](patch)
        for network in self.networks[1:]:
            logits = logits + network(patch)
        return logits / len(self.networks) if len(self.networks) > 1 else logits


class TwoPassInstanceNorm(nn.Module):
    """Instance normalisation as plain arithmetic: the mean first, then the variance around it.

    As one operator, OpenVINO's result is off by up to 2e-2 in the logits of the stock network, against 1e-4 so.
    """

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        weight = torch.ones(norm.num_features) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros(norm.num_features) if norm.bias is None else norm.bias.detach()
        self.weight = nn.Parameter(weight[None, :, None, None])
        self.bias = nn.Parameter(bias[None, :, None, None])
        self.eps = norm.eps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each image over its pixels, (N, C, H, W) to the same."""
        centred = features - features.mean((2, 3), keepdim=True)
        variance = (centred * centred).mean((2, 3), keepdim=True)
        return centred * (self.weight / torch.sqrt(variance + self.eps)) + self.bias


def _exportable(module: nn.Module) -> nn.Module:
    """Replace every instance normalisation in a network, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, TwoPassInstanceNorm(child))
        else:
            _exportable(child)
    return module


def normalisation_of(model: TrainedModel) -> Literal["rgb_to_0_1", "zscore"]:
    """Return how the model wants its colours.

    Raises:
        ConfigurationError: If the plan asks for something that photographs of three colours do not have.
    """
    plan = resolved_plan(model)
    schemes = set(plan["normalization_schemes"])
    if len(schemes) != 1 or not schemes <= set(_NORMALISATIONS):
        raise ConfigurationError(f"Cannot export normalisation {sorted(schemes)}; known are {sorted(_NORMALISATIONS)}.")
    chosen = _NORMALISATIONS[schemes.pop()]
    if chosen == "zscore" and any(plan["use_mask_for_norm"]):
        raise ConfigurationError(
            "Cannot export a plan that normalises inside a mask only (use_mask_for_norm): most photographs of its data "
            "have wide black borders. Crop them before `droneseg data convert`."
        )
    return chosen


def resolved_plan(model: TrainedModel) -> dict[str, Any]:
    """Return the model's configuration with what it inherits."""
    return resolve_plan(model.plans, model.configuration)


def export_onnx(model: TrainedModel, target: Path, patches: NDArray[np.float32]) -> dict[str, float]:
    """Write the network of a model as ONNX and hold it against torch.

    Args:
        model: What to export.
        target: File to write: (N, 3, h, w) float32, named `patch`, to `logits` (N, C, h, w).
        patches: Normalised tiles to compare on, shape (N, 3, h, w), dtype float32.

    Returns:
        `agreement`, the share of pixels with the same class, and `largest_difference` of the logits.

    Raises:
        ModelError: If the exported network does not agree with torch.
    """
    network = MeanOfFolds(build_networks(model)).eval()
    exportable = _exportable(MeanOfFolds(build_networks(model))).eval()
    example = torch.from_numpy(patches[:1])
    # inference_mode breaks the export
    with torch.no_grad(), redirect_stdout_to_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            exportable,
            (example,),
            str(target),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["patch"],
            output_names=["logits"],
            dynamic_axes={"patch": {0: "n"}, "logits": {0: "n"}},
        )
    figures = _compare(network, target, patches)
    logger.info("exported network agrees with torch on %.4f %% of pixels", 100 * figures["agreement"])
    if not figures["agreement"] >= _MIN_AGREEMENT:
        raise ModelError(
            f"The exported network agrees with torch on {figures['agreement']:.2%} of pixels only; nothing was written."
        )
    return figures


def _compare(network: nn.Module, exported: Path, patches: NDArray[np.float32]) -> dict[str, float]:
    import onnxruntime as ort

    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    same, largest = [], 0.0
    for patch in patches:
        with torch.no_grad():
            wanted = network(torch.from_numpy(patch[None])).numpy()
        found = session.run(None, {"patch": patch[None]})[0]
        same.append(float((wanted.argmax(1) == found.argmax(1)).mean()))
        largest = max(largest, float(np.abs(wanted - found).max()))
    return {"agreement": float(np.mean(same)), "largest_difference": largest}


def quantise(network: Path, target: Path, patches: NDArray[np.float32]) -> None:
    """Write an INT8 version of an ONNX network, calibrated on tiles.

    Weights and activations become 8-bit integers (NNCF's mixed preset: symmetric weights, asymmetric activations).

    Args:
        network: ONNX file with an input named `patch`.
        target: File to write.
        patches: Normalised tiles, shape (N, 3, h, w), dtype float32.

    Raises:
        MissingDependencyError: If NNCF is not installed.
    """
    try:
        with no_telemetry():
            import nncf
            import openvino  # noqa: F401  # NNCF imports it later, and it would report then
    except ImportError as error:
        raise MissingDependencyError("nncf", "train") from error
    import onnx

    with redirect_stdout_to_log():
        quantised = nncf.quantize(
            onnx.load(str(network)),
            nncf.Dataset([{"patch": patch[None]} for patch in patches]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(patches),
        )
    onnx.save(quantised, str(target))
