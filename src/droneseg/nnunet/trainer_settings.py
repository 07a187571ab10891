"""Settings of the trainer, passed through a file in the folder of the fold.

nnU-Net creates trainers by class name with a fixed signature, so the settings cannot be arguments.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from droneseg.core.classes import BACKGROUND_ID, ClassTable, Role
from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_text
from droneseg.nnunet.paths import SETTINGS_NAME


def _require_positive(weights: dict[str, float] | tuple[float, ...]) -> dict[str, float] | tuple[float, ...]:
    values = weights.values() if isinstance(weights, dict) else weights
    if not any(values):
        raise ValueError("at least one weight must be above 0")
    return weights


def weights_by_id(
    weights: Mapping[str, float] | Sequence[float] | None, classes: ClassTable, *, has_background: bool
) -> tuple[float, ...] | None:
    """Return class weights by class id.

    Args:
        weights: Weights by class id, by class name or by role; a name precedes its role. Other classes have weight 1,
            and the background 0 if no pixel is labelled as background. None stays None.
        classes: Class table of the dataset.
        has_background: Whether pixels are labelled as background.

    Raises:
        ConfigurationError: If a name is neither a class nor a role, or the number of weights is wrong.
    """
    if weights is None:
        return None
    if problem := problem_of_weights(weights, classes):
        raise ConfigurationError(problem)
    if not isinstance(weights, Mapping):
        return tuple(weights)
    unnamed = {BACKGROUND_ID: 1.0 if has_background else 0.0}
    return tuple(
        weights.get(entry.name, weights.get(entry.role or "", unnamed.get(entry.id, 1.0))) for entry in classes
    )


def problem_of_weights(weights: Mapping[str, float] | Sequence[float], classes: ClassTable) -> str | None:
    """Return why class weights do not fit the classes of a dataset, with all unknown names; None if they fit."""
    if not isinstance(weights, Mapping):
        if len(weights) == len(classes):
            return None
        return f"class_weights has {len(weights)} weights for {len(classes)} classes."
    known = (*classes.names, *Role)
    unknown = []
    for name in weights:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            unknown.append(f"{name} (did you mean {near[0]}?)" if near else name)
    if not unknown:
        return None
    return (
        f"class_weights: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} neither a class nor a role; the "
        f"classes are {', '.join(classes.names)}, the roles {', '.join(Role)}."
    )


Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=16)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BY_NAME, BY_ID = "by name", "by id"
"""Parts of the locations of validation errors, which tell the two forms of class weights apart."""
ClassWeights = Annotated[
    Annotated[dict[str, Weight], Tag(BY_NAME)] | Annotated[tuple[Weight, ...], Tag(BY_ID)],
    Discriminator(lambda weights: BY_NAME if isinstance(weights, Mapping) else BY_ID),
    AfterValidator(_require_positive),
]


_OF_CROP_LOADER = (
    "scale_sampling", "model_gsd", "whole_share", "rotation_share", "generated_share", "exposure_share", "gamma_share",
    "contrast_share", "cast_share", "haze_share", "shadow_share", "dark_share", "blur_share", "fine_weight",
)  # fmt: skip


class TrainerSettings(BaseModel):
    """Settings of the trainer beyond nnU-Net's plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(1000, ge=1, description="Maximum number of epochs.")
    iterations: int = Field(250, ge=1, description="Training iterations per epoch.")
    val_iterations: int = Field(50, ge=1, description="Validation iterations per epoch.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd: nnU-Net's default; adamw: for short runs.")
    learning_rate: float = Field(
        0.01, gt=0, description="Initial learning rate; decays by nnU-Net's polynomial schedule."
    )
    encoder_rate: float = Field(
        1.0, gt=0, le=1, description="Learning rate of a pretrained encoder, relative to the decoder's."
    )
    weight_decay: float = Field(3e-5, ge=0, description="Weight decay of the optimiser.")
    deep_supervision: bool = Field(True, description="Train auxiliary outputs at lower resolutions, as nnU-Net does.")
    augmentation: Literal["full", "flight", "light"] = Field(
        "full",
        description="full: nnU-Net's default; flight: rotation, scaling, mirroring, brightness and contrast; "
        "light: mirroring, brightness and contrast.",
    )
    crop_size: tuple[int, int] | None = Field(
        None,
        description="Height and width of training crops, at most the patch size, which prediction uses.",
    )
    crop_scales: tuple[Scale, Scale] | None = Field(
        None,
        description="Smallest and largest scale of training crops, relative to the model's resolution: at scale 2, "
        "objects are twice as large. null: crops at the resolution of the photographs, by nnU-Net's loader.",
    )
    scale_sampling: Literal["uniform", "triangular"] = Field(
        "uniform",
        description="Distribution of the logarithm of the scale; triangular: scales near 1 are more frequent. Needs "
        "`crop_scales`.",
    )
    model_gsd: float | None = Field(
        None,
        gt=0,
        description="Ground resolution of the model in metres per pixel, at which photographs of known ground "
        "resolution have scale 1. null: scale 1 is the resolution of each photograph. Needs `crop_scales`.",
    )
    whole_share: Share = Field(0, description="Fraction of crops that show a whole photograph. Needs `crop_scales`.")
    rotation_share: Share = Field(
        0, description="Fraction of crops rotated by any angle, in addition to quarter turns. Needs `crop_scales`."
    )
    generated_share: Share | None = Field(
        None,
        description="Fraction of crops from generated photographs; null: their share of all photographs. "
        "Needs `crop_scales`.",
    )
    exposure_share: Share = Field(
        0, description="Fraction of crops with an exposure of 0.25 to 2 times the original. Needs `crop_scales`."
    )
    gamma_share: Share = Field(0, description="Fraction of crops with a gamma of 0.5 to 2. Needs `crop_scales`.")
    contrast_share: Share = Field(
        0, description="Fraction of crops with 0.6 to 1.5 times the contrast. Needs `crop_scales`."
    )
    cast_share: Share = Field(
        0, description="Fraction of crops with a colour cast: each colour 0.8 to 1.25 times. Needs `crop_scales`."
    )
    haze_share: Share = Field(0, description="Fraction of crops with haze. Needs `crop_scales`.")
    shadow_share: Share = Field(0, description="Fraction of crops with shadows in random regions. Needs `crop_scales`.")
    dark_share: Share = Field(
        0, description="Fraction of crops at 0.1 to 0.35 of the exposure, with noise. Needs `crop_scales`."
    )
    blur_share: Share = Field(
        0, description="Fraction of crops with blur, noise or JPEG artefacts. Needs `crop_scales`."
    )
    fine_weight: float = Field(
        0,
        ge=0,
        description="Weight of the cross entropy of fine classes, which only a pretrained network distinguishes, and "
        "only while it is trained. Needs `crop_scales` and a dataset with fine classes.",
    )
    frozen_stages: int = Field(
        0,
        ge=0,
        le=7,
        description="Number of first stages of a pretrained encoder to exclude from training, with its stem; 0: none.",
    )
    weights: str | None = Field(
        None,
        validation_alias=AliasChoices("weights", "init_from"),  # trainings of earlier versions recorded init_from
        description="File with initial weights of a network with the same encoder: a checkpoint (.pth) of nnU-Net or "
        "droneseg, a model that nnU-Net exported (.zip), or the network of a bundle (`model.onnx`). The output layers "
        "of a model with other classes are left out.",
    )
    teacher: str | None = Field(
        None,
        description="Checkpoint (.pth) of a trained model with the same classes, whose probabilities the network also "
        "learns (knowledge distillation). Pixels without a label learn only from it. Not with `deep_supervision`.",
    )
    teacher_weight: float = Field(
        1.0, gt=0, description="Weight of the teacher's probabilities in the loss; that of the labels is 1."
    )
    averaged_weights: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of the exponential moving average of the weights; checkpoints contain the average. "
        "null: no averaging.",
    )
    class_weights: ClassWeights | None = Field(
        None,
        description="Cross-entropy weight of each true class: a list by class id, or a mapping by name or role such as "
        "`{obstacle: 2.5, water: 1.5}`. Other classes have weight 1, and the background 0 if no pixel is labelled as "
        "background. null: equal weights.",
    )
    oversample: float = Field(
        0.33, ge=0, le=1, description="Fraction of patches centred on a random foreground class, as in nnU-Net."
    )
    repeat_rare: bool = Field(False, description="Sample images that contain rare classes more often.")
    save_every: int = Field(1, ge=1, description="Epochs between checkpoints. A crash loses at most this many epochs.")
    patience: int | None = Field(None, ge=1, description="Stop after this many epochs without a better smoothed Dice.")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Time budget in minutes, over all sessions of a resumed run; the last epoch is shortened to fit.",
    )
    bf16: bool = Field(False, description="Compute the network in bfloat16 on the CPU.")
    channels_last: bool = Field(False, description="Store weights and activations in channels-last memory format.")
    validation: Literal["full", "fast", "none"] = Field(
        "full", description="Final validation. full: nnU-Net's, with mirroring; fast: without mirroring; none."
    )
    seed: int = Field(0, ge=0, description="Random seed.")
    profile: bool = Field(False, description="Profile a few iterations and write a trace and a table.")
    tracked: bool = Field(False, description="Whether the run is logged to W&B; set by `tracking`.")

    @model_validator(mode="after")
    def _require_consistent_teacher(self) -> Self:
        """Raise ValueError if a teacher is combined with deep supervision, or has a weight but does not exist."""
        if self.teacher and self.deep_supervision:
            raise ValueError("teacher: set deep_supervision=false, because a teacher has a single output")
        if not self.teacher and self.teacher_weight != type(self).model_fields["teacher_weight"].default:
            raise ValueError("teacher_weight: also set teacher, a checkpoint of a trained model")
        return self

    @model_validator(mode="after")
    def _require_crop_scales(self) -> Self:
        """Raise ValueError if keys that need `crop_scales` are set without it, or if its order is wrong."""
        if self.crop_scales is not None:
            if self.crop_scales[0] > self.crop_scales[1]:
                raise ValueError(f"crop_scales={list(self.crop_scales)}: the smallest scale must be first")
            return self
        names = [name for name in _OF_CROP_LOADER if getattr(self, name) != type(self).model_fields[name].default]
        if names:
            raise ValueError(f"{', '.join(names)}: also set crop_scales, for example crop_scales=[1,1]")
        return self


def write_settings_file(settings: TrainerSettings, fold_folder: Path) -> None:
    """Write the settings to the folder of a fold, in which the trainer of the fold finds them."""
    fold_folder.mkdir(parents=True, exist_ok=True)
    write_text(fold_folder / SETTINGS_NAME, settings.model_dump_json(indent=2) + "\n")


def read_settings_file(fold_folder: Path) -> TrainerSettings | None:
    """Read the settings of a fold; None if it has none, because it was not trained by droneseg before.

    Raises:
        ConfigurationError: If the file is not valid.
    """
    file = fold_folder / SETTINGS_NAME
    if not file.is_file():
        return None
    try:
        return TrainerSettings.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ConfigurationError(f"{file} is not valid: {error}. Delete it to train with default settings.") from error
