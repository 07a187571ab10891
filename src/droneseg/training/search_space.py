"""Search space of a sweep; W&B sweep file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from droneseg.core.errors import ConfigurationError
from droneseg.training.config import config_folder, load_config

SWEEP_NAME = "sweep.yaml"
Value: TypeAlias = float | int | str | bool

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Range(BaseModel):
    """Numbers between two ends, both included; whole ones if the ends and the step are.

    Attributes:
        low: The lower end.
        high: The upper end.
        log: Whether to draw evenly in the logarithm.
        step: Only multiples of it above the lower end.
    """

    model_config = _STRICT
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step or 1, int)


class Choices(BaseModel):
    """One of several values."""

    model_config = _STRICT
    choices: Annotated[list[Value], Field(min_length=2)]


def _kind(part: Any) -> str:
    return "choices" if isinstance(part, Choices) or (isinstance(part, dict) and "choices" in part) else "range"


Parameter = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind)]


class Pruning(BaseModel):
    """When a trial is ended early: if its running Dice is below the median of the others at the same epoch."""

    model_config = _STRICT
    startup_trials: int = Field(4, ge=1, description="Trials that are never ended early.")
    warmup_epochs: int = Field(3, ge=0, description="Epochs of every trial that are not judged.")


class SweepConfig(BaseModel):
    """What a sweep tries."""

    model_config = _STRICT
    train: list[str] = []
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    random_trials: int = Field(4, ge=1, description="Trials drawn evenly, before those drawn near the good ones.")
    pruning: Pruning = Pruning()


def load_sweep(path: Path | None, overrides: Sequence[str]) -> SweepConfig:
    """Read a sweep, add overrides to what all trials have in common, and try both ends of its space.

    Args:
        path: A YAML file; None for the one that comes with droneseg.
        overrides: key=value, as for `droneseg train`; they go before the file's.

    Raises:
        ConfigurationError: If the file, an override or an end of the space is wrong.
    """
    path = path or config_folder() / SWEEP_NAME
    try:
        config = SweepConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigurationError("\n".join([f"{path} is wrong:", *lines])) from error
    given = {override.partition("=")[0] for override in overrides}
    if searched := sorted(given & set(config.space)):
        raise ConfigurationError(f"{', '.join(searched)} is what the sweep searches for: leave it out of the command.")
    common = [*(entry for entry in config.train if entry.partition("=")[0] not in given), *overrides]
    for end in (first_end, last_end):
        load_config([*common, *as_overrides({key: end(value) for key, value in config.space.items()})])
    return config.model_copy(update={"train": common})


def first_end(part: Range | Choices) -> Value:
    """Return the lowest value, or the first."""
    return part.low if isinstance(part, Range) else part.choices[0]


def last_end(part: Range | Choices) -> Value:
    """Return the highest value, or the last."""
    return part.high if isinstance(part, Range) else part.choices[-1]


def as_overrides(values: Mapping[str, Value]) -> list[str]:
    """Return values as `droneseg train` takes them."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def own_values(config: SweepConfig) -> dict[str, Value] | None:
    """Return what the preset itself has for what is searched; None if some of it lies outside the space."""
    whole = load_config(config.train)
    values: dict[str, Any] = whole.model_dump(mode="json", exclude={"trainer"}) | whole.trainer.model_dump(mode="json")
    own = {key: values[key] for key in config.space}
    return own if all(_holds(part, own[key]) for key, part in config.space.items()) else None


def _holds(part: Range | Choices, value: Any) -> bool:
    if isinstance(part, Choices):
        return value in part.choices
    if not isinstance(value, int | float) or not part.low <= value <= part.high:
        return False
    return part.step is None or abs((value - part.low) / part.step % 1) < 1e-9


def wandb_sweep(config: SweepConfig) -> dict[str, Any]:
    """Return the same search as a sweep of W&B: `wandb sweep FILE`, then `wandb agent ID` on each machine."""
    return {
        "method": "bayes",
        "metric": {"name": "dice/smoothed", "goal": "maximize"},
        "early_terminate": {"type": "hyperband", "min_iter": max(1, config.pruning.warmup_epochs)},
        "parameters": {key: _wandb_parameter(part) for key, part in config.space.items()},
        "command": [
            "droneseg", "train", *config.train, "tracking=wandb", "configuration=2d_wandb_sweep", "overwrite=true",
            "${args_no_hyphens}",
        ],
    }  # fmt: skip


def _wandb_parameter(part: Range | Choices) -> dict[str, Any]:
    if isinstance(part, Choices):
        return {"values": part.choices}
    ends = {"min": part.low, "max": part.high}
    if part.log:
        return {"distribution": "log_uniform_values", **ends}
    if part.step is not None:
        return {"distribution": "q_uniform", "q": part.step, **ends}
    return {"distribution": "int_uniform" if part.whole else "uniform", **ends}
