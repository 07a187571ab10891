"""TrainingConfig: Hydra presets, overrides, validation."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from droneseg.core.errors import ConfigurationError, MissingDependencyError
from droneseg.nnunet.plans import CONVS_PER_STAGE, DECODER_LEVELS, DOWNSCALE, NetworkName
from droneseg.nnunet.trainer_settings import TrainerSettings

_IN_PACKAGE = Path(__file__).parents[1] / "configs"
_IN_CHECKOUT = Path(__file__).parents[3] / "configs"


_DECIDED = {"bf16", "tracked"}
"""What of the trainer's settings is decided later: "auto" is no value the trainer knows."""


class NoTracking(BaseModel):
    """Nothing leaves the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Literal["none"] = "none"


class WandbTracking(BaseModel):
    """Weights & Biases."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Literal["wandb"]
    project: str = Field("droneseg", description="Project at W&B.")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online with a key, offline without.")
    group: str | None = Field(None, description="What the run belongs to, such as a sweep.")
    images: bool = Field(False, description="Send validation overlays, and so photographs.")


class TrainingConfig(BaseModel):
    """One training, whole. The trainer's own part is `trainer`; in YAML its keys stand beside the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    configuration: str = Field(pattern=r"^2d[A-Za-z0-9_-]*$", description="Name of the plan; begins with 2d.")
    patch_size: tuple[int, int] | None = Field(None, description="Height and width of a patch; null: nnU-Net's own.")
    batch_size: int | None = Field(None, ge=2, description="Patches of an iteration; null: nnU-Net's own.")
    base_features: int | None = Field(None, ge=4, description="Channels at full resolution, doubled at each below.")
    max_features: int | None = Field(None, ge=4, description="Most channels at any resolution.")
    network: NetworkName = Field(
        "plain",
        description="plain: nnU-Net's U-Net; batchnorm: with batch normalisation; the others: a U-Net on an encoder "
        "trained on ImageNet.",
    )
    convs_per_stage: int = Field(
        CONVS_PER_STAGE, ge=1, description="Convolutions at each resolution, down and up; nnU-Net's own are 2."
    )
    downscale: int = Field(
        DOWNSCALE,
        ge=1,
        le=4,
        description="By how much a pretrained network sees the photograph smaller, inside itself.",
    )
    decoder_levels: int = Field(
        DECODER_LEVELS,
        ge=2,
        le=DECODER_LEVELS,
        description="How often its decoder doubles the resolution; fewer are faster and less sharp.",
    )
    fold: int = Field(0, ge=0, description="Fold of splits_final.json; 0 is that of a split file.")
    resume: bool = Field(False, description="Go on from the newest checkpoint of the same configuration and fold.")
    overwrite: bool = Field(False, description="Set an older training of the same name aside and start anew.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, mps, cpu: the first there.")
    num_gpus: int = Field(1, ge=1, description="Above 1: nnU-Net's DDP.")
    workers: int | None = Field(
        None, ge=0, description="Processes that load and augment; null: by the machine, 0: in the training process."
    )
    bf16: bool | Literal["auto"] = Field(
        "auto", description="Compute in bfloat16 on a CPU; auto: where the CPU does so in hardware."
    )
    tracking: Annotated[NoTracking | WandbTracking, Field(discriminator="name")] = NoTracking()
    trainer: TrainerSettings

    @model_validator(mode="before")
    @classmethod
    def _gather_trainer(cls, values: Any) -> Any:
        """Move the trainer's keys under `trainer`."""
        if not isinstance(values, dict) or "trainer" in values:
            return values
        names = set(TrainerSettings.model_fields) - _DECIDED
        inner = {key: value for key, value in values.items() if key in names}
        return {key: value for key, value in values.items() if key not in names} | {"trainer": inner}

    @model_validator(mode="after")
    def _exclude_contradictions(self) -> "TrainingConfig":
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other")
        if self.network in ("plain", "batchnorm"):
            given = (self.trainer.encoder_rate, self.downscale, self.decoder_levels)
            if given != (1, DOWNSCALE, DECODER_LEVELS):
                raise ValueError(
                    f"network={self.network} has no pretrained encoder, so leave encoder_rate=1 downscale={DOWNSCALE} "
                    f"decoder_levels={DECODER_LEVELS}"
                )
        return self


def config_folder() -> Path:
    """Return the folder of the YAML files that come with droneseg."""
    return _IN_PACKAGE if _IN_PACKAGE.is_dir() else _IN_CHECKOUT


def preset_names() -> list[str]:
    """Return the presets that come with droneseg."""
    return sorted(file.stem for file in (config_folder() / "preset").glob("*.yaml"))


def training_keys() -> dict[str, str]:
    """Return the keys that may be overridden, with what each means; `preset` and `tracking` choose files."""
    fields = {**TrainerSettings.model_fields, **TrainingConfig.model_fields}
    keys = {name: field.description or "" for name, field in fields.items()}
    for not_a_key in ("trainer", "tracked", "tracking"):
        del keys[not_a_key]
    tracked = {f"tracking.{name}": field.description or "" for name, field in WandbTracking.model_fields.items()}
    del tracked["tracking.name"]
    return keys | tracked


def load_config(overrides: Sequence[str], *, folder: Path | None = None) -> TrainingConfig:
    """Compose the presets with overrides such as `preset=cpu`, `max_minutes=30`, `tracking=wandb`.

    Args:
        overrides: In Hydra's form, key=value.
        folder: Of the YAML files; by default the ones that come with droneseg.

    Raises:
        ConfigurationError: If a key or value is wrong; all wrong values are listed.
        MissingDependencyError: If Hydra is not installed.
    """
    try:
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise MissingDependencyError("hydra-core", "train") from error
    folder = folder or config_folder()
    problems = [problem for override in overrides if (problem := _why_wrong(override, folder))]
    if problems:
        raise ConfigurationError("\n".join(["The training configuration is wrong:", *problems]))
    try:
        with initialize_config_dir(config_dir=str(folder.resolve()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("train", overrides=_for_hydra(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(f"{error}\nThe keys are listed by `droneseg train --show`.") from error
    try:
        return TrainingConfig.model_validate(composed)
    except ValidationError as error:
        lines = [_line(item) for item in error.errors()]
        raise ConfigurationError("\n".join(["The training configuration is wrong:", *lines])) from error


def _for_hydra(overrides: Sequence[str]) -> list[str]:
    """Return overrides for Hydra, which does not put a list in the place of a mapping: first that goes."""
    written: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        replaces = key == "class_weights" and value.startswith("[")
        written += [f"{key}=null", override] if replaces else [override]
    return written


def _why_wrong(override: str, folder: Path) -> str:
    """Say what is wrong with the form of an override, its key, or the group it chooses; "" if nothing is."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"  - {override}: write key=value"
    groups = {
        group.name: sorted(file.stem for file in group.glob("*.yaml")) for group in folder.iterdir() if group.is_dir()
    }
    if key in groups:
        return "" if value in groups[key] else f"  - {override}: choose one of {', '.join(groups[key])}"
    keys = training_keys()
    if key in keys:
        return ""
    near = get_close_matches(key, [*keys, *groups], n=1)
    return f"  - {override}: there is no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _line(problem: ErrorDetails) -> str:
    if not problem["loc"]:  # of the whole, which is too long to be shown
        return f"  - {problem['msg'].removeprefix('Value error, ')}"
    return f"  - {_key(problem['loc'])}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part != "trainer") or "configuration"
