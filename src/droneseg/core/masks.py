"""Decode colour or id masks, encode palette PNG."""

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

from droneseg.core.classes import BACKGROUND_ID, CLASSES, colours
from droneseg.core.errors import (
    DronesegError,
    InvalidIdsError,
    MaskError,
    UnknownColoursError,
)
from droneseg.core.images import DEFAULT_MAX_PIXELS, load, open_image

Mask: TypeAlias = NDArray[np.uint8]
"""Class ids, shape (H, W), dtype uint8."""

Colour: TypeAlias = tuple[int, int, int]
"""RGB, each 0-255."""

ColourTable: TypeAlias = NDArray[np.uint8]
"""Class id by packed colour (r + 256 g + 65536 b), shape (2**24,), dtype uint8; 255 where no class has that colour."""

MaskKind: TypeAlias = Literal["colours", "ids"]
UnknownPolicy: TypeAlias = Literal["fail", "background"]

_UNKNOWN = 255
_SHOWN_COLOURS = 5


@dataclass(frozen=True)
class UnknownColour:
    """A colour of no class, found in a mask.

    Attributes:
        colour: RGB, each 0-255.
        pixels: How many pixels have it.
        x: Column of the first one, counted row by row.
        y: Row of the first one.
    """

    colour: Colour
    pixels: int
    x: int
    y: int

    def __str__(self) -> str:
        """Say which colour, how often, and where first."""
        return f"{self.colour} on {self.pixels:,} pixels, first at x={self.x} y={self.y}"


def decode_colours(
    data: bytes,
    *,
    unknown: UnknownPolicy = "fail",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    table: ColourTable | None = None,
) -> tuple[Mask, list[UnknownColour]]:
    """Decode a colour-coded mask; only its colours count, never the indices of its palette.

    Args:
        data: The bytes of a palette or RGB image without loss (PNG, BMP, TIFF, lossless WebP).
        unknown: What to do with colours of no class: fail, or make them background.
        max_pixels: Largest width x height accepted.
        table: Other colours than the classes' own; a grey image then has colours of three equal parts.

    Returns:
        Class ids, shape (H, W), dtype uint8, and the colours that were made background.

    Raises:
        UnknownColoursError: If there are colours of no class and `unknown` is "fail"; all are named and counted.
        MaskError: If the image is grey without a table, has see-through pixels, or is a JPEG.
        ImageError: If it cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    if opened.format in ("JPEG", "MPO"):
        raise MaskError("Mask is a JPEG, whose compression changes colours. Use PNG.")
    load(opened)
    mask = _lookup_palette(opened, table) if opened.mode == "P" else _lookup_rgb(opened, table)
    if mask.max(initial=0) != _UNKNOWN:
        return mask, []
    found = _unknown_colours(opened, mask)
    if unknown == "fail":
        shown = "; ".join(str(item) for item in found[:_SHOWN_COLOURS])
        more = f"; and {len(found) - _SHOWN_COLOURS:,} more" if len(found) > _SHOWN_COLOURS else ""
        raise UnknownColoursError(f"Mask has {len(found):,} unknown colours: {shown}{more}.")
    mask[mask == _UNKNOWN] = BACKGROUND_ID
    return mask, found


def decode_ids(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
    """Decode a mask whose pixel values (grey) or palette indices are class ids.

    Raises:
        InvalidIdsError: If a value is no class id; such values are named and counted.
        MaskError: If the image has more than one channel, or a palette of class colours that contradicts its values.
        ImageError: If it cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    load(opened)
    if opened.mode not in ("P", "L"):
        raise MaskError(f"Mask of ids must be grey or palette, not {opened.mode!r}. Is it a colour mask?")
    mask = np.array(opened)
    if opened.mode == "P":
        by_colour = _lookup_palette(opened)
        if (by_colour != _UNKNOWN).all() and (by_colour != mask).any():
            raise MaskError(
                "Mask could be read either way: its palette shows class colours, and its values are other class ids. "
                "Declare it as colours, or save it as grey ids."
            )
    if mask.max(initial=0) >= len(CLASSES):
        values, counts = np.unique(mask[mask >= len(CLASSES)], return_counts=True)
        shown = ", ".join(f"{value} on {count:,} pixels" for value, count in zip(values[:5], counts[:5], strict=True))
        raise InvalidIdsError(f"Mask has values that are no class id (0-{len(CLASSES) - 1}): {shown}.")
    return mask


def read_mask(path: Path, kind: MaskKind, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
    """Read a mask by its colours or by its ids; an error's message begins with the path."""
    try:
        data = path.read_bytes()
        if kind == "ids":
            return decode_ids(data, max_pixels=max_pixels)
        return decode_colours(data, max_pixels=max_pixels)[0]
    except DronesegError as error:
        raise type(error)(f"{path}: {error}") from error


def encode_mask(mask: Mask) -> bytes:
    """Encode class ids as a palette PNG: index = class id, palette = class colours.

    Args:
        mask: Class ids, shape (H, W), dtype uint8.

    Returns:
        PNG bytes; `convert("RGB")` shows the colours, the raw array holds the ids. Equal masks give equal bytes.

    Raises:
        InvalidIdsError: If a value is no class id.
    """
    if mask.max(initial=0) >= len(CLASSES):
        raise InvalidIdsError(f"Mask holds {int(mask.max())}; class ids end at {len(CLASSES) - 1}.")
    picture = pillow.fromarray(np.ascontiguousarray(mask))
    picture.putpalette(colours().tobytes())
    return _png(picture)


def encode_grey_ids(mask: Mask) -> bytes:
    """Encode class ids as a grey PNG, the form of nnU-Net's labels."""
    return _png(pillow.fromarray(np.ascontiguousarray(mask)))


def _png(picture: pillow.Image) -> bytes:
    buffer = BytesIO()
    # only runs of equal bytes are looked for: as fast as the lowest level of zlib's own search, and a fifth smaller
    picture.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def colour_table(ids: Mapping[Colour, int]) -> ColourTable:
    """Return the table that says which colour is which class."""
    table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
    for (red, green, blue), class_id in ids.items():
        table[red | green << 8 | blue << 16] = class_id
    return table


@cache
def _own_table() -> ColourTable:
    return colour_table({entry.colour: entry.id for entry in CLASSES})


def count_colours(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Counter[Colour]:
    """Count the pixels of each colour of an image; grey counts as a colour of three equal parts.

    Raises:
        ImageError: If it cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    load(opened)
    packed, pixels = np.unique(_pack(opened), return_counts=True)
    return Counter(dict(zip(map(_unpack, packed.tolist()), pixels.tolist(), strict=True)))


def _unpack(packed: int) -> Colour:
    return packed & 255, packed >> 8 & 255, packed >> 16


def _pack(opened: pillow.Image) -> NDArray[np.uint32]:
    """Colour of each pixel as one number, r + 256 g + 65536 b, shape (H, W)."""
    four = np.ascontiguousarray(opened.convert("RGB").convert("RGBX"))
    return four.view(np.dtype("<u4"))[..., 0] & np.uint32(0xFFFFFF)


def _lookup_rgb(opened: pillow.Image, table: ColourTable | None) -> Mask:
    if opened.mode == "RGBA":
        if opened.getchannel("A").getextrema() != (255, 255):
            raise MaskError("Mask has see-through pixels. Save it without alpha.")
    elif opened.mode != "RGB" and (table is None or opened.mode != "L"):
        raise MaskError(
            f"Mask is {opened.mode!r}, not a colour mask (palette or RGB). "
            "If its values are ids, declare them so (--truth ids)."
        )
    return (_own_table() if table is None else table)[_pack(opened)]


def _lookup_palette(opened: pillow.Image, table: ColourTable | None = None) -> Mask:
    """Translate palette indices through the palette's colours: 256 look-ups build the table for all pixels."""
    flat = opened.getpalette("RGB") or []
    palette = np.zeros((256, 3), dtype=np.uint32)
    entries = np.array(flat, dtype=np.uint32).reshape(-1, 3)
    palette[: len(entries)] = entries
    by_index = (_own_table() if table is None else table)[palette[:, 0] | palette[:, 1] << 8 | palette[:, 2] << 16]
    by_index[len(entries) :] = _UNKNOWN
    ids: Mask = by_index[np.asarray(opened)]
    return ids


def _unknown_colours(opened: pillow.Image, mask: Mask) -> list[UnknownColour]:
    """List the colours of the pixels that have no class, most frequent first."""
    places = np.flatnonzero(mask.ravel() == _UNKNOWN)
    packed, first, counts = np.unique(_pack(opened).ravel()[places], return_index=True, return_counts=True)
    width = mask.shape[1]
    found = [
        UnknownColour(_unpack(int(c)), int(n), int(p) % width, int(p) // width)
        for c, n, p in zip(packed, counts, places[first], strict=True)
    ]
    return sorted(found, key=lambda item: (-item.pixels, item.colour))
