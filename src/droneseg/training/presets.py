"""The configuration of a training: presets in YAML, composed by Hydra, overridden by key=value, validated."""

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
    project: str = "droneseg"
    mode: Literal["auto", "online", "offline"] = "auto"
    group: str | None = Field(None, description="What the run belongs to, such as a sweep.")
    images: bool = Field(False, description="Send validation overlays, and so photographs.")


class TrainingConfig(BaseModel):
    """One training, whole. The trainer's own part is `trainer`; in YAML its keys stand beside the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    configuration: str = Field(pattern=r"^2d[A-Za-z0-9_-]*$", description="Name in nnU-Net's plans; begins with 2d.")
    patch_size: tuple[int, int] | None = None
    batch_size: int | None = Field(None, ge=2)
    base_features: int | None = Field(None, ge=4)
    max_features: int | None = Field(None, ge=4)
    network: NetworkName = "plain"
    convs_per_stage: int = Field(CONVS_PER_STAGE, ge=1)
    downscale: int = Field(DOWNSCALE, ge=1, le=4)
    decoder_levels: int = Field(DECODER_LEVELS, ge=2, le=DECODER_LEVELS)
    fold: int = Field(0, ge=0)
    resume: bool = False
    overwrite: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    num_gpus: int = Field(1, ge=1)
    workers: int | None = Field(None, ge=0)
    bf16: bool | Literal["auto"] = "auto"
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
            composed = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(f"{error}\nThe keys are listed by `droneseg train --show`.") from error
    try:
        return TrainingConfig.model_validate(composed)
    except ValidationError as error:
        lines = [_line(item) for item in error.errors()]
        raise ConfigurationError("\n".join(["The training configuration is wrong:", *lines])) from error


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
    keys = {*TrainingConfig.model_fields, *TrainerSettings.model_fields} - {"trainer", "tracked", *groups}
    keys |= {f"tracking.{name}" for name in WandbTracking.model_fields if name != "name"}
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
