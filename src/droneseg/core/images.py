"""Decode image files to RGB arrays and encode arrays as PNG."""

import struct
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from droneseg.core import errors

Image: TypeAlias = NDArray[np.uint8]
"""RGB, shape (H, W, 3), dtype uint8."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
DEFAULT_MAX_PIXELS = 40_000_000
EMPTY_FILE = "The file is empty."

_ORIENTATION_TAG, _UPRIGHT = 0x0112, 1
_MAX_JPEG_SCANS = 500  # a scan of a few bytes costs a pass over all pixels; libjpeg-turbo's fuzzers use this limit
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_GREY_MODES = ("1", "L", "I", "F", *_SIXTEEN_BIT_MODES)
# Errors that Pillow raises on corrupt data: OSError and SyntaxError (PNG), ValueError (WebP, TIFF), EOFError,
# IndexError and TypeError (TIFF tags).
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError)


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Decode an image file to an upright RGB array.

    EXIF orientation is applied. Grey is repeated in all channels, 16-bit grey is scaled to 8 bits, CMYK is converted,
    palettes are resolved, and transparent pixels become black, which nnU-Net crops away. If a file contains several
    images (for example, an MPO file from a drone), the first one is decoded.

    Args:
        data: Content of a JPEG, PNG, WebP, TIFF or BMP file.
        max_pixels: Maximum width x height; checked against the header before any pixel is decoded.

    Returns:
        RGB, shape (H, W, 3), dtype uint8, C-contiguous.

    Raises:
        UnsupportedImageError: If the format is not supported, or the pixel type has no fixed range.
        ImageTooLargeError: If the image has more than `max_pixels` pixels.
        BrokenImageError: If the data is truncated or corrupt.
    """
    opened = open_image(data, max_pixels=max_pixels)
    load(opened)
    return to_rgb(opened)


def read_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Read an image from a file; see `decode_image`. Error messages start with the path."""
    data = read_bytes(path)
    try:
        return decode_image(data, max_pixels=max_pixels)
    except errors.ImageError as error:
        raise type(error)(f"{path}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        BrokenImageError: If the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.BrokenImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> pillow.Image:
    """Open an image and check its header; no pixel is decoded.

    Raises:
        UnsupportedImageError: If the format is not supported.
        ImageTooLargeError: If the image has more than `max_pixels` pixels.
        BrokenImageError: If the header is corrupt.
    """
    if not data:
        raise errors.BrokenImageError(EMPTY_FILE)
    opened = _open(BytesIO(data), max_pixels)
    # in compressed data 0xFF is followed by 0, so this counts scan headers only
    if opened.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise errors.UnsupportedImageError(
            f"The JPEG has more than {_MAX_JPEG_SCANS} scans. Save it again as a baseline JPEG."
        )
    _require_size(opened, max_pixels)
    return opened


def _open(stream: IO[bytes], max_pixels: int) -> pillow.Image:
    try:
        return pillow.open(stream, formats=FORMATS)
    except pillow.DecompressionBombError as error:
        raise errors.ImageTooLargeError(
            f"Image is far larger than the limit of {max_pixels:,} pixels. Scale it down."
        ) from error
    except UnidentifiedImageError as error:
        raise errors.UnsupportedImageError(
            f"Unknown image format; supported formats are {', '.join(FORMATS)}."
        ) from error
    except _BROKEN as error:
        raise errors.BrokenImageError(f"Image header is corrupt: {error}") from error


@dataclass(frozen=True)
class ImageHeader:
    """Header of an image file.

    Attributes:
        grey: Whether the image has a single channel.
        size: Width and height in pixels.
        pages: Number of images in the file.
    """

    grey: bool
    size: tuple[int, int]
    pages: int


def read_header(path: Path) -> ImageHeader:
    """Read the header of an image file; no pixel is decoded.

    Raises:
        ImageError: If the file cannot be read as an image.
    """
    try:
        with path.open("rb") as stream, _open(stream, DEFAULT_MAX_PIXELS) as opened:
            return ImageHeader(opened.mode in _GREY_MODES, opened.size, getattr(opened, "n_frames", 1))
    except _BROKEN as error:
        raise errors.BrokenImageError(f"The file cannot be read: {error}") from error


def _require_size(opened: pillow.Image, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise errors.ImageTooLargeError(
            f"Image is {width}x{height}; the limit is {max_pixels:,} pixels. "
            "Raise DRONESEG_MAX_PIXELS or scale the image down."
        )


def load(opened: pillow.Image) -> None:
    """Decode every pixel of an opened image.

    Raises:
        BrokenImageError: If the data is truncated or corrupt.
    """
    try:
        opened.load()
    except _BROKEN as error:
        reason = "truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "corrupt"
        raise errors.BrokenImageError(f"Image data is {reason}: {error}") from error


def is_plain_rgb_png(opened: pillow.Image) -> bool:
    """Return whether an image is an upright 8-bit RGB PNG without alpha, which every reader decodes to the same pixels.

    Decodes the image. Call it before `load`, which drops the raw mode that distinguishes 8 bits from 16.

    Raises:
        BrokenImageError: If the data is truncated or corrupt.
    """
    # Pillow also reads 16-bit RGB as mode RGB; only the raw mode in the tile distinguishes the two
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
    """Convert a loaded image of any supported mode to an upright RGB array. This also rotates `opened` itself.

    Raises:
        UnsupportedImageError: If the pixel type has no fixed range (32-bit integers, floats).
        BrokenImageError: If a palette image has no palette.
    """
    if opened.mode == "P" and opened.palette is None:
        raise errors.BrokenImageError("Image data is corrupt: the palette is missing.")
    upright = opened
    _turn_upright(upright)
    if upright.mode in _SIXTEEN_BIT_MODES:
        grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise errors.UnsupportedImageError(
            f"Unsupported pixel mode {upright.mode!r}: its values have no fixed range. "
            "Convert the image to 8 or 16 bits."
        )
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        flat = pillow.new("RGBA", rgba.size, (0, 0, 0, 255))
        flat.alpha_composite(rgba)
        upright = flat
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def pillow_to_rgb(picture: pillow.Image, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Convert a Pillow image as `decode_image` converts a file; `picture` is not changed.

    Raises:
        UnsupportedImageError: If the pixel type has no fixed range.
        ImageTooLargeError: If the image has more than `max_pixels` pixels.
        BrokenImageError: If the file that `picture` was opened from is truncated or corrupt.
    """
    _require_size(picture, max_pixels)
    load(picture)
    upright = picture
    with suppress(*_BROKEN, struct.error):
        upright = ImageOps.exif_transpose(picture)
    return to_rgb(upright)


def require_rgb(image: object) -> Image:
    """Return an array if it is an RGB image, as a copy in row-major order if it is a flipped or strided view.

    The order of the channels cannot be verified: OpenCV's `imread` returns BGR.

    Raises:
        TypeError: If `image` is not a NumPy array of dtype uint8.
        ValueError: If its shape is not (H, W, 3), or if it is empty.
    """
    wanted = "An image must be an RGB array of shape (H, W, 3) and dtype uint8"
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{wanted}; got {type(image).__name__}.")
    got = f"{wanted}; got {image.dtype} of shape {image.shape}."
    if image.dtype != np.uint8:
        raise TypeError(f"{got} Scale its values to 0-255 and convert it with .round().astype(numpy.uint8).")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{got} {_shape_remedy(image)}")
    if not image.size:
        raise ValueError(f"{got} Pass an image with pixels.")
    return np.ascontiguousarray(image)


def _shape_remedy(image: NDArray[np.uint8]) -> str:
    """Return how to convert an array of another shape to (H, W, 3)."""
    if image.ndim == 2:
        return "Repeat the grey channel: numpy.stack([image] * 3, axis=-1)."
    if image.ndim == 4:
        return "Pass the images one by one."
    if image.ndim == 3 and image.shape[2] == 1:
        return "Repeat the grey channel: numpy.repeat(image, 3, axis=2)."
    if image.ndim == 3 and image.shape[2] == 4:
        return "Drop the alpha channel: image[..., :3]."
    if image.ndim == 3 and image.shape[0] == 3:
        return "Move the channels to the end: image.transpose(1, 2, 0)."
    return "Convert it to three channels."


def _turn_upright(opened: pillow.Image) -> None:
    """Apply the EXIF orientation of an image, if there is a readable one."""
    with suppress(*_BROKEN, struct.error):
        ImageOps.exif_transpose(opened, in_place=True)  # in place, because copying a large image is expensive


def _orientation(opened: pillow.Image) -> int:
    with suppress(*_BROKEN, struct.error):
        return int(opened.getexif().get(_ORIENTATION_TAG, _UPRIGHT))
    return _UPRIGHT


def encode_png(image: Image, *, compress_level: int = 3) -> bytes:
    """Encode an RGB image as PNG.

    Compression level 3 takes a third of the time of the default level; files are a few per cent larger.
    """
    buffer = BytesIO()
    pillow.fromarray(image).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()
