"""Overlays: masks drawn over their images, with a legend of the classes, a caption and the warnings."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.classes import CLASSES, colours
from droneseg.core.errors import ShapeMismatchError
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.prediction import Prediction

Colour: TypeAlias = tuple[int, int, int]

_OPACITY = 0.45
_BACKGROUND: Colour = (24, 24, 27)
_LABEL_INK: Colour = (240, 240, 240)
_CAPTION_INK: Colour = (190, 190, 195)
_WARNING_INK: Colour = (250, 204, 21)
_SOURCES = {
    "argument": "given",
    "georeference": "from the georeference",
    "laser": "from the laser rangefinder",
    "height": "height above ground",
}


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
    mixed = np.empty_like(image)
    index = mask.astype(np.uint16) * 256
    for channel, table in enumerate(_mixing_tables(opacity)):
        mixed[..., channel] = table[index + image[..., channel]]
    border = np.zeros(mask.shape, dtype=bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    mixed[border] = colours()[mask[border]]
    return mixed


def _mixing_tables(opacity: float) -> NDArray[np.uint8]:
    """Return the mixed value of each channel, class and pixel value, shape (3, C x 256)."""
    values, tints = np.arange(256) * (1 - opacity), colours().T[..., None] * opacity
    return (values + tints).astype(np.uint8).reshape(3, -1)


def draw_overlay(
    image: Image,
    mask: Mask,
    class_fractions: Mapping[str, float],
    *,
    caption: str = "",
    warnings: Sequence[str] = (),
) -> Image:
    """Blend a mask over its image and append a legend of the classes that occur, with their shares of the image.

    The size of the text grows with the image, so that the text is readable when the overlay is fitted to a screen.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        mask: Class ids, shape (H, W), dtype uint8.
        class_fractions: Share of pixels by class name, 0 to 1.
        caption: Text below the legend; it is wrapped.
        warnings: Warnings below the caption, in words; each begins a new line and is wrapped.

    Returns:
        RGB, shape (H + legend, W, 3), dtype uint8.
    """
    blended = blend(image, mask)
    height, width = mask.shape
    labels = [
        (entry.colour, f"{entry.name} {class_fractions[entry.name]:.1%}")
        for entry in CLASSES
        if class_fractions.get(entry.name, 0) > 0
    ]
    texts = [(_CAPTION_INK, caption)] if caption else []
    texts += [(_WARNING_INK, f"Warning: {warning}") for warning in warnings]
    size = max(11, min(max(height, width) // 56, width // 20))
    return np.vstack([blended, _draw_legend(width, size, labels, texts)])


def draw_prediction(image: Image, prediction: Prediction, *, name: str = "") -> Image:
    """Draw a prediction over its image, with its confidence, ground resolution and warnings; see `draw_overlay`.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        prediction: Prediction for this image.
        name: Name of the image for the caption.
    """
    parts = [name, f"confidence {prediction.confidence:.1%}", f"model {prediction.model_id}"]
    return draw_overlay(
        image,
        prediction.mask,
        prediction.class_fractions,
        caption=" | ".join(filter(None, [*parts, describe_ground(prediction.ground)])),
        warnings=[warning.message for warning in prediction.warnings],
    )


def describe_ground(ground: Ground) -> str:
    """Return the ground resolution and its source in words; empty if it is not known."""
    if ground.gsd_m is None:
        return ""
    takeoff = ground.source == "height" and WarningCode.HEIGHT_ABOVE_TAKEOFF in ground.warnings
    source = "height above take-off" if takeoff else _SOURCES.get(ground.source, ground.source)
    resolution = f"{100 * ground.gsd_m:.2g} cm" if ground.gsd_m < 1 else f"{ground.gsd_m:.1f} m"
    return f"{resolution} per pixel ({source})"


def _draw_legend(
    width: int, size: int, labels: Sequence[tuple[Colour, str]], texts: Sequence[tuple[Colour, str]]
) -> Image:
    """Draw labels with colour squares, and wrapped texts below them.

    Args:
        width: Width of the legend in pixels.
        size: Height of the font in pixels.
        labels: Colour of the square, and label.
        texts: Colour and text.
    """
    font = ImageFont.load_default(size)
    margin, row_height = size // 2, int(size * 1.6)
    rows = _flow([font.getlength(text) + 2.2 * size for _, text in labels], width - size)
    lines = [(ink, line) for ink, text in texts for line in _wrap(text, font, width - 2 * margin)]
    first_line = max(rows, default=-1) + 1
    legend = pillow.new("RGB", (width, row_height * (first_line + len(lines)) + margin), _BACKGROUND)
    draw = ImageDraw.Draw(legend)
    x, last_row = margin, 0
    for (colour, text), row in zip(labels, rows, strict=True):
        x = margin if row != last_row else x
        last_row = row
        y = size // 4 + row * row_height
        draw.rectangle((x, y + 2, x + size, y + size + 2), fill=colour, outline=(255, 255, 255))
        draw.text((x + 1.4 * size, y), text, fill=_LABEL_INK, font=font)
        x += int(font.getlength(text) + 2.2 * size)
    for row, (ink, line) in enumerate(lines, start=first_line):
        draw.text((margin, size // 4 + row * row_height), line, fill=ink, font=font)
    return np.asarray(legend)


def _flow(widths: list[float], limit: float) -> list[int]:
    """Return the row of each item when items of these widths flow from left to right within `limit` pixels."""
    rows, row, used = [], 0, 0.0
    for item in widths:
        if used and used + item > limit:
            row, used = row + 1, 0.0
        rows.append(row)
        used += item
    return rows


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, limit: float) -> list[str]:
    """Return the lines of a text that is at most `limit` pixels wide; longer words have lines of their own."""
    words = text.split()
    rows = _flow([font.getlength(f"{word} ") for word in words], limit)
    return [" ".join(word for word, at in zip(words, rows, strict=True) if at == row) for row in sorted(set(rows))]
