"""Search space of a sweep, in YAML and in W&B's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from droneseg.core.errors import ConfigurationError
from droneseg.training.config import config_folder, load_config

SWEEP_NAME = "sweep.yaml"
Value: TypeAlias = float | int | str | bool

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Range(BaseModel):
    """Range of numbers; integers if both bounds and the step are integers.

    Attributes:
        low: Lower bound, included.
        high: Upper bound, included.
        log: Whether to sample uniformly in the logarithm.
        step: Distance between the sampled values; None samples any value in the range.
    """

    model_config = _STRICT
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _require_valid_bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log=true requires low above 0 and no step")
        return self

    @property
    def is_integer(self) -> bool:
        """Whether only integers are sampled."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step or 1, int)


class Choices(BaseModel):
    """List of values to choose from."""

    model_config = _STRICT
    choices: Annotated[list[Value], Field(min_length=2)]


def _kind(parameter: Any) -> str:
    return (
        "choices"
        if isinstance(parameter, Choices) or (isinstance(parameter, dict) and "choices" in parameter)
        else "range"
    )


Parameter = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind)]


class Pruning(BaseModel):
    """Median pruning: stop a trial whose smoothed Dice is below the median of the others at the same epoch."""

    model_config = _STRICT
    startup_trials: int = Field(4, ge=1, description="Trials that are never pruned.")
    warmup_epochs: int = Field(3, ge=0, description="Epochs of each trial before pruning starts.")


class SweepConfig(BaseModel):
    """Configuration of a sweep.

    Attributes:
        train: Overrides shared by all trials.
        space: Search space by training key.
        random_trials: Random trials before the TPE sampler starts.
        pruning: Rule for stopping weak trials.
    """

    model_config = _STRICT
    train: list[str] = []
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    random_trials: int = Field(4, ge=1, description="Random trials before the TPE sampler starts.")
    pruning: Pruning = Pruning()


def load_sweep(path: Path | None, overrides: Sequence[str]) -> SweepConfig:
    """Read the configuration of a sweep, merge overrides, and validate the ends of the search space.

    Args:
        path: YAML file; None for the one installed with droneseg.
        overrides: Overrides shared by all trials, `key=value`; they take precedence over the file.

    Raises:
        ConfigurationError: If the file, an override or an end of the search space is invalid.
    """
    path = path or config_folder() / SWEEP_NAME
    try:
        config = SweepConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}. Check --config.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigurationError("\n".join([f"Invalid sweep configuration {path}:", *lines])) from error
    overridden = {override.partition("=")[0] for override in overrides}
    if searched := sorted(overridden & set(config.space)):
        raise ConfigurationError(
            f"The search space contains {', '.join(searched)}. Remove it from the command or from the search space."
        )
    shared = [*(entry for entry in config.train if entry.partition("=")[0] not in overridden), *overrides]
    for end in (first_value, last_value):
        load_config([*shared, *as_overrides({key: end(parameter) for key, parameter in config.space.items()})])
    return config.model_copy(update={"train": shared})


def first_value(parameter: Range | Choices) -> Value:
    """Return the lower bound of a range, or the first of a list of choices."""
    return parameter.low if isinstance(parameter, Range) else parameter.choices[0]


def last_value(parameter: Range | Choices) -> Value:
    """Return the upper bound of a range, or the last of a list of choices."""
    return parameter.high if isinstance(parameter, Range) else parameter.choices[-1]


def as_overrides(values: Mapping[str, Value]) -> list[str]:
    """Return values as overrides for `droneseg train`."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def preset_values(config: SweepConfig) -> dict[str, Value] | None:
    """Return the preset's values of the searched keys, or None if one of them is outside the search space."""
    preset = load_config(config.train)
    keys: dict[str, Any] = preset.model_dump(mode="json", exclude={"trainer"}) | preset.trainer.model_dump(mode="json")
    values = {key: keys[key] for key in config.space}
    return values if all(_contains(parameter, values[key]) for key, parameter in config.space.items()) else None


def _contains(parameter: Range | Choices, value: Any) -> bool:
    if isinstance(parameter, Choices):
        return value in parameter.choices
    if not isinstance(value, int | float) or not parameter.low <= value <= parameter.high:
        return False
    return parameter.step is None or abs((value - parameter.low) / parameter.step % 1) < 1e-9


def wandb_sweep(config: SweepConfig) -> dict[str, Any]:
    """Return the sweep in W&B's format: run `wandb sweep FILE`, then `wandb agent ID` on each machine."""
    return {
        "method": "bayes",
        "metric": {"name": "dice/smoothed", "goal": "maximize"},
        "early_terminate": {"type": "hyperband", "min_iter": max(1, config.pruning.warmup_epochs)},
        "parameters": {key: _wandb_parameter(parameter) for key, parameter in config.space.items()},
        "command": [
            *("droneseg", "train", *config.train),
            *("tracking=wandb", "configuration=2d_wandb_sweep", "overwrite=true"),
            "${args_no_hyphens}",
        ],
    }


def _wandb_parameter(parameter: Range | Choices) -> dict[str, Any]:
    if isinstance(parameter, Choices):
        return {"values": parameter.choices}
    bounds = {"min": parameter.low, "max": parameter.high}
    if parameter.log:
        return {"distribution": "log_uniform_values", **bounds}
    if parameter.step is not None:
        return {"distribution": "q_uniform", "q": parameter.step, **bounds}
    return {"distribution": "int_uniform" if parameter.is_integer else "uniform", **bounds}
