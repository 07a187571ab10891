"""Training configuration: Hydra presets, KEY=VALUE overrides and validation."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from droneseg.core.errors import ConfigurationError, optional_import
from droneseg.nnunet.plans import CONVS_PER_STAGE, DECODER_LEVELS, DOWNSCALE, NetworkName
from droneseg.nnunet.trainer_settings import BY_ID, BY_NAME, TrainerSettings

_IN_PACKAGE = Path(__file__).parents[1] / "configs"
_IN_CHECKOUT = Path(__file__).parents[3] / "configs"

Width = Annotated[int, Field(ge=4, le=1024)]

_FORMER_NAMES = {"init_from": "weights"}
"""Keys of earlier versions and their present names; they are not documented."""

_RESOLVED_LATER = {"bf16", "tracked"}
"""Trainer settings that are resolved when the training starts; the trainer does not accept "auto"."""


class NoTracking(BaseModel):
    """No tracking: no data leaves the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Literal["none"] = "none"


class WandbTracking(BaseModel):
    """Tracking with Weights & Biases."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Literal["wandb"]
    project: str = Field("droneseg", description="W&B project.")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="auto: online with an API key, else offline."
    )
    group: str | None = Field(None, description="Group of the run in W&B, for example a sweep.")
    images: bool = Field(False, description="Upload validation overlays; these contain your images.")


class TrainingConfig(BaseModel):
    """Configuration of one training.

    YAML files and overrides are flat; keys of `TrainerSettings` are moved under `trainer`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Annotated[int, Field(ge=1, le=999)] | str | None = Field(
        None, description="Number or name of the dataset in nnUNet_preprocessed; null: Dataset101_DroneSeg."
    )
    plans: str | None = Field(
        None, description="Name of the plans of the dataset, without .json; null: nnUNetPlans, the default planner's."
    )
    configuration: str = Field(
        pattern=r"^2d[A-Za-z0-9_-]*$", description="Name of the nnU-Net configuration; starts with 2d."
    )
    patch_size: tuple[int, int] | None = Field(None, description="Height and width of a patch; null: nnU-Net's plan.")
    batch_size: int | None = Field(None, ge=2, description="Patches per iteration; null: nnU-Net's plan.")
    base_features: int | None = Field(None, ge=4, description="Channels at full resolution, doubled at each lower one.")
    max_features: int | None = Field(None, ge=4, description="Maximum number of channels at any resolution.")
    network: NetworkName = Field(
        "plain",
        description="plain: nnU-Net's U-Net; batchnorm: the same with batch normalisation; the others: a U-Net with an "
        "ImageNet-pretrained encoder.",
    )
    convs_per_stage: int = Field(
        CONVS_PER_STAGE, ge=1, description="Convolutions per resolution in encoder and decoder; nnU-Net uses 2."
    )
    downscale: int = Field(
        DOWNSCALE,
        ge=1,
        le=4,
        description="Factor by which a pretrained network downscales its input.",
    )
    decoder_levels: int = Field(
        DECODER_LEVELS,
        ge=2,
        le=DECODER_LEVELS,
        description="Upsampling steps of a pretrained network's decoder; fewer are faster but less sharp.",
    )
    decoder_features: tuple[Width, ...] | None = Field(
        None,
        description="Channels of each upsampling step of a pretrained network's decoder, deepest first, one number for "
        "each of `decoder_levels`; null: 128, 64, 48, 32, 24.",
    )
    fold: int = Field(
        0, ge=0, description="Fold in splits_final.json. Fold 0 is the split given to `droneseg data convert`."
    )
    resume: bool = Field(False, description="Continue from the latest checkpoint of the same configuration and fold.")
    overwrite: bool = Field(False, description="Rename an existing training run of this fold and start from scratch.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: the first available of cuda, mps, cpu."
    )
    num_gpus: int = Field(1, ge=1, description="GPUs; more than 1: distributed data parallel training (DDP).")
    workers: int | None = Field(
        None, ge=0, description="Data-loading processes; null: based on the CPU count; 0: load in the training process."
    )
    bf16: bool | Literal["auto"] = Field(
        "auto", description="Compute in bfloat16 on the CPU; auto: if the CPU supports it in hardware."
    )
    tracking: Annotated[NoTracking | WandbTracking, Field(discriminator="name")] = NoTracking()
    trainer: TrainerSettings

    @model_validator(mode="before")
    @classmethod
    def _gather_trainer(cls, values: Any) -> Any:
        """Move the keys of the trainer under `trainer`."""
        if not isinstance(values, dict) or "trainer" in values:
            return values
        names = set(TrainerSettings.model_fields) - _RESOLVED_LATER
        inner = {key: value for key, value in values.items() if key in names}
        return {key: value for key, value in values.items() if key not in names} | {"trainer": inner}

    @model_validator(mode="after")
    def _require_consistent_keys(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite cannot be combined; set only one of them")
        if self.network in ("plain", "batchnorm"):
            trainer = self.trainer
            given = (trainer.encoder_rate, self.downscale, self.decoder_levels, self.decoder_features)
            if given != (1, DOWNSCALE, DECODER_LEVELS, None) or trainer.frozen_stages or trainer.fine_weight:
                raise ValueError(
                    f"network={self.network} has no pretrained encoder; keep encoder_rate=1 downscale={DOWNSCALE} "
                    f"decoder_levels={DECODER_LEVELS} decoder_features=null frozen_stages=0 fine_weight=0"
                )
        if self.decoder_features and len(self.decoder_features) != self.decoder_levels:
            raise ValueError(
                f"decoder_features has {len(self.decoder_features)} numbers, but decoder_levels={self.decoder_levels}; "
                "give one number for each level"
            )
        return self


def config_folder() -> Path:
    """Return the folder of the YAML files that are installed with droneseg."""
    return _IN_PACKAGE if _IN_PACKAGE.is_dir() else _IN_CHECKOUT


def preset_names() -> list[str]:
    """Return the names of the presets that are installed with droneseg."""
    return sorted(file.stem for file in (config_folder() / "preset").glob("*.yaml"))


def training_keys() -> dict[str, str]:
    """Return the keys that can be overridden and their descriptions, without the groups `preset` and `tracking`."""
    fields = {**TrainerSettings.model_fields, **TrainingConfig.model_fields}
    keys = {name: field.description or "" for name, field in fields.items()}
    for not_a_key in ("trainer", "tracked", "tracking"):
        del keys[not_a_key]
    tracking = {f"tracking.{name}": field.description or "" for name, field in WandbTracking.model_fields.items()}
    del tracking["tracking.name"]
    return keys | tracking


def load_config(overrides: Sequence[str], *, folder: Path | None = None) -> TrainingConfig:
    """Compose the presets with overrides such as `preset=cpu`, `max_minutes=30`, `tracking=wandb`.

    Args:
        overrides: Overrides in Hydra's form, `key=value`.
        folder: Folder of the YAML files; by default those installed with droneseg.

    Raises:
        ConfigurationError: If a key or value is invalid; the message lists all of them.
        MissingDependencyError: If Hydra is not installed.
    """
    with optional_import("hydra-core", "train"):
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    folder = folder or config_folder()
    overrides = [_with_present_name(override) for override in overrides]
    problems = [problem for override in overrides if (problem := _override_problem(override, folder))]
    if problems:
        raise ConfigurationError("\n".join(["Invalid training configuration:", *problems]))
    try:
        with initialize_config_dir(config_dir=str(folder.resolve()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("train", overrides=_for_hydra(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(f"{error}\nRun `droneseg train --show` to list the keys.") from error
    try:
        return TrainingConfig.model_validate(composed)
    except ValidationError as error:
        lines = [_describe(item) for item in error.errors()]
        raise ConfigurationError("\n".join(["Invalid training configuration:", *lines])) from error


def _with_present_name(override: str) -> str:
    key, equals, value = override.partition("=")
    return f"{_FORMER_NAMES.get(key, key)}{equals}{value}"


def _for_hydra(overrides: Sequence[str]) -> list[str]:
    """Adapt overrides of the class weights: Hydra neither replaces a mapping with a list, nor adds keys to it."""
    result: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "class_weights" and value.startswith("["):
            result += [f"{key}=null", override]
        elif key == "class_weights" and value.startswith("{"):
            result.append(f"++{override}")
        else:
            result.append(override)
    return result


def _override_problem(override: str, folder: Path) -> str:
    """Return a line that explains the invalid syntax, key or group of an override, or "" if it is valid."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"  - {override}: expected key=value"
    groups = {
        group.name: sorted(file.stem for file in group.glob("*.yaml")) for group in folder.iterdir() if group.is_dir()
    }
    if key in groups:
        return "" if value in groups[key] else f"  - {override}: choose one of {', '.join(groups[key])}"
    keys = training_keys()
    if key in keys:
        return ""
    near = get_close_matches(key, [*keys, *groups], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`droneseg train --show` lists the keys"
    return f"  - {override}: unknown key {key!r}; {hint}"


def _describe(problem: ErrorDetails) -> str:
    if problem["loc"] in ((), ("trainer",)):  # the input is the whole configuration, too long to show
        return f"  - {problem['msg'].removeprefix('Value error, ')}"
    return f"  - {_key(problem['loc'])}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part not in ("trainer", BY_NAME, BY_ID)) or "configuration"
