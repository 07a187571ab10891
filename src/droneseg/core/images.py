"""Decode and encode photographs."""

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from droneseg.core.errors import (
    BrokenImageError,
    ImageError,
    ImageTooLargeError,
    UnsupportedImageError,
)

Image: TypeAlias = NDArray[np.uint8]
"""RGB, shape (H, W, 3), dtype uint8."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
DEFAULT_MAX_PIXELS = 40_000_000
EMPTY = "The file is empty."

_ORIENTATION_TAG, _UPRIGHT = 0x0112, 1
_MAX_JPEG_SCANS = 500  # each costs a pass over all pixels, for a few bytes; libjpeg-turbo's fuzzers stop there, too
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
# What Pillow raises on corrupt data, by format: OSError and SyntaxError (PNG), ValueError (WebP, TIFF), EOFError,
# IndexError and TypeError (TIFF tags).
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError)


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Decode a photograph fully and return it upright, as RGB.

    EXIF orientation is applied. Grey is repeated, 16-bit grey is scaled to 8 bits, CMYK is converted, a palette is
    resolved, and what alpha hides becomes black, which nnU-Net crops away. Of a file with several pictures (the MPO
    files of some drones) the first is taken.

    Args:
        data: The bytes of a JPEG, PNG, WebP, TIFF or BMP file.
        max_pixels: Largest width x height accepted; read from the header, before any pixel is decoded.

    Returns:
        RGB, shape (H, W, 3), dtype uint8, C-contiguous.

    Raises:
        UnsupportedImageError: If the data is no image of these formats, or has a pixel type without a fixed range.
        ImageTooLargeError: If the header states more than `max_pixels`.
        BrokenImageError: If the data is truncated or corrupt.
    """
    opened = open_image(data, max_pixels=max_pixels)
    load(opened)
    return to_rgb(opened)


def read_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Read a photograph; see `decode_image`. The error's message begins with the path."""
    try:
        return decode_image(path.read_bytes(), max_pixels=max_pixels)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise BrokenImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> pillow.Image:
    """Read an image's header only and check what it states.

    Raises:
        UnsupportedImageError: If the format is not accepted.
        ImageTooLargeError: If it states more than `max_pixels`.
    """
    if not data:
        raise BrokenImageError(EMPTY)
    try:
        opened = pillow.open(BytesIO(data), formats=FORMATS)
    except pillow.DecompressionBombError as error:
        raise ImageTooLargeError(f"Image is far above the limit of {max_pixels:,} pixels. Send tiles.") from error
    except UnidentifiedImageError as error:
        raise UnsupportedImageError(f"Not an image of a known format; accepted are {', '.join(FORMATS)}.") from error
    except _BROKEN as error:
        raise BrokenImageError(f"Image header is corrupt: {error}") from error
    # within what is compressed 0xFF is followed by 0, so this counts the heads of scans
    if opened.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise UnsupportedImageError(
            f"The JPEG has more than {_MAX_JPEG_SCANS} scans. Save it again as an ordinary one."
        )
    width, height = opened.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"Image is {width}x{height}; the limit is {max_pixels:,} pixels. Raise DRONESEG_MAX_PIXELS or send tiles."
        )
    return opened


def load(opened: pillow.Image) -> None:
    """Decode every pixel of an opened image.

    Raises:
        BrokenImageError: If the data is truncated or corrupt.
    """
    try:
        opened.load()
    except _BROKEN as error:
        reason = "truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "corrupt"
        raise BrokenImageError(f"Image data is {reason}: {error}") from error


def is_plain_rgb_png(opened: pillow.Image) -> bool:
    """Say whether an image is an 8-bit RGB PNG, upright and without alpha: one that any reader reads alike.

    Decodes the image. Ask before `load`, which drops what tells 8 bits from 16.

    Raises:
        BrokenImageError: If the data is truncated or corrupt.
    """
    # Pillow reads 16-bit RGB as mode RGB too; only the raw mode in the tile tells them apart.
    tiles = opened.tile if isinstance(opened, ImageFile) else []
    raw_modes = {tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0] for tile in tiles}
    load(opened)
    return (
        opened.format == "PNG"
        and opened.mode == "RGB"
        and raw_modes == {"RGB"}
        and "transparency" not in opened.info
        and getattr(opened, "n_frames", 1) == 1
        and _orientation(opened) == _UPRIGHT
    )


def to_rgb(opened: pillow.Image) -> Image:
    """Turn a loaded image of any accepted mode into an upright RGB array; the image itself is turned upright, too.

    Raises:
        UnsupportedImageError: If the pixel type has no fixed range (32-bit integers, floats).
        BrokenImageError: If it wants a palette and has none.
    """
    if opened.mode == "P" and opened.palette is None:
        raise BrokenImageError("Image data is corrupt: there is no palette.")
    upright = opened
    _turn_upright(upright)
    if upright.mode in _SIXTEEN_BIT_MODES:
        grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise UnsupportedImageError(
            f"Pixels of mode {upright.mode!r} have no fixed range. Convert the image to 8 or 16 bits."
        )
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        flat = pillow.new("RGBA", rgba.size, (0, 0, 0, 255))
        flat.alpha_composite(rgba)
        upright = flat
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _turn_upright(opened: pillow.Image) -> None:
    """Apply the orientation in an image's EXIF, if it has one that can be read."""
    with suppress(*_BROKEN, struct.error):
        ImageOps.exif_transpose(opened, in_place=True)  # in place, as every copy of a photograph is felt


def _orientation(opened: pillow.Image) -> int:
    with suppress(*_BROKEN, struct.error):
        return int(opened.getexif().get(_ORIENTATION_TAG, _UPRIGHT))
    return _UPRIGHT


def encode_png(image: Image, *, compress_level: int = 3) -> bytes:
    """Encode RGB pixels as PNG bytes; level 3 costs a third of the default's time for a few per cent of size."""
    buffer = BytesIO()
    pillow.fromarray(image).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()
