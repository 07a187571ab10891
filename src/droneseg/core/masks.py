"""Decode masks from class colours or class ids, and encode them as palette PNG."""

import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core import errors
from droneseg.core.classes import BACKGROUND_ID, ClassTable
from droneseg.core.images import DEFAULT_MAX_PIXELS, load, open_image

Mask: TypeAlias = NDArray[np.uint8]
"""Class ids, shape (H, W), dtype uint8. In true masks, the ignore label of the class table stands for no label."""

Colour: TypeAlias = tuple[int, int, int]
"""RGB, each 0-255."""

ColourTable: TypeAlias = NDArray[np.uint8]
"""Class id by packed colour (r + 256 g + 65536 b), shape (2**24,), dtype uint8; 255 where no class has that colour."""

MaskKind: TypeAlias = Literal["colours", "ids", "labels"]
MaskFormat: TypeAlias = Literal["colours", "ids"]
"""Format of written masks: palette PNG of class colours, or 8-bit grey PNG of class ids, as nnU-Net reads them."""
UnknownPolicy: TypeAlias = Literal["fail", "background"]

_UNKNOWN = 255
_GREY_OPTIONS = {suffix: {"compression": "tiff_adobe_deflate"} for suffix in (".tif", ".tiff")}
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
    table: ColourTable,
    *,
    unknown: UnknownPolicy = "fail",
    grey: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> tuple[Mask, list[UnknownColour]]:
    """Decode a colour-coded mask. Palette images are decoded by colour, never by palette index.

    Args:
        data: Content of a losslessly compressed palette or RGB image (PNG, BMP, TIFF, lossless WebP).
        table: Class id by colour, such as `class_colours`.
        unknown: Handling of colours that belong to no class: "fail" raises an error, "background" maps them to
            background.
        grey: Whether grey images are also accepted; grey g counts as colour (g, g, g).
        max_pixels: Maximum width x height.

    Returns:
        Class ids, shape (H, W), dtype uint8, and the unknown colours that became background.

    Raises:
        UnknownColoursError: If the mask contains colours of no class and `unknown` is "fail"; the message lists them.
        MaskError: If the image is a JPEG, is grey and `grey` is false, or has transparent pixels.
        ImageError: If the image cannot be decoded.
    """
    opened = open_image(data, max_pixels=max_pixels)
    if opened.format in ("JPEG", "MPO"):
        raise errors.MaskError("Mask is a JPEG; lossy compression changes its colours. Use PNG.")
    load(opened)
    mask = _lookup_palette(opened, table) if opened.mode == "P" else _lookup_rgb(opened, table, grey=grey)
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


def decode_ids(
    data: bytes, classes: ClassTable, *, ignored: Collection[int] = (), max_pixels: int = DEFAULT_MAX_PIXELS
) -> Mask:
    """Decode a mask whose pixel values (grey) or palette indices are class ids.

    Args:
        data: Content of an image file.
        classes: Class table of the mask.
        ignored: Values of pixels that have no label; they become the ignore label of the class table.
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
        by_colour = _lookup_palette(opened, class_colours(classes))
        if (by_colour != _UNKNOWN).all() and (by_colour != mask).any():
            raise errors.MaskError(
                "Mask is ambiguous: its palette contains class colours, but its values are other class ids. "
                "Read it as a colour mask, or save it as a grey image of class ids."
            )
    without_label = np.isin(mask, list(ignored)) if ignored else np.zeros(mask.shape, bool)
    invalid = (mask >= len(classes)) & ~without_label
    if invalid.any():
        values, counts = np.unique(mask[invalid], return_counts=True)
        shown = ", ".join(f"{value} on {count:,} pixels" for value, count in zip(values[:5], counts[:5], strict=True))
        raise errors.InvalidIdsError(f"Mask contains values that are not class ids (0-{len(classes) - 1}): {shown}.")
    mask[without_label] = classes.ignore_label
    return mask


def read_mask(path: Path, kind: MaskKind, classes: ClassTable, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
    """Read a mask from a file of class colours, class ids, or nnU-Net's labels. Error messages start with the path.

    Only nnU-Net's labels may contain the ignore label.
    """
    try:
        data = path.read_bytes()
        if kind != "colours":
            ignored = (classes.ignore_label,) if kind == "labels" else ()
            return decode_ids(data, classes, ignored=ignored, max_pixels=max_pixels)
        return decode_colours(data, class_colours(classes), max_pixels=max_pixels)[0]
    except errors.DronesegError as error:
        raise type(error)(f"{path}: {error}") from error


def encode_mask(mask: Mask, classes: ClassTable, mask_format: MaskFormat = "colours", *, suffix: str = ".png") -> bytes:
    """Encode class ids as a PNG; as grey ids, also as another format that nnU-Net reads.

    Args:
        mask: Class ids, shape (H, W), dtype uint8.
        classes: Class table of the mask.
        mask_format: "colours": palette image, index = class id, palette = class colours; "ids": grey image.
        suffix: Suffix of the file of a grey image: .png, .bmp, .tif or .tiff.

    Returns:
        Content of the file; the pixel values are class ids, and `convert("RGB")` of a palette image gives the class
        colours. Equal masks give equal bytes.

    Raises:
        InvalidIdsError: If a value is not a class id.
    """
    _require_ids_below(mask, len(classes))
    if mask_format == "ids":
        return encode_grey_ids(mask, suffix=suffix)
    return encode_palette(mask, [entry.colour for entry in classes])


def encode_palette(mask: Mask, colours: Sequence[Colour]) -> bytes:
    """Encode values as a palette PNG.

    Args:
        mask: Values, shape (H, W), dtype uint8.
        colours: Colour of each value.

    Raises:
        InvalidIdsError: If a value has no colour.
    """
    _require_ids_below(mask, len(colours))
    picture = pillow.fromarray(np.ascontiguousarray(mask))
    picture.putpalette([channel for colour in colours for channel in colour])
    return _png(picture)


def _require_ids_below(mask: Mask, limit: int) -> None:
    if mask.max(initial=0) >= limit:
        raise errors.InvalidIdsError(f"Mask contains {int(mask.max())}; the largest class id is {limit - 1}.")


def encode_grey_ids(mask: Mask, *, suffix: str = ".png") -> bytes:
    """Encode class ids as a grey PNG, BMP or TIFF, by the suffix of its file: the formats of nnU-Net's labels."""
    picture = pillow.fromarray(np.ascontiguousarray(mask))
    if suffix.lower() == ".png":
        return _png(picture)
    buffer = BytesIO()
    picture.save(buffer, format=pillow.registered_extensions()[suffix.lower()], **_GREY_OPTIONS.get(suffix.lower(), {}))
    return buffer.getvalue()


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


@lru_cache(maxsize=4)
def class_colours(classes: ClassTable) -> ColourTable:
    """Return the look-up table from packed colour to class id of a class table."""
    return colour_table({entry.colour: entry.id for entry in classes})


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


def _lookup_rgb(opened: pillow.Image, table: ColourTable, *, grey: bool) -> Mask:
    if opened.mode == "RGBA":
        if opened.getchannel("A").getextrema() != (255, 255):
            raise errors.MaskError("Mask has transparent pixels. Save it without an alpha channel.")
    elif opened.mode != "RGB" and not (grey and opened.mode == "L"):
        raise errors.MaskError(
            f"Mask has mode {opened.mode!r}; a colour mask must be a palette or RGB image. "
            "If its values are class ids, use --truth ids."
        )
    return table[_pack(opened)]


def _lookup_palette(opened: pillow.Image, table: ColourTable) -> Mask:
    """Map palette indices to class ids by the colours of the palette."""
    flat = opened.getpalette("RGB") or []
    palette = np.zeros((256, 3), dtype=np.uint32)
    entries = np.array(flat, dtype=np.uint32).reshape(-1, 3)
    palette[: len(entries)] = entries
    by_index = table[palette[:, 0] | palette[:, 1] << 8 | palette[:, 2] << 16]
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
