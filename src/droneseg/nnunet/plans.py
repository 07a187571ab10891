"""Read, extend and resolve plans."""

import copy
import json
import math
from typing import Any, Literal

from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_text
from droneseg.nnunet.paths import BASE_CONFIGURATION, NnunetPaths

Plans = dict[str, Any]
NetworkName = Literal["plain", "batchnorm", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]

CONVS_PER_STAGE = 2
DOWNSCALE = 2
_NORM_OPS = {
    "plain": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "batchnorm": "torch.nn.modules.batchnorm.BatchNorm2d",
}
_PRETRAINED_CLASS = "droneseg.nnunet.networks.PretrainedUNet"
_DECODER_FEATURES = (128, 64, 48, 32, 24)  # one for each halving of the resolution in the encoder
DECODER_LEVELS = len(_DECODER_FEATURES)


def read_plans(layout: NnunetPaths) -> Plans:
    """Read the plans of the dataset.

    Raises:
        ConfigurationError: If the dataset was not preprocessed yet.
    """
    if not layout.plans_file.is_file():
        raise ConfigurationError(f"{layout.plans_file} is missing. Run `droneseg preprocess` first.")
    plans: Plans = json.loads(layout.plans_file.read_text(encoding="utf-8"))
    return plans


def write_plans(layout: NnunetPaths, plans: Plans) -> None:
    """Write the plans of the dataset in one step."""
    write_text(layout.plans_file, json.dumps(plans, indent=4) + "\n")


def add_configuration(
    plans: Plans,
    name: str,
    *,
    patch_size: tuple[int, int] | None,
    batch_size: int | None,
    base_features: int | None,
    max_features: int | None,
    network: NetworkName = "plain",
    convs_per_stage: int = CONVS_PER_STAGE,
    downscale: int = DOWNSCALE,
    decoder_levels: int = DECODER_LEVELS,
) -> Plans:
    """Return the plans with a configuration beside nnU-Net's 2d one. The preprocessed data is shared with 2d.

    Depth, strides and kernels of plain and batchnorm follow from nnU-Net's own rule for the patch
    (`get_pool_and_conv_props`), so what is added is what its planner would have chosen. The other networks have an
    encoder of a given shape.

    Args:
        plans: As nnU-Net's planner made them; not changed.
        name: Of the new configuration; 2d itself cannot be changed.
        patch_size: Height and width, rounded up to what the strides divide; None keeps the planner's.
        batch_size: None keeps the planner's.
        base_features: Channels of the first stage, doubled at each further one; None keeps the planner's.
        max_features: Most channels of a stage; None keeps the planner's.
        network: plain is nnU-Net's U-Net with instance normalisation; batchnorm the same with batch normalisation; the
            others a U-Net on an encoder trained on ImageNet.
        convs_per_stage: Convolutions at each resolution of plain and batchnorm, on the way down and up.
        downscale: By how much an encoder trained on ImageNet sees the photograph smaller, inside the network.
        decoder_levels: How often its decoder doubles the resolution; fewer than five are faster and less sharp.

    Raises:
        ConfigurationError: If 2d would be changed, or a size is given that the network does not have.
    """
    sizes = (patch_size, batch_size, base_features, max_features)
    if name == BASE_CONFIGURATION:
        if any(size is not None for size in sizes) or (network, convs_per_stage) != ("plain", CONVS_PER_STAGE):
            raise ConfigurationError(
                "configuration=2d is nnU-Net's own plan. Give a plan with another size a name of its own, "
                "such as configuration=2d_mine."
            )
        return plans
    base = plans["configurations"][BASE_CONFIGURATION]
    wanted = patch_size or (base["patch_size"][0], base["patch_size"][1])
    if network in _NORM_OPS:
        architecture, patch = _unet(base, wanted, base_features, max_features, _NORM_OPS[network], convs_per_stage)
    else:
        if base_features or max_features:
            raise ConfigurationError(
                f"network={network} has channels of its own: leave base_features, max_features null."
            )
        if set(base.get("normalization_schemes", ())) - {"RGBTo01Normalization"}:
            raise ConfigurationError(
                f"network={network} needs colours divided by 255: convert the data with --normalisation rgb_to_0_1."
            )
        architecture, patch = _pretrained(network, wanted, downscale, decoder_levels)
    changed = copy.deepcopy(plans)
    changed["configurations"][name] = {
        "inherits_from": BASE_CONFIGURATION,
        "patch_size": patch,
        "batch_size": batch_size or base["batch_size"],
        "architecture": architecture,
    }
    return changed


def resolve_plan(plans: Plans, configuration: str) -> dict[str, Any]:
    """Return a configuration with what it inherits."""
    configurations = plans["configurations"]
    plan: dict[str, Any] = dict(configurations[configuration])
    while "inherits_from" in plan:
        plan = {**configurations[plan.pop("inherits_from")], **plan}
    return plan


def divisor(plan: dict[str, Any]) -> tuple[int, int]:
    """Return what height and width must be multiples of in a resolved plan: the product of the network's strides."""
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    return math.prod(height for height, _ in strides), math.prod(width for _, width in strides)


def _unet(
    base: dict[str, Any],
    wanted: tuple[int, int],
    base_features: int | None,
    max_features: int | None,
    norm_op: str,
    convs_per_stage: int,
) -> tuple[dict[str, Any], list[int]]:
    """Return nnU-Net's own architecture for a patch, and the patch rounded up."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )

    architecture = copy.deepcopy(base["architecture"])
    kwargs = architecture["arch_kwargs"]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(base["spacing"], wanted, 4, 999999)
    stages = len(strides)
    first, most = base_features or kwargs["features_per_stage"][0], max_features or max(kwargs["features_per_stage"])
    kwargs.update(
        n_stages=stages,
        features_per_stage=[min(most, first * 2**stage) for stage in range(stages)],
        kernel_sizes=[list(kernel) for kernel in kernels],
        strides=[list(stride) for stride in strides],
        n_conv_per_stage=[convs_per_stage] * stages,
        n_conv_per_stage_decoder=[convs_per_stage] * (stages - 1),
        norm_op=norm_op,
    )
    return architecture, [int(side) for side in patch]


def _pretrained(
    encoder: str, wanted: tuple[int, int], downscale: int, decoder_levels: int
) -> tuple[dict[str, Any], list[int]]:
    """Return the architecture on a pretrained encoder, and the patch rounded up."""
    finest = downscale * 2 ** (len(_DECODER_FEATURES) - decoder_levels)
    outer = [[1, 1], [finest, finest]] if finest > 1 else [[1, 1]]
    kwargs = {
        "encoder": encoder,
        "downscale": downscale,
        "decoder_features": list(_DECODER_FEATURES[:decoder_levels]),
        "strides": outer + [[2, 2]] * decoder_levels,
    }
    unit = downscale * 2 ** len(_DECODER_FEATURES)
    patch = [-(-side // unit) * unit for side in wanted]
    return {"network_class_name": _PRETRAINED_CLASS, "arch_kwargs": kwargs, "_kw_requires_import": []}, patch
