"""Read, write, extend and resolve nnU-Net's plans."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from droneseg.core.class_files import classes_of
from droneseg.core.classes import Normalisation
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
_DECODER_FEATURES = (128, 64, 48, 32, 24)  # one for each resolution of the encoder, deepest first
DECODER_LEVELS = len(_DECODER_FEATURES)
_NORMALISATIONS = {"RGBTo01Normalization": Normalisation.RGB_TO_0_1, "ZScoreNormalization": Normalisation.ZSCORE}


def read_plans(paths: NnunetPaths) -> Plans:
    """Read the plans of the dataset.

    Raises:
        ConfigurationError: If the dataset has not been preprocessed, or only with other plans, or if the file has the
            plans of another name or dataset.
    """
    if not paths.plans_file.is_file():
        there = paths.plans_names()
        remedy = f"The dataset has the plans {', '.join(there)}" if there else "Run `droneseg preprocess` first"
        raise ConfigurationError(f"{paths.plans_file} is missing. {remedy}.")
    plans: Plans = json.loads(paths.plans_file.read_text(encoding="utf-8"))
    if plans.get("plans_name", paths.plans) != paths.plans:
        raise ConfigurationError(
            f"{paths.plans_file} has the plans_name {plans['plans_name']}, by which nnU-Net names the results. Use the "
            "same name for the file."
        )
    if plans.get("dataset_name", paths.dataset) != paths.dataset:
        raise ConfigurationError(
            f"{paths.plans_file} has the plans of {plans['dataset_name']}. Move them to {paths.dataset} with "
            "`nnUNetv2_move_plans_between_datasets`."
        )
    return plans


def base_configuration(plans: Plans) -> Plans:
    """Return nnU-Net's 2d configuration of the plans.

    Raises:
        ConfigurationError: If the plans have none.
    """
    configurations: Plans = plans.get("configurations", {})
    if BASE_CONFIGURATION not in configurations:
        raise ConfigurationError(
            f"The plans {plans.get('plans_name')} have no configuration {BASE_CONFIGURATION}, only "
            f"{', '.join(configurations) or 'none'}. Choose plans of a 2D planner."
        )
    configuration: Plans = configurations[BASE_CONFIGURATION]
    return configuration


def preprocessed_configurations(plans: Plans) -> list[str]:
    """Return a 2D configuration of the plans for each folder of preprocessed data."""
    names: dict[str, str] = {}
    for name in plans["configurations"]:
        values = merge_configuration(plans, name)
        if len(values.get("patch_size", ())) == 2:
            names.setdefault(values["data_identifier"], name)
    return list(names.values())


def read_fine_classes(paths: NnunetPaths) -> list[int]:
    """Return the class id of each fine class of the preprocessed dataset, in the order of the fine class ids from 1.

    Raises:
        ConfigurationError: If the dataset has no fine classes, or no class has more than one.
    """
    file = paths.preprocessed_dataset / "dataset.json"
    description = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    entries = description.get("droneseg", {}).get("fine_classes", [])
    fine_classes = [classes_of(description).id_of(entry["class"]) for entry in entries]
    if len(fine_classes) == len(set(fine_classes)):
        raise ConfigurationError(
            f"fine_weight needs a class with several fine classes, but {file} has none. Convert a dataset with the "
            "folder fine_masks, then run `droneseg preprocess`; or set fine_weight=0."
        )
    return fine_classes


def write_plans(paths: NnunetPaths, plans: Plans) -> None:
    """Write the plans of the dataset atomically."""
    write_text(paths.plans_file, json.dumps(plans, indent=4) + "\n")


@dataclass(frozen=True)
class Plan:
    """A configuration of nnU-Net's plans, merged with the configurations it inherits from.

    Attributes:
        patch_size: Height and width of a patch.
        divisor: The height and width of an input must be multiples of these numbers, the products of the network's
            strides.
        normalisation_schemes: nnU-Net's normalisation class of each channel.
        masked_normalisation: Whether any channel is normalised inside the non-zero region only.
        spacing: Spacing of the rows and columns of an image.
    """

    patch_size: tuple[int, int]
    divisor: tuple[int, int]
    normalisation_schemes: tuple[str, ...]
    masked_normalisation: bool
    spacing: tuple[float, float] = (1.0, 1.0)

    @property
    def normalisation(self) -> Normalisation:
        """Normalisation of the colours.

        Raises:
            ConfigurationError: If bundles do not support the normalisation.
        """
        schemes = set(self.normalisation_schemes)
        if len(schemes) != 1 or not schemes <= set(_NORMALISATIONS):
            raise ConfigurationError(
                f"Cannot export normalisation {sorted(schemes)}. Supported: {sorted(_NORMALISATIONS)}; "
                "choose one with `droneseg data convert --normalisation`."
            )
        normalisation = _NORMALISATIONS[schemes.pop()]
        if normalisation == Normalisation.ZSCORE and self.masked_normalisation:
            raise ConfigurationError(
                "Cannot export a plan with use_mask_for_norm, which nnU-Net chooses for images with wide black "
                "borders. Crop the images before `droneseg data convert`."
            )
        return normalisation


def merge_configuration(plans: Plans, configuration: str) -> dict[str, Any]:
    """Return the values of a configuration of the plans, merged with the configurations it inherits from."""
    configurations = plans["configurations"]
    values = dict(configurations[configuration])
    while "inherits_from" in values:
        values = {**configurations[values.pop("inherits_from")], **values}
    return values


def resolve_plan(plans: Plans, configuration: str) -> Plan:
    """Return a configuration of the plans, merged with the configurations it inherits from."""
    values = merge_configuration(plans, configuration)
    height, width = values["patch_size"]
    rows, columns = values.get("spacing", (1.0, 1.0))[-2:]
    strides = values["architecture"]["arch_kwargs"]["strides"]
    return Plan(
        patch_size=(int(height), int(width)),
        divisor=(math.prod(stride[0] for stride in strides), math.prod(stride[1] for stride in strides)),
        normalisation_schemes=tuple(values.get("normalization_schemes", ())),
        masked_normalisation=any(values.get("use_mask_for_norm", ())),
        spacing=(float(rows), float(columns)),
    )


def pretrained_overrides(plans: Plans) -> list[str]:
    """Return the overrides of `droneseg train` that build the pretrained network in the plans.

    Returns:
        Overrides; none if no configuration has a pretrained network.
    """
    merged = [merge_configuration(plans, name) for name in plans["configurations"]]
    values = [
        each.get("architecture", {}).get("arch_kwargs", {}) for each in merged
    ]  # older plans have no architecture
    networks = [arguments for arguments in values if "encoder" in arguments]
    if not networks:
        return []
    arguments = networks[-1]
    overrides = ["preset=multiscale", f"network={arguments['encoder']}"]
    if arguments["downscale"] != DOWNSCALE:
        overrides.append(f"downscale={arguments['downscale']}")
    widths = list(arguments["decoder_features"])
    if widths != list(_DECODER_FEATURES):
        overrides += [f"decoder_levels={len(widths)}", f"decoder_features=[{','.join(map(str, widths))}]"]
    return overrides


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
    decoder_features: Sequence[int] | None = None,
    fine_classes: Sequence[int] = (),
) -> Plans:
    """Return the plans with an additional configuration that shares the preprocessed data of nnU-Net's 2d.

    For plain and batchnorm, depth, strides and kernels follow nnU-Net's own rule for the patch size
    (`get_pool_and_conv_props`), so nnU-Net's planner would choose the same. The other networks have a
    pretrained encoder of a fixed architecture.

    Args:
        plans: Plans of nnU-Net's planner; not changed.
        name: Name of the new configuration; those of the planner and the user are used as they are.
        patch_size: Height and width, rounded up to a multiple of the strides; None keeps the planner's.
        batch_size: Patches per iteration; None keeps the planner's.
        base_features: Channels of the first stage, doubled at each later one; None keeps the planner's.
        max_features: Maximum number of channels of a stage; None keeps the planner's.
        network: plain: nnU-Net's U-Net with instance normalisation; batchnorm: the same with batch normalisation; the
            others: a U-Net with an ImageNet-pretrained encoder.
        convs_per_stage: Convolutions per stage in encoder and decoder of plain and batchnorm.
        downscale: Factor by which a pretrained network downscales its input.
        decoder_levels: Upsampling steps of a pretrained network's decoder; fewer are faster but less sharp.
        decoder_features: Channels of each upsampling step of a pretrained network's decoder, deepest first; None for
            the default.
        fine_classes: Class id of each fine class that a pretrained network distinguishes during training.

    Raises:
        ConfigurationError: If 2d or another configuration of the planner or the user would be changed, or the network
            does not support a given size.
    """
    features = (base_features, max_features)
    base = base_configuration(plans)
    existing = plans["configurations"].get(name, {})
    # each configuration that this function adds has these keys
    if existing and existing.keys() != {"inherits_from", "patch_size", "batch_size", "architecture"}:
        changed = any(size is not None for size in (patch_size, batch_size, *features))
        if changed or (network, convs_per_stage) != ("plain", CONVS_PER_STAGE):
            owner = "nnU-Net's own plan" if name == BASE_CONFIGURATION else "in the plans, and not by droneseg,"
            raise ConfigurationError(
                f"configuration={name} is {owner} and cannot be changed. Use it as it is with preset=gpu, or use "
                "another name, such as configuration=2d_mine."
            )
        return plans
    minimum = patch_size or (base["patch_size"][0], base["patch_size"][1])
    if network in _NORM_OPS:
        architecture, patch = _unet(base, minimum, base_features, max_features, _NORM_OPS[network], convs_per_stage)
    else:
        _require_pretrained_fits(network, base, features)
        widths = decoder_features or _DECODER_FEATURES[:decoder_levels]
        architecture, patch = _pretrained(network, minimum, downscale, widths)
        if fine_classes:
            architecture["arch_kwargs"]["fine_classes"] = list(fine_classes)
    result = copy.deepcopy(plans)
    result["configurations"][name] = {
        "inherits_from": BASE_CONFIGURATION,
        "patch_size": patch,
        "batch_size": batch_size or base["batch_size"],
        "architecture": architecture,
    }
    return result


def _require_pretrained_fits(network: str, base: Plans, features: tuple[int | None, int | None]) -> None:
    if any(features):
        raise ConfigurationError(
            f"network={network} has a fixed number of channels: leave base_features and max_features null."
        )
    if set(base.get("normalization_schemes", ())) - {"RGBTo01Normalization"}:
        raise ConfigurationError(
            f"network={network} needs colours divided by 255. Run "
            "`droneseg data convert --normalisation rgb_to_0_1` first."
        )


def _unet(
    base: dict[str, Any],
    minimum: tuple[int, int],
    base_features: int | None,
    max_features: int | None,
    norm_op: str,
    convs_per_stage: int,
) -> tuple[dict[str, Any], list[int]]:
    """Return nnU-Net's architecture for a patch size, and the patch size rounded up to a multiple of its strides."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )

    architecture = copy.deepcopy(base["architecture"])
    kwargs = architecture["arch_kwargs"]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(base["spacing"], minimum, 4, 999999)
    stages = len(strides)
    first, maximum = base_features or kwargs["features_per_stage"][0], max_features or max(kwargs["features_per_stage"])
    kwargs.update(
        n_stages=stages,
        features_per_stage=[min(maximum, first * 2**stage) for stage in range(stages)],
        kernel_sizes=[list(kernel) for kernel in kernels],
        strides=[list(stride) for stride in strides],
        norm_op=norm_op,
        **_depths(kwargs, stages, convs_per_stage),
    )
    return architecture, [int(side) for side in patch]


def _depths(kwargs: Mapping[str, Any], stages: int, convs_per_stage: int) -> dict[str, list[int]]:
    """Return the numbers of convolutions, or of residual blocks, of each stage.

    Args:
        kwargs: Arguments of the planner's network.
        stages: Number of stages.
        convs_per_stage: Convolutions per stage of a plain U-Net.

    Raises:
        ConfigurationError: If the network has residual blocks, but a number of convolutions is given.
    """
    if "n_blocks_per_stage" not in kwargs:
        return {
            "n_conv_per_stage": [convs_per_stage] * stages,
            "n_conv_per_stage_decoder": [convs_per_stage] * (stages - 1),
        }
    if convs_per_stage != CONVS_PER_STAGE:
        raise ConfigurationError(
            f"convs_per_stage={convs_per_stage}: the plans have a network with residual blocks, whose number the "
            f"planner chooses. Use convs_per_stage={CONVS_PER_STAGE}."
        )
    blocks, decoder = kwargs["n_blocks_per_stage"], kwargs["n_conv_per_stage_decoder"]
    return {
        "n_blocks_per_stage": [*blocks, *[blocks[-1]] * stages][:stages],
        "n_conv_per_stage_decoder": [decoder[-1]] * (stages - 1),
    }


def _pretrained(
    encoder: str, minimum: tuple[int, int], downscale: int, decoder_features: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    """Return the architecture with a pretrained encoder, and the patch size rounded up to a multiple of its strides."""
    finest = downscale * 2 ** (DECODER_LEVELS - len(decoder_features))
    outer = [[1, 1], [finest, finest]] if finest > 1 else [[1, 1]]
    kwargs = {
        "encoder": encoder,
        "downscale": downscale,
        "decoder_features": list(decoder_features),
        "strides": outer + [[2, 2]] * len(decoder_features),
    }
    unit = downscale * 2**DECODER_LEVELS
    patch = [-(-side // unit) * unit for side in minimum]
    return {"network_class_name": _PRETRAINED_CLASS, "arch_kwargs": kwargs, "_kw_requires_import": []}, patch
