"""Ground resolution of an image: from arguments, EXIF, XMP and GeoTIFF tags to metres per pixel, and warnings about it.

At height H above ground and focal length f in pixels, an image has H / f metres per pixel straight below the camera.
A height above sea level, or a camera that does not look straight down, gives no metres.
"""

import math
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from numbers import Real
from typing import Literal, NamedTuple, TypeAlias
from xml.etree import ElementTree as ET

from PIL import Image as pillow
from PIL.TiffImagePlugin import TiffImageFile
from pydantic import BaseModel, ConfigDict, Field

from droneseg.core.errors import ConfigurationError
from droneseg.core.images import FORMATS

GroundSource: TypeAlias = Literal["argument", "georeference", "laser", "height", "unknown"]
"""Origin of a ground resolution."""


class WarningCode(StrEnum):
    """Stable codes of the warnings of a prediction."""

    UNKNOWN_SCALE = "unknown_scale"
    HEIGHT_ABOVE_TAKEOFF = "height_above_takeoff"
    FINER_THAN_TRAINED = "finer_than_trained"
    COARSER_THAN_TRAINED = "coarser_than_trained"
    OBLIQUE = "oblique"
    UNKNOWN_PITCH = "unknown_pitch"
    UNKNOWN_CAMERA = "unknown_camera"
    UNLIKE_TRAINING = "unlike_training"


WARNING_MESSAGES: dict[WarningCode, str] = {
    WarningCode.UNKNOWN_SCALE: "The ground resolution of the image or of the model is unknown, so the scale may not "
    "suit the model. Pass the metres per pixel or the height above ground.",
    WarningCode.HEIGHT_ABOVE_TAKEOFF: "The height is relative to the take-off point, not to the ground below, so "
    "metres can be off by a quarter.",
    WarningCode.FINER_THAN_TRAINED: "The network sees a much smaller area at once than in the training images, so it "
    "lacks context.",
    WarningCode.COARSER_THAN_TRAINED: "The image shows less detail than the images the model was trained on, so small "
    "objects can be missed.",
    WarningCode.OBLIQUE: "The camera does not look straight down, so nothing is given in metres.",
    WarningCode.UNKNOWN_PITCH: "The metadata gives a height but no camera angle, so nothing is given in metres. If "
    "the camera looks straight down, pass the height above ground or the metres per pixel.",
    WarningCode.UNKNOWN_CAMERA: "The height is known, but the focal length is not, or the image was cropped, so "
    "nothing is given in metres. Pass the metres per pixel.",
    WarningCode.UNLIKE_TRAINING: "The image is unlike the images the model was trained on; do not rely on the result.",
}


class Ground(BaseModel):
    """Ground resolution of an image, and how the image was resampled for the model.

    Attributes:
        gsd_m: Ground sample distance in metres per pixel of the image; None if it is not known.
        gsd_error: Relative error of `gsd_m`: 0 for an argument or a georeference, 0.03 for a laser, 0.1 for a height
            above ground, 0.25 for a height above take-off, and at least 0.05 with the focal length of a 35 mm
            equivalent; None if `gsd_m` is None.
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


def explain(codes: tuple[WarningCode, ...], unlike_training: tuple[str, ...] = ()) -> tuple[PredictionWarning, ...]:
    """Return the warnings with these codes, in words.

    Args:
        codes: Codes of the warnings.
        unlike_training: How the image is unlike the training images, such as "darker".
    """
    messages = dict(WARNING_MESSAGES)
    if unlike_training:
        messages[WarningCode.UNLIKE_TRAINING] += f" It is {' and '.join(unlike_training)}."
    return tuple(PredictionWarning(code=code, message=messages[code]) for code in codes)


GSD_RANGE_M = (1e-6, 1e4)
"""Plausible metres per pixel."""
GIVEN_HEIGHT_RANGE_M = (1e-3, 1e5)
"""Heights above ground in metres that a user may give."""


def check_scale(gsd_m: float | None, height_m: float | None) -> None:
    """Check a ground resolution or a height that a user gives.

    Args:
        gsd_m: Metres per pixel of the image.
        height_m: Height of the camera above ground in metres.

    Raises:
        TypeError: If a value is not a number.
        ConfigurationError: If both are given, or a value is not a plausible number above 0.
    """
    for name, value in (("gsd_m", gsd_m), ("height_m", height_m)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} is {value!r} of type {type(value).__name__}. Pass a number in metres.")
    if gsd_m is not None and height_m is not None:
        raise ConfigurationError(
            f"Both metres per pixel ({gsd_m:g}) and a height above ground ({height_m:g} m) are given. Pass one of them."
        )
    for name, (low, high), value in (
        ("metres per pixel", GSD_RANGE_M, gsd_m),
        ("height above ground in metres", GIVEN_HEIGHT_RANGE_M, height_m),
    ):
        if value is not None and not low <= value <= high:
            raise ConfigurationError(
                f"The {name} must be above 0 ({low:g} to {high:g}), not {value:g}. Correct the value or leave it out."
            )


def given_ground(gsd_m: float | None) -> Ground:
    """Return the ground of an image without metadata, for example an array.

    Args:
        gsd_m: Metres per pixel that the user gives; None if they are not known.

    Raises:
        ConfigurationError: If the value is not a plausible number above 0.
    """
    check_scale(gsd_m, None)
    return UNKNOWN_GROUND if gsd_m is None else Ground(gsd_m=gsd_m, gsd_error=0.0, source="argument")


_MAX_OFF_NADIR_DEG = 20.0


def read_ground(data: bytes | pillow.Image, *, gsd_m: float | None = None, height_m: float | None = None) -> Ground:
    """Read the ground resolution of an image file from its metadata; no pixel is decoded.

    The first of these sources that gives metres is used: `gsd_m`, `height_m`, the georeference of a GeoTIFF, a laser
    range, a height above ground, a height above the take-off point. Heights need a focal length. If the camera looks
    more than 20 degrees off straight down, only a georeference gives metres; if its angle is unknown, only `gsd_m`,
    `height_m` and a georeference do. The GPS altitude is relative to sea level and never used.

    Args:
        data: Content of an image file, or an image opened with Pillow.
        gsd_m: Metres per pixel that the user gives.
        height_m: Height of the camera above ground in metres that the user gives.

    Returns:
        Ground of the upright image. Missing, malformed or hostile metadata leaves fields unknown and never raises.

    Raises:
        ConfigurationError: If both `gsd_m` and `height_m` are given, or a value is not a plausible number above 0.
    """
    check_scale(gsd_m, height_m)
    header = _read_header(data)
    pitch = _pitch_deg(header.tags)
    height = _measured_height(header.tags, pitch) if height_m is None else _Height(height_m, "argument", 0.0)
    focal = _focal_length(header.tags, header.size)
    known = Ground(height_m=_significant(height.metres) if height else None, pitch_deg=pitch)
    if header.gsd_m and gsd_m is None and (height_m is None or focal is None):
        return _with_gsd(known, _significant(header.gsd_m), 0.0, "georeference")
    if pitch is not None and abs(pitch + 90) > _MAX_OFF_NADIR_DEG:
        return _with_warning(known, WarningCode.OBLIQUE)
    if gsd_m is not None:
        return _with_gsd(known, gsd_m, 0.0, "argument")
    return _ground_from_height(known, height, focal)


def _ground_from_height(known: Ground, height: "_Height | None", focal: "_FocalLength | None") -> Ground:
    if height is None:
        return known
    if known.pitch_deg is None and height.source != "argument":
        return _with_warning(known, WarningCode.UNKNOWN_PITCH)
    if focal is None:
        return _with_warning(known, WarningCode.UNKNOWN_CAMERA)
    gsd_m = _significant(height.metres / focal.pixels)
    ground = _with_gsd(known, gsd_m, max(height.error, focal.error), height.source)
    return _with_warning(ground, WarningCode.HEIGHT_ABOVE_TAKEOFF) if height.above_takeoff else ground


def _with_gsd(known: Ground, gsd_m: float, gsd_error: float, source: GroundSource) -> Ground:
    return known.model_copy(update={"gsd_m": gsd_m, "gsd_error": gsd_error, "source": source})


def _with_warning(known: Ground, code: WarningCode) -> Ground:
    return known.model_copy(update={"warnings": (code,)})


def _significant(value: float) -> float:
    return float(f"{value:.5g}")


# Metadata

_Size: TypeAlias = tuple[float, float]
"""Longer and shorter side in pixels."""

_Tags: TypeAlias = dict[str, str | float]
"""EXIF and XMP by prefix and name, for example `exif:FocalLength`; members of a structure are `prefix:name/member`."""

_MAX_XMP_BYTES = 2**20
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}RDF"
# DJI and Autel use one namespace under different prefixes; URIs occur with and without the closing slash
_XMP_PREFIXES = {
    "www.dji.com/drone-dji/1.0": "dji",
    "pix4d.com/camera/1.0": "pix4d",
    "www.parrot.com/drone-parrot/1.0": "parrot",
    "www.skydio.com/drone-skydio/1.0": "skydio",
    "ns.adobe.com/exif/1.0": "exif",
    "ns.adobe.com/tiff/1.0": "tiff",
}
_EXIF_IFD = 0x8769
_EXIF_TAGS = {
    0x0110: "tiff:Model",
    0x920A: "exif:FocalLength",
    0xA002: "exif:PixelXDimension",
    0xA003: "exif:PixelYDimension",
    0xA20E: "exif:FocalPlaneXResolution",
    0xA210: "exif:FocalPlaneResolutionUnit",
    0xA404: "exif:DigitalZoomRatio",
    0xA405: "exif:FocalLengthIn35mmFilm",
}
# a sign is common, Parrot writes fractions, and a unit can follow
_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?:/(\d+))?\s*(?:m|deg)?", re.ASCII)
# what Pillow raises on corrupt files and tags; its warnings are errors where the caller makes them so
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError)
_HOSTILE = (AssertionError, RecursionError, struct.error, pillow.DecompressionBombError, Warning)


@dataclass(frozen=True)
class _Header:
    """Metadata of an image file.

    Attributes:
        size: Size of the image.
        tags: EXIF and XMP.
        gsd_m: Metres per pixel of a GeoTIFF whose reference system has metres.
    """

    size: _Size = (1.0, 1.0)
    tags: _Tags = field(default_factory=dict)
    gsd_m: float | None = None


def _read_header(data: bytes | pillow.Image) -> _Header:
    opened: pillow.Image | None = None
    with suppress(*_BROKEN, *_HOSTILE):
        opened = data if isinstance(data, pillow.Image) else pillow.open(BytesIO(data), formats=FORMATS)
    if opened is None:
        return _Header()
    tags: _Tags = {}
    for read in (_read_xmp, _read_exif):
        with suppress(*_BROKEN, *_HOSTILE):
            tags.update(read(opened))
    gsd_m: float | None = None
    with suppress(*_BROKEN, *_HOSTILE):
        gsd_m = _georeferenced_gsd(opened)
    return _Header(_sides(*opened.size), tags, gsd_m)


def _read_exif(opened: pillow.Image) -> _Tags:
    # the method of PNG files decodes all pixels to look for EXIF behind them
    exif = pillow.Image.getexif(opened)
    details = exif.get_ifd(_EXIF_IFD)
    tags: _Tags = {}
    for tag, name in _EXIF_TAGS.items():
        with suppress(*_BROKEN):
            value = details.get(tag, exif.get(tag))
            if isinstance(value, str):
                tags[name] = value.strip("\0 ")
            elif isinstance(value, Real):
                tags[name] = float(value)
    return tags


def _read_xmp(opened: pillow.Image) -> _Tags:
    """Parse XMP: attributes, elements and the members of structures, by the URI of their namespace."""
    packet = opened.info.get("xmp")
    if not isinstance(packet, bytes) or len(packet) > _MAX_XMP_BYTES:
        return {}
    text = packet.decode("utf-8", "replace")  # an encoding that the packet declares could hide a DOCTYPE
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return {}
    begin, end = text.find("<x:xmpmeta"), text.find("</x:xmpmeta>")
    text = text[begin : end + len("</x:xmpmeta>")] if 0 <= begin < end else text.strip("\0\ufeff \r\n\t")
    root = ET.fromstring(text)  # noqa: S314  # without a DOCTYPE there are no entities to expand
    rdf = root if root.tag == _RDF else root.find(_RDF)
    return {} if rdf is None else dict(_xmp_properties(rdf))


def _xmp_properties(rdf: ET.Element) -> Iterator[tuple[str, str]]:
    for description in rdf:
        for name, value in description.attrib.items():
            yield _xmp_name(name), value
        for element in description:
            name = _xmp_name(element.tag)
            yield name, element.text or ""
            for member in element.iter():
                for attribute, value in member.attrib.items():
                    yield f"{name}/{_local_name(attribute)}", value
                if member is not element:
                    yield f"{name}/{_local_name(member.tag)}", member.text or ""


def _xmp_name(name: str) -> str:
    address = name[1:].partition("}")[0].lower().removeprefix("https://").removeprefix("http://").rstrip("/")
    prefix = "sentera" if "sentera" in address else _XMP_PREFIXES.get(address, "other")
    return f"{prefix}:{_local_name(name)}"


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _number(tags: _Tags, *names: str) -> float | None:
    """Return the first of these tags that is a finite number."""
    for name in names:
        value = tags.get(name, "")
        if isinstance(value, str):
            match = _NUMBER.fullmatch(value.strip())
            value = float(match[1]) / (float(match[2] or 1) or math.nan) if match else math.nan
        if math.isfinite(value):
            return value
    return None


def _between(low: float, high: float, tags: _Tags, *names: str) -> float | None:
    """Return the first of these tags that is a number from `low` to `high`."""
    values = (_number(tags, name) for name in names)
    return next((value for value in values if value is not None and low <= value <= high), None)


def _sides(width: float, height: float) -> _Size:
    return max(width, height), min(width, height)


# Height and angle of the camera

_HEIGHT_RANGE_M = (0.1, 20_000.0)
_LASER_ERROR, _ABOVE_GROUND_ERROR, _ABOVE_TAKEOFF_ERROR = 0.03, 0.1, 0.25


class _Height(NamedTuple):
    metres: float
    source: GroundSource
    error: float
    above_takeoff: bool = False


def _pitch_deg(tags: _Tags) -> float | None:
    """Return the angle of the optical axis above the horizon in degrees; -90 is straight down."""
    pitch = _between(
        -180,
        180,
        tags,
        "dji:GimbalPitchDegree",
        "skydio:CameraOrientationNED/Pitch",
        "skydio:GimbalPitchDegree",
        "parrot:CameraPitchDegree",
    )
    if pitch is not None:
        return pitch
    # 0 is straight down here, and a roll tilts the camera too: support.pix4d.com, article 202558969
    pitch, roll = _between(-180, 180, tags, "pix4d:Pitch"), _between(-180, 180, tags, "pix4d:Roll") or 0.0
    if pitch is None:
        return None
    off_nadir = math.degrees(math.acos(math.cos(math.radians(pitch)) * math.cos(math.radians(roll))))
    return round(off_nadir - 90, 4)


def _measured_height(tags: _Tags, pitch: float | None) -> _Height | None:
    slant = _between(*_HEIGHT_RANGE_M, tags, "dji:LRFTargetDistance")
    if slant and pitch is not None and str(tags.get("dji:LRFStatus")).strip().lower() == "normal":
        metres = slant * math.sin(math.radians(-pitch))
        if metres >= _HEIGHT_RANGE_M[0]:
            return _Height(metres, "laser", _LASER_ERROR)
    # the second spelling is that of an old firmware
    altimeter = ("sentera:AltimeterCalculatedAGL", "sentera:AltimeterCalcuatedAGL")
    above_ground = _between(*_HEIGHT_RANGE_M, tags, *altimeter, "pix4d:AboveGroundAltitude")
    if above_ground:
        return _Height(above_ground, "height", _ABOVE_GROUND_ERROR)
    above_takeoff = _between(*_HEIGHT_RANGE_M, tags, "dji:RelativeAltitude", "skydio:RelativeAltitude")
    return _Height(above_takeoff, "height", _ABOVE_TAKEOFF_ERROR, above_takeoff=True) if above_takeoff else None


# Focal length

_FILM_DIAGONAL_MM = math.hypot(36, 24)
_EQUIVALENT_ERROR = 0.05  # the 35 mm equivalent is rounded to millimetres, and the aspect of the sensor may be assumed
_MAX_DISAGREEMENT = 1.25
_ASPECT_TOLERANCE = 0.02
_FRAME_TOLERANCE = 0.03
_PLAUSIBLE_MM = (0.1, 5000.0)
_PLAUSIBLE_RATIO = (0.2, 100.0)  # focal length by longer side: fields of view from 136 to 0.6 degrees
_MM_PER_UNIT = {2.0: 25.4, 3.0: 10.0, 4.0: 1.0, 5.0: 0.001}  # EXIF's FocalPlaneResolutionUnit
_THERMAL_SIZES = {(640.0, 512.0), (640.0, 480.0), (336.0, 256.0), (320.0, 256.0)}


class _FocalLength(NamedTuple):
    pixels: float
    error: float = 0.0


class _Sensor(NamedTuple):
    """Size of a camera's full frame in pixels, and the pitch of its pixels in micrometres."""

    frame: _Size
    pixel_um: float


# Pixel pitches of DroneModels (Apache-2.0, version of 9 January 2025) by the model in EXIF, in capitals; cameras whose
# pitch contradicts their 35 mm equivalent are left out:
# https://github.com/Theta-Limited/DroneModels/blob/main/droneModels.json
_SENSORS = {
    "FC220": _Sensor((4000, 3000), 1.58173),
    "FC230": _Sensor((4056, 3040), 1.52120),
    "FC300C": _Sensor((4000, 3000), 1.57938),
    "FC300S": _Sensor((4000, 3000), 1.57938),
    "FC300X": _Sensor((4000, 3000), 1.57938),
    "FC300XW": _Sensor((4000, 3000), 1.57938),
    "FC330": _Sensor((4000, 3000), 1.56993),
    "FC550": _Sensor((4608, 3456), 3.79774),
    "FC550R": _Sensor((4608, 3456), 3.79774),
    "FC550RAW": _Sensor((4608, 3456), 3.79774),
    "FC1102": _Sensor((3968, 2976), 1.57785),
    "FC2103": _Sensor((4056, 3040), 1.50327),
    "FC2200": _Sensor((4000, 3000), 1.57938),
    "FC2204": _Sensor((4000, 3000), 1.57938),
    "FC2403": _Sensor((4056, 3040), 1.60245),
    "FC3170": _Sensor((4000, 3000), 1.65588),
    "FC3411": _Sensor((5472, 3648), 2.41083),
    "FC3582": _Sensor((4032, 3024), 2.38838),
    "FC3682": _Sensor((4000, 3000), 2.31624),
    "FC4170": _Sensor((4000, 3000), 1.60000),
    "FC6310": _Sensor((5472, 3648), 2.34527),
    "FC6310S": _Sensor((5472, 3648), 2.34527),
    "FC6360": _Sensor((1600, 1300), 3.06437),
    "FC6510": _Sensor((5472, 3648), 2.34090),
    "FC6520": _Sensor((5280, 3956), 3.38741),
    "FC6540": _Sensor((6016, 4008), 3.87659),
    "FC7203": _Sensor((4000, 3000), 1.64447),
    "FC7303": _Sensor((4000, 3000), 1.54250),
    "FC8482": _Sensor((4032, 3024), 2.22566),
    "L1D-20C": _Sensor((5472, 3648), 2.34375),
    "L2D-20C": _Sensor((5280, 3956), 3.39062),
    "M2EA": _Sensor((8000, 6000), 0.80095),
    "M3E": _Sensor((5280, 3956), 3.30611),
    "M3T": _Sensor((8000, 6000), 0.80386),
    "MAVIC2-ENTERPRISE-ADVANCED": _Sensor((8000, 6000), 0.80095),
    "XT2": _Sensor((4000, 3000), 1.85831),
    "ZENMUSEH20": _Sensor((5184, 3888), 1.45255),
    "ZENMUSEH20T": _Sensor((4056, 3040), 1.62153),
    "ZENMUSEH20W": _Sensor((4056, 3040), 1.51874),
    "ZENMUSEP1": _Sensor((8192, 5460), 4.25105),
    "ZENMUSEXT2": _Sensor((4000, 3000), 1.85831),
    "ZENMUSEZ30": _Sensor((1920, 1440), 2.45313),
    "ZH20": _Sensor((5184, 3888), 1.45255),
    "ZH20T": _Sensor((4056, 3040), 1.62153),
    "ZH20W": _Sensor((4056, 3040), 1.51874),
    "ZP1": _Sensor((8192, 5460), 4.25105),
    "Z30": _Sensor((1920, 1440), 2.45313),
    "XL705": _Sensor((5472, 3648), 2.33007),
    "XL709": _Sensor((4096, 3072), 2.30315),
    "XT701": _Sensor((7680, 6000), 0.83771),
    "XT705": _Sensor((5472, 3648), 2.33007),
    "XT709": _Sensor((8000, 6000), 0.80000),
    "ANAFI": _Sensor((5344, 4016), 1.11590),
    "ANAFIAI": _Sensor((8000, 6000), 0.82951),
    "ANAFITHERMAL": _Sensor((5344, 4016), 1.11590),
    "ANAFIUA": _Sensor((5344, 4016), 1.11590),
    "ANAFIUSA": _Sensor((5344, 4016), 1.11590),
}


def _focal_length(tags: _Tags, size: _Size) -> _FocalLength | None:
    """Return the focal length in pixels of an image of this size.

    EXIF keeps the size at which the photograph was taken, so a smaller copy is recognised. A copy with another
    aspect ratio was cropped or squeezed, and its focal length is unknown. It is also unknown if the tags contradict
    each other, or if a digital zoom may or may not be part of the 35 mm equivalent.
    """
    taken = _sides(_number(tags, "exif:PixelXDimension") or 0.0, _number(tags, "exif:PixelYDimension") or 0.0)
    if taken[1] <= 0:
        taken = size
    if abs(size[0] * taken[1] / (size[1] * taken[0]) - 1) > _ASPECT_TOLERANCE or _is_fisheye(tags):
        return None
    zoom = _between(1, 200, tags, "exif:DigitalZoomRatio") or 1.0
    equivalent = _from_equivalent(tags, taken) if zoom == 1 else None
    pixels = _from_calibration(tags, taken) or _from_millimetres(tags, taken)
    if pixels and equivalent and not 1 / _MAX_DISAGREEMENT < pixels / equivalent < _MAX_DISAGREEMENT:
        return None
    focal = _FocalLength(pixels * zoom) if pixels else _FocalLength(equivalent or 0.0, _EQUIVALENT_ERROR)
    if not _PLAUSIBLE_RATIO[0] <= focal.pixels / taken[0] <= _PLAUSIBLE_RATIO[1]:
        return None
    return focal._replace(pixels=focal.pixels * size[0] / taken[0])


def _is_fisheye(tags: _Tags) -> bool:
    return str(tags.get("pix4d:ModelType")).strip().lower() == "fisheye"


def _from_calibration(tags: _Tags, taken: _Size) -> float | None:
    """Return the calibrated focal length in pixels of the photograph as it was taken."""
    pixels = _number(tags, "pix4d:PerspectiveFocalLength")
    if pixels and str(tags.get("pix4d:PerspectiveFocalLengthUnits")).strip().lower().startswith("p"):
        return pixels
    # "date;fx,fy,cx,cy,...", as in DJI's manuals
    dewarp: _Tags = {"fx": str(tags.get("dji:DewarpData", "")).partition(";")[2].partition(",")[0]}
    pixels = _between(1, 1e6, tags, "dji:CalibratedFocalLength", "skydio:CalibratedFocalLength/X") or _between(
        1, 1e6, dewarp, "fx"
    )
    if pixels is None:
        return None
    # the value is for the full frame, whose centre is given beside it
    x = _number(tags, "dji:CalibratedOpticalCenterX", "skydio:CalibratedOpticalCenter/X")
    y = _number(tags, "dji:CalibratedOpticalCenterY", "skydio:CalibratedOpticalCenter/Y")
    sensor = _sensor(tags, taken)
    centred = _sides(2 * x, 2 * y) if x and y and min(x, y) > 1 else None
    frame = centred or (sensor.frame if sensor else taken)
    return pixels * min(1.0, _scale_of_frame(taken, frame))


def _from_millimetres(tags: _Tags, taken: _Size) -> float | None:
    """Return the focal length in pixels from millimetres and the pitch of the pixels."""
    millimetres = _between(*_PLAUSIBLE_MM, tags, "pix4d:PerspectiveFocalLength", "exif:FocalLength")
    if millimetres is None:
        return None
    sensor = _sensor(tags, taken)
    if sensor:
        return 1000 * millimetres / sensor.pixel_um * _scale_of_frame(taken, sensor.frame)
    unit = _MM_PER_UNIT.get(_number(tags, "exif:FocalPlaneResolutionUnit") or 2.0)
    resolution = _between(1e-3, 1e9, tags, "exif:FocalPlaneXResolution")
    return millimetres * resolution / unit if unit and resolution else None


def _from_equivalent(tags: _Tags, taken: _Size) -> float | None:
    """Return the focal length in pixels from the 35 mm equivalent, which compares diagonals.

    The diagonal is that of the sensor's full frame. For a camera that is not in the table, the
    frame is assumed to be 3:2 if the photograph has this aspect ratio, else 4:3 and cropped along one axis.
    """
    millimetres = _between(*_PLAUSIBLE_MM, tags, "exif:FocalLengthIn35mmFilm")
    if millimetres is None:
        return None
    sensor = _sensor(tags, taken)
    is_three_to_two = abs(taken[0] / taken[1] - 3 / 2) < _ASPECT_TOLERANCE
    frame = sensor.frame if sensor else (3.0, 2.0) if is_three_to_two else (4.0, 3.0)
    return millimetres * math.hypot(*frame) / _FILM_DIAGONAL_MM * _scale_of_frame(taken, frame)


def _sensor(tags: _Tags, taken: _Size) -> _Sensor | None:
    """Return the sensor of the camera, unless the photograph is larger or comes from a thermal camera of that name."""
    sensor = _SENSORS.get(str(tags.get("tiff:Model", "")).strip().upper())
    if sensor is None or taken in _THERMAL_SIZES or _scale_of_frame(taken, sensor.frame) > 1:
        return None
    return sensor


def _scale_of_frame(taken: _Size, frame: _Size) -> float:
    """Return the factor by which the full frame was resampled; another aspect ratio means a crop along one axis."""
    scale = max(taken[0] / frame[0], taken[1] / frame[1])
    return 1.0 if abs(scale - 1) < _FRAME_TOLERANCE else scale


# GeoTIFF: https://docs.ogc.org/is/19-008r4/19-008r4.html

_PIXEL_SCALE, _TRANSFORMATION, _GEO_KEYS = 33550, 34264, 34735
_MODEL_TYPE, _SYSTEM, _PROJECTION, _LINEAR_UNIT = 1024, 3072, 3075, 3076
_PROJECTED, _METRE, _USER_DEFINED = 1, 9001, 32767
# Mercator and equidistant cylindrical systems have metres that are not ground metres
_STRETCHED_SYSTEMS = {3395, 3785, 3832, 3857, 3994, 4087, 4088, 32662}
_TRUE_PROJECTIONS = {1, 8, 9, 11}  # transverse Mercator, Lambert conic (2SP, 1SP), Albers


def _georeferenced_gsd(opened: pillow.Image) -> float | None:
    """Return the metres per pixel of a GeoTIFF in a projected reference system with ground metres."""
    if not isinstance(opened, TiffImageFile) or not _has_ground_metres(_geo_keys(opened)):
        return None
    transformation, scale = opened.tag_v2.get(_TRANSFORMATION), opened.tag_v2.get(_PIXEL_SCALE)
    if isinstance(scale, tuple) and len(scale) >= 2:
        area = abs(scale[0] * scale[1])
    elif isinstance(transformation, tuple) and len(transformation) == 16:
        area = abs(transformation[0] * transformation[5] - transformation[1] * transformation[4])
    else:
        return None
    gsd_m = math.sqrt(area)
    return gsd_m if GSD_RANGE_M[0] <= gsd_m <= GSD_RANGE_M[1] else None


def _geo_keys(opened: TiffImageFile) -> dict[int, int]:
    """Return the keys whose value is in the directory itself: after a header of 4, (key, location, count, value)."""
    values = opened.tag_v2.get(_GEO_KEYS)
    if not isinstance(values, tuple):
        return {}
    entries = zip(values[4::4], values[5::4], values[7::4], strict=False)
    return {key: value for key, location, value in entries if location == 0}


def _has_ground_metres(keys: dict[int, int]) -> bool:
    system = keys.get(_SYSTEM, _USER_DEFINED)
    if keys.get(_MODEL_TYPE) != _PROJECTED or system in _STRETCHED_SYSTEMS:
        return False
    if system == _USER_DEFINED and keys.get(_PROJECTION) not in _TRUE_PROJECTIONS:
        return False
    # the zones of UTM on WGS 84 (north, south), ETRS89 and NAD83 have metres, also where the key is left out
    zones = (range(32601, 32661), range(32701, 32761), range(25828, 25839), range(26901, 26924))
    return keys.get(_LINEAR_UNIT, _METRE if any(system in zone for zone in zones) else None) == _METRE
