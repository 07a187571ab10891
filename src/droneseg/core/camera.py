"""Ground resolution of an image: from arguments, EXIF and XMP to metres per pixel, and warnings about its scale."""

import math
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from droneseg.core.errors import ConfigurationError

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


def check_scale(gsd_m: float | None, height_m: float | None) -> None:
    """Check a ground resolution or a height that a user gives.

    Args:
        gsd_m: Metres per pixel of the image.
        height_m: Height of the camera above ground in metres.

    Raises:
        ConfigurationError: If both are given, or a value is not a finite number above 0.
    """
    if gsd_m is not None and height_m is not None:
        raise ConfigurationError(
            f"Both metres per pixel ({gsd_m:g}) and a height ({height_m:g} m) are given. Pass one of them."
        )
    for name, value in (("metres per pixel", gsd_m), ("height above ground in metres", height_m)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"The {name} must be a number above 0, not {value:g}. Pass it in metres.")


def given_ground(gsd_m: float | None) -> Ground:
    """Return the ground of an image without a file, for example an array, from metres per pixel that a user gives.

    Raises:
        ConfigurationError: If the value is not a finite number above 0.
    """
    check_scale(gsd_m, None)
    if gsd_m is None:
        return UNKNOWN_GROUND
    return Ground(gsd_m=gsd_m, gsd_error=0.0, source="argument")


def read_ground(
    data: bytes,  # noqa: ARG001  # read from the next commit on
    *,
    gsd_m: float | None = None,
    height_m: float | None = None,
) -> Ground:
    """Read the ground resolution of an image file from its metadata; no pixel is decoded.

    Args:
        data: Content of an image file.
        gsd_m: Metres per pixel that the user gives; replaces what the metadata says.
        height_m: Height above ground in metres that the user gives; replaces the height in the metadata.

    Returns:
        Ground of the upright image. Missing, malformed or hostile metadata gives an unknown ground, never an error.

    Raises:
        ConfigurationError: If both `gsd_m` and `height_m` are given, or a value is not a finite number above 0.
    """
    check_scale(gsd_m, height_m)
    return given_ground(gsd_m)
