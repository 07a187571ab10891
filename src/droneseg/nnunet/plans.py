"""nnU-Net's plan: made by its own planner, with smaller configurations for small machines added beside it."""

import copy
import json
from typing import Any, Literal

from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_text
from droneseg.nnunet.layout import BASE_CONFIGURATION, Layout

Plans = dict[str, Any]
NetworkName = Literal["plain", "batchnorm"]

CONVS_PER_STAGE = 2
_NORM_OPS: dict[NetworkName, str] = {
    "plain": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "batchnorm": "torch.nn.modules.batchnorm.BatchNorm2d",
}


def read_plans(layout: Layout) -> Plans:
    """Read the plans of the dataset.

    Raises:
        ConfigurationError: If the dataset was not preprocessed yet.
    """
    if not layout.plans_file.is_file():
        raise ConfigurationError(f"{layout.plans_file} is missing. Run `droneseg preprocess` first.")
    plans: Plans = json.loads(layout.plans_file.read_text(encoding="utf-8"))
    return plans


def write_plans(layout: Layout, plans: Plans) -> None:
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
) -> Plans:
    """Return the plans with a configuration that differs from nnU-Net's 2d one in size only.

    Depth, strides and kernels for a patch follow from nnU-Net's own rule (`get_pool_and_conv_props`), so what is added
    is what its planner would have chosen for such a patch. The preprocessed data is shared with 2d.

    Args:
        plans: As nnU-Net's planner made them; not changed.
        name: Of the new configuration; 2d itself cannot be changed.
        patch_size: Height and width, rounded up to what the strides divide; None keeps the planner's.
        batch_size: None keeps the planner's.
        base_features: Channels of the first stage, doubled at each further one; None keeps the planner's.
        max_features: Most channels of a stage; None keeps the planner's.
        network: plain is nnU-Net's U-Net with instance normalisation; batchnorm the same with batch normalisation.
        convs_per_stage: Convolutions at each resolution, on the way down and up; nnU-Net's own are two.

    Raises:
        ConfigurationError: If 2d would be changed.
    """
    if name == BASE_CONFIGURATION:
        sizes = (patch_size, batch_size, base_features, max_features)
        if any(size is not None for size in sizes) or (network, convs_per_stage) != ("plain", CONVS_PER_STAGE):
            raise ConfigurationError(
                "configuration=2d is nnU-Net's own plan. Give a plan with another size a name of its own, "
                "such as configuration=2d_mine."
            )
        return plans
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )

    base = plans["configurations"][BASE_CONFIGURATION]
    architecture = copy.deepcopy(base["architecture"])
    kwargs = architecture["arch_kwargs"]
    wanted = patch_size or tuple(base["patch_size"])
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
        norm_op=_NORM_OPS[network],
    )
    changed = copy.deepcopy(plans)
    changed["configurations"][name] = {
        "inherits_from": BASE_CONFIGURATION,
        "patch_size": [int(side) for side in patch],
        "batch_size": batch_size or base["batch_size"],
        "architecture": architecture,
    }
    return changed
