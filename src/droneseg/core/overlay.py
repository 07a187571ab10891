"""Overlays: masks drawn over their images, with a legend of the classes."""

from collections.abc import Mapping

import numpy as np
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from droneseg.core.classes import CLASSES, colours
from droneseg.core.errors import ShapeMismatchError
from droneseg.core.images import Image
from droneseg.core.masks import Mask

_OPACITY = 0.45


def blend(image: Image, mask: Mask, *, opacity: float = _OPACITY) -> Image:
    """Tint an image by class and draw the borders between classes in full colour.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        mask: Class ids, shape (H, W), dtype uint8.
        opacity: Weight of the class colour, 0 to 1.

    Returns:
        RGB, shape (H, W, 3), dtype uint8.

    Raises:
        ShapeMismatchError: If image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ShapeMismatchError(
            f"Image is {image.shape[1]}x{image.shape[0]}, mask is {mask.shape[1]}x{mask.shape[0]}. "
            "Use the mask of this image."
        )
    tint = colours()[mask]
    mixed = (image * (1 - opacity) + tint * opacity).astype(np.uint8)
    border = np.zeros(mask.shape, dtype=bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    mixed[border] = tint[border]
    return mixed


def draw_overlay(image: Image, mask: Mask, class_fractions: Mapping[str, float], *, caption: str = "") -> Image:
    """Blend a mask over its image and append a legend of the classes that occur, with their shares of the image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        mask: Class ids, shape (H, W), dtype uint8.
        class_fractions: Share of pixels by class name, 0 to 1.
        caption: Line of text below the legend.

    Returns:
        RGB, shape (H + legend, W, 3), dtype uint8.
    """
    blended = blend(image, mask)
    width = blended.shape[1]
    size = max(11, min(28, width // 40))
    font = ImageFont.load_default(size)
    labels = [
        (entry.colour, f"{entry.name} {class_fractions[entry.name]:.1%}")
        for entry in CLASSES
        if class_fractions.get(entry.name, 0) > 0
    ]
    rows = _flow([font.getlength(text) + 2.2 * size for _, text in labels], width - size)
    row_height = int(size * 1.6)
    height = row_height * (max(rows, default=0) + 1 + bool(caption)) + size // 2
    legend = pillow.new("RGB", (width, height), (24, 24, 27))
    draw = ImageDraw.Draw(legend)
    x, last_row = size // 2, 0
    for (colour, text), row in zip(labels, rows, strict=True):
        x = size // 2 if row != last_row else x
        last_row = row
        y = size // 4 + row * row_height
        draw.rectangle((x, y + 2, x + size, y + size + 2), fill=colour, outline=(255, 255, 255))
        draw.text((x + 1.4 * size, y), text, fill=(240, 240, 240), font=font)
        x += int(font.getlength(text) + 2.2 * size)
    if caption:
        draw.text((size // 2, height - row_height), caption, fill=(170, 170, 175), font=font)
    return np.vstack([blended, np.asarray(legend)])


def _flow(widths: list[float], limit: float) -> list[int]:
    """Return the row of each item when items of these widths flow from left to right within `limit` pixels."""
    rows, row, used = [], 0, 0.0
    for item in widths:
        if used and used + item > limit:
            row, used = row + 1, 0.0
        rows.append(row)
        used += item
    return rows
