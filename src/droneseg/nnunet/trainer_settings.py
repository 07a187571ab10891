"""Settings of the trainer, passed through a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from droneseg.core.classes import CLASSES, NAMES
from droneseg.core.errors import ConfigurationError

# Set by us for the processes nnU-Net starts; not a user's setting, so it is not in core.settings.
_VARIABLE = "DRONESEG_TRAINER_SETTINGS"


def _some(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not any(weights):
        raise ValueError("at least one weight must be above 0")
    return weights


def _by_id(weights: Any) -> Any:
    """Return weights that were given by the names of classes as a list by id; what is not named weighs 1."""
    if not isinstance(weights, Mapping):
        return weights
    if unknown := [str(name) for name in weights if name not in NAMES]:
        raise ValueError(f"no class is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return tuple(weights.get(name, 1) for name in NAMES)


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ClassWeights = Annotated[
    tuple[Weight, ...],
    Field(min_length=len(CLASSES), max_length=len(CLASSES)),
    AfterValidator(_some),
    BeforeValidator(_by_id),
]


class TrainerSettings(BaseModel):
    """Everything the trainer takes beyond nnU-Net's plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(1000, ge=1, description="Most epochs to train.")
    iterations: int = Field(250, ge=1, description="Training iterations per epoch.")
    val_iterations: int = Field(50, ge=1, description="Validation iterations per epoch.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd as in nnU-Net, or adamw for short trainings.")
    learning_rate: float = Field(0.01, gt=0, description="Learning rate at the start; falls by nnU-Net's polynomial.")
    encoder_rate: float = Field(
        1.0, gt=0, le=1, description="Learning rate of a pretrained encoder, as a share of the decoder's."
    )
    weight_decay: float = Field(3e-5, ge=0, description="Pull of the weights towards 0.")
    deep_supervision: bool = Field(True, description="Train coarser outputs, too, as nnU-Net does.")
    augmentation: Literal["full", "flight", "light"] = Field(
        "full",
        description="full as in nnU-Net; flight: turned, scaled, mirrored, other light; light: no turns, no scales.",
    )
    crop_size: tuple[int, int] | None = Field(
        None,
        description="Height and width of what is trained on, if less than the plan's patch, which predictions take.",
    )
    averaged_weights: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="What the average of the weights keeps at each iteration; the average is what is saved.",
    )
    class_weights: ClassWeights | None = Field(
        None,
        description="Weight of each true class in the cross entropy: what it costs to miss one. A list by id, or "
        "`{obstacles: 2.5, water: 1.5}`, where others weigh 1; null: all the same.",
    )
    oversample: float = Field(
        0.33, ge=0, le=1, description="Share of the patches that lie on a class chosen by chance, as in nnU-Net."
    )
    repeat_rare: bool = Field(False, description="Draw photographs with a class few others have more often.")
    save_every: int = Field(1, ge=1, description="Epochs between checkpoints; a crash costs at most so many.")
    patience: int | None = Field(None, ge=1, description="Stop after so many epochs without a better smoothed Dice.")
    max_minutes: float | None = Field(
        None, gt=0, description="Training time over all sessions; then finish and validate."
    )
    bf16: bool = Field(False, description="Compute the network in bfloat16 on a CPU.")
    channels_last: bool = Field(False, description="Keep activations in channels-last order.")
    validation: Literal["full", "fast", "none"] = Field(
        "full", description="At the end: nnU-Net's own with mirroring, one pass without, or none."
    )
    seed: int = Field(0, ge=0, description="Of everything drawn by chance.")
    profile: bool = Field(False, description="Watch a few iterations: where does the time go?")
    tracked: bool = Field(False, description="Whether W&B is told; decided with `tracking`.")


def write_settings_file(path: Path) -> None:
    """Name the file that trainers in this process and the ones it starts shall read."""
    os.environ[_VARIABLE] = str(path)


def read_settings_file() -> TrainerSettings:
    """Read the settings handed over.

    Raises:
        ConfigurationError: If none were, as when nnU-Net's own command starts this trainer.
    """
    path = os.environ.get(_VARIABLE)
    if not path:
        raise ConfigurationError("This trainer takes its settings from `droneseg train`; start it with that command.")
    return TrainerSettings.model_validate_json(Path(path).read_text(encoding="utf-8"))
