"""Decode masks from class colours or class ids, and encode them as palette PNG."""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core import errors
from droneseg.core.classes import BACKGROUND_ID, CLASSES, IGNORE_LABEL, colours
from droneseg.core.images import DEFAULT_MAX_PIXELS, load, open_image

Mask: TypeAlias = NDArray[np.uint8]
"""Class ids, shape (H, W), dtype uint8."""

Colour: TypeAlias = tuple[int, int, int]
"""RGB, each 0-255."""

ColourTable: TypeAlias = NDArray[np.uint8]
"""Class id by packed colour (r + 256 g + 65536 b), shape (2**24,), dtype uint8; 255 where no class has that colour."""

MaskKind: TypeAlias = Literal["colours", "ids", "labels"]
UnknownPolicy: TypeAlias = Literal["fail", "background"]

_UNKNOWN = 255
_SHOWN_COLOURS = 5


@dataclass(frozen=True)
class UnknownColour:
    """A colour in a mask that belongs to no class.

    Attributes:
        colour: RGB, each 0-255.
        pixels: Number of pixels of that colour.
        x: Column of the first such pixel in row-major order.
        y: Row of that pixel.
    """

    colour: Colour
    pixels: int
    x: int
    y: int

    def __str__(self) -> str:
        """Return the colour, its number of pixels and the position of the first one."""
        return f"{self.colour} on {self.pixels:,} pixels, first at x={self.x} y={self.y}"


def decode_colours(
    data: bytes,
    *,
    unknown: UnknownPolicy = "fail",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    table: ColourTable | None = None,
) -> tuple[Mask, list[UnknownColour]]:
    """Decode a colour-coded mask. Palette images are decoded by colour, never by palette index.

    Args:
        data: Content of a losslessly compressed palette or RGB image (PNG, BMP, TIFF, lossless WebP).
        unknown: Handling of colours that belong to no class: "fail" raises an error, "background" maps them to
            background.
        max_pixels: Maximum width x height.
        table: Colours to use instead of the class colours. With a table, grey images are also accepted; grey g
            counts as colour (g, g, g).

    Returns:
        Class ids, shape (H, W), dtype uint8, and the unknown colours that became background.

    Raises:
        UnknownColoursError: If the mask contains colours of no class and `unknown` is "fail"; the message lists them.
        MaskError: If the image is a JPEG, is grey and no table is given, or has transparent pixels.
        ImageError: If the image cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    if opened.format in ("JPEG", "MPO"):
        raise errors.MaskError("Mask is a JPEG; lossy compression changes its colours. Use PNG.")
    load(opened)
    mask = _lookup_palette(opened, table) if opened.mode == "P" else _lookup_rgb(opened, table)
    if mask.max(initial=0) != _UNKNOWN:
        return mask, []
    unknown_colours = _unknown_colours(opened, mask)
    if unknown == "fail":
        shown = "; ".join(str(colour) for colour in unknown_colours[:_SHOWN_COLOURS])
        hidden = len(unknown_colours) - _SHOWN_COLOURS
        more = f"; and {hidden:,} more" if hidden > 0 else ""
        raise errors.UnknownColoursError(f"Mask has {len(unknown_colours):,} unknown colours: {shown}{more}.")
    mask[mask == _UNKNOWN] = BACKGROUND_ID
    return mask, unknown_colours


def decode_ids(data: bytes, *, ignore: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
    """Decode a mask whose pixel values (grey) or palette indices are class ids.

    Args:
        data: Content of an image file.
        ignore: Whether nnU-Net's ignore label is accepted; pixels with it become background.
        max_pixels: Largest accepted number of pixels.

    Returns:
        Class ids, shape (H, W), dtype uint8.

    Raises:
        InvalidIdsError: If a value is not a class id; the message lists and counts such values.
        MaskError: If the image has more than one channel, or a palette of class colours that contradicts its values.
        ImageError: If the image cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    load(opened)
    if opened.mode not in ("P", "L"):
        raise errors.MaskError(f"An id mask must be a grey or palette image, not {opened.mode!r}. Is it a colour mask?")
    mask = np.array(opened)
    if opened.mode == "P":
        by_colour = _lookup_palette(opened)
        if (by_colour != _UNKNOWN).all() and (by_colour != mask).any():
            raise errors.MaskError(
                "Mask is ambiguous: its palette contains class colours, but its values are other class ids. "
                "Read it as a colour mask, or save it as a grey image of class ids."
            )
    if ignore:
        mask[mask == IGNORE_LABEL] = BACKGROUND_ID
    if mask.max(initial=0) >= len(CLASSES):
        values, counts = np.unique(mask[mask >= len(CLASSES)], return_counts=True)
        shown = ", ".join(f"{value} on {count:,} pixels" for value, count in zip(values[:5], counts[:5], strict=True))
        raise errors.InvalidIdsError(f"Mask contains values that are not class ids (0-{len(CLASSES) - 1}): {shown}.")
    return mask


def read_mask(path: Path, kind: MaskKind, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
    """Read a mask from a file of class colours, class ids, or nnU-Net's labels. Error messages start with the path.

    In nnU-Net's labels, ignored pixels become background.
    """
    try:
        data = path.read_bytes()
        if kind != "colours":
            return decode_ids(data, ignore=kind == "labels", max_pixels=max_pixels)
        return decode_colours(data, max_pixels=max_pixels)[0]
    except errors.DronesegError as error:
        raise type(error)(f"{path}: {error}") from error


def encode_mask(mask: Mask) -> bytes:
    """Encode class ids as a palette PNG: index = class id, palette = class colours.

    Args:
        mask: Class ids, shape (H, W), dtype uint8.

    Returns:
        PNG bytes; the pixel values are class ids, `convert("RGB")` gives the class colours. Equal masks give equal
        bytes.

    Raises:
        InvalidIdsError: If a value is not a class id.
    """
    if mask.max(initial=0) >= len(CLASSES):
        raise errors.InvalidIdsError(f"Mask contains {int(mask.max())}; the largest class id is {len(CLASSES) - 1}.")
    picture = pillow.fromarray(np.ascontiguousarray(mask))
    picture.putpalette(colours().tobytes())
    return _png(picture)


def encode_grey_ids(mask: Mask) -> bytes:
    """Encode class ids as a grey PNG, the format of nnU-Net's labels."""
    return _png(pillow.fromarray(np.ascontiguousarray(mask)))


def _png(picture: pillow.Image) -> bytes:
    buffer = BytesIO()
    # run-length encoding is as fast as zlib's lowest level and gives files a fifth smaller
    picture.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def colour_table(ids: Mapping[Colour, int]) -> ColourTable:
    """Return the look-up table from packed colour to class id."""
    table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
    for (red, green, blue), class_id in ids.items():
        table[red | green << 8 | blue << 16] = class_id
    return table


@cache
def _default_table() -> ColourTable:
    return colour_table({entry.colour: entry.id for entry in CLASSES})


def count_colours(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Counter[Colour]:
    """Count the pixels of each colour in an image; grey g counts as colour (g, g, g).

    Raises:
        ImageError: If the image cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    load(opened)
    packed, pixels = np.unique(_pack(opened), return_counts=True)
    return Counter(dict(zip(map(_unpack, packed.tolist()), pixels.tolist(), strict=True)))


def _unpack(packed: int) -> Colour:
    return packed & 255, packed >> 8 & 255, packed >> 16


def _pack(opened: pillow.Image) -> NDArray[np.uint32]:
    """Return the packed colour of each pixel, r + 256 g + 65536 b, shape (H, W), dtype uint32."""
    four = np.ascontiguousarray(opened.convert("RGB").convert("RGBX"))
    return four.view(np.dtype("<u4"))[..., 0] & np.uint32(0xFFFFFF)


def _lookup_rgb(opened: pillow.Image, table: ColourTable | None) -> Mask:
    if opened.mode == "RGBA":
        if opened.getchannel("A").getextrema() != (255, 255):
            raise errors.MaskError("Mask has transparent pixels. Save it without an alpha channel.")
    elif opened.mode != "RGB" and (table is None or opened.mode != "L"):
        raise errors.MaskError(
            f"Mask has mode {opened.mode!r}; a colour mask must be a palette or RGB image. "
            "If its values are class ids, use --truth ids."
        )
    return (_default_table() if table is None else table)[_pack(opened)]


def _lookup_palette(opened: pillow.Image, table: ColourTable | None = None) -> Mask:
    """Map palette indices to class ids by the colours of the palette."""
    flat = opened.getpalette("RGB") or []
    palette = np.zeros((256, 3), dtype=np.uint32)
    entries = np.array(flat, dtype=np.uint32).reshape(-1, 3)
    palette[: len(entries)] = entries
    by_index = (_default_table() if table is None else table)[palette[:, 0] | palette[:, 1] << 8 | palette[:, 2] << 16]
    by_index[len(entries) :] = _UNKNOWN
    ids: Mask = by_index[np.asarray(opened)]
    return ids


def _unknown_colours(opened: pillow.Image, mask: Mask) -> list[UnknownColour]:
    """List the colours of pixels without a class, most frequent first."""
    indices = np.flatnonzero(mask.ravel() == _UNKNOWN)
    packed, first, counts = np.unique(_pack(opened).ravel()[indices], return_index=True, return_counts=True)
    width = mask.shape[1]
    unknown = [
        UnknownColour(_unpack(int(c)), int(n), int(p) % width, int(p) // width)
        for c, n, p in zip(packed, counts, indices[first], strict=True)
    ]
    return sorted(unknown, key=lambda item: (-item.pixels, item.colour))
