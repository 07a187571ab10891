"""Ground resolution of an image: from arguments, EXIF and XMP to metres per pixel, and warnings about its scale."""

from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

GroundSource: TypeAlias = Literal["argument", "georeference", "laser", "height", "unknown"]
"""Origin of a ground resolution."""


class WarningCode(StrEnum):
    """Stable codes of the warnings of a prediction."""

    UNKNOWN_SCALE = "unknown_scale"
    HEIGHT_ABOVE_TAKEOFF = "height_above_takeoff"
    FINER_THAN_TRAINED = "finer_than_trained"
    COARSER_THAN_TRAINED = "coarser_than_trained"
    OBLIQUE = "oblique"
    UNLIKE_TRAINING = "unlike_training"


WARNING_MESSAGES: dict[WarningCode, str] = {
    WarningCode.UNKNOWN_SCALE: "The ground resolution is unknown, so nothing is given in metres and the scale may not "
    "suit the model. Pass the metres per pixel or the height above ground.",
    WarningCode.HEIGHT_ABOVE_TAKEOFF: "The height is relative to the take-off point, not to the ground below; metres "
    "can be off by a quarter.",
    WarningCode.FINER_THAN_TRAINED: "The image shows more detail than the model was trained on.",
    WarningCode.COARSER_THAN_TRAINED: "The image shows less detail than the model was trained on; small objects can be "
    "missed.",
    WarningCode.OBLIQUE: "The camera does not look straight down, so nothing is given in metres.",
    WarningCode.UNLIKE_TRAINING: "The image is unlike the images the model was trained on; do not rely on the result.",
}


class Ground(BaseModel):
    """Ground resolution of an image, and how the image was resampled for the model.

    Attributes:
        gsd_m: Ground sample distance in metres per pixel of the image; None if it is not known.
        gsd_error: Relative error of `gsd_m`: 0 for an argument or a georeference, 0.03 for a laser, 0.1 for a height
            above ground, 0.25 for a height above take-off; None if `gsd_m` is None.
        source: Origin of `gsd_m`.
        height_m: Height of the camera above ground in metres, if known.
        pitch_deg: Pitch of the camera in degrees, -90 for straight down, if known.
        model_gsd_m: Ground resolution that the model was trained at, in metres per pixel; None if not known.
        scale: Factor by which the image was resampled for the model; 1 if it was not.
        warnings: Codes of all warnings about the prediction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    gsd_m: float | None = Field(None, gt=0, description="Metres per pixel of the image; null if not known.")
    gsd_error: float | None = Field(None, ge=0, description="Relative error of gsd_m; null if gsd_m is null.")
    source: GroundSource = Field("unknown", description="Origin of the ground resolution.")
    height_m: float | None = Field(None, gt=0, description="Height of the camera above ground in metres, if known.")
    pitch_deg: float | None = Field(None, description="Camera pitch in degrees, -90 is straight down, if known.")
    model_gsd_m: float | None = Field(None, gt=0, description="Metres per pixel that the model was trained at.")
    scale: float = Field(1.0, gt=0, description="Factor by which the image was resampled for the model.")
    warnings: tuple[WarningCode, ...] = Field((), description="Codes of all warnings about the prediction.")


class PredictionWarning(BaseModel):
    """Warning about a prediction."""

    model_config = ConfigDict(frozen=True)

    code: WarningCode = Field(description="Stable, machine-readable code.")
    message: str = Field(description="Explanation in words.")


UNKNOWN_GROUND = Ground()
"""Ground of an image without any information about its scale."""


def explain(codes: tuple[WarningCode, ...]) -> tuple[PredictionWarning, ...]:
    """Return the warnings with these codes, in words."""
    return tuple(PredictionWarning(code=code, message=WARNING_MESSAGES[code]) for code in codes)
