"""Overlays: masks drawn over their images, with a legend of the classes, a caption and the warnings."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.classes import ClassTable, Role
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
_BEST_INK: Colour = (255, 255, 255)
_OTHER_INK: Colour = (205, 205, 210)
_HALO_INK: Colour = _BACKGROUND
_SPELLINGS = str.maketrans(
    {"Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "o", "ł": "l"}
)
_SOURCES = {
    "argument": "given",
    "georeference": "from the georeference",
    "laser": "from the laser rangefinder",
    "height": "height above ground",
}


@dataclass(frozen=True)
class Hatching:
    """Hatching of landing zones in overlays; the web page uses it, too.

    Attributes:
        stripes: Number of stripes along the longer side.
        min_period: Smallest distance between two stripes, in pixels.
        period_in_widths: Distance between two stripes, in widths of a stripe.
        ground_opacity: Opacity between the stripes, as a factor of the opacity of other classes.
        stripe_opacity: Opacity of the stripes, as the same factor.
    """

    stripes: int = 60
    min_period: int = 8
    period_in_widths: int = 6
    ground_opacity: float = 0.4
    stripe_opacity: float = 1.4


HATCHING = Hatching()


def blend(image: Image, mask: Mask, classes: ClassTable, *, opacity: float = _OPACITY) -> Image:
    """Tint an image by class and draw the borders between classes in full colour.

    Landing zones are hatched and more transparent than other classes, so that the ground stays visible.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        mask: Class ids, shape (H, W), dtype uint8.
        classes: Class table of the mask.
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
    index = _hatched(mask, classes).astype(np.uint16) * 256
    for channel, table in enumerate(_mixing_tables(classes, opacity)):
        mixed[..., channel] = table[index + image[..., channel]]
    border = np.zeros(mask.shape, dtype=bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    mixed[border] = classes.display_colours()[mask[border]]
    return mixed


def _hatched(mask: Mask, classes: ClassTable) -> Mask:
    """Return a mask in which stripes of each landing zone have the id of its class plus the number of classes."""
    height, width = mask.shape
    period = max(HATCHING.min_period, max(height, width) // HATCHING.stripes)
    diagonal = np.arange(height, dtype=np.int32)[:, None] + np.arange(width, dtype=np.int32)
    in_stripe = diagonal % period < max(1, period // HATCHING.period_in_widths)
    striped = np.isin(mask, classes.ids_of(Role.LANDING)) & in_stripe
    hatched: Mask = mask + np.uint8(len(classes)) * striped
    return hatched


def _mixing_tables(classes: ClassTable, opacity: float) -> NDArray[np.uint8]:
    """Return the mixed value of each channel, class or its stripes, and pixel value, shape (3, 2 x C x 256)."""
    weights = np.full((2 * len(classes), 1), opacity)
    weights[list(classes.ids_of(Role.LANDING))] *= HATCHING.ground_opacity
    weights[len(classes) :] = min(1.0, opacity * HATCHING.stripe_opacity)
    tints = np.tile(classes.display_colours(), (2, 1))
    mixed = (np.arange(256) * (1 - weights) + tints.T[..., None] * weights).astype(np.uint8)
    return np.reshape(mixed, (3, -1))


def draw_overlay(
    image: Image,
    mask: Mask,
    classes: ClassTable,
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
        classes: Class table of the mask.
        class_fractions: Share of pixels by class name, 0 to 1.
        caption: Text below the legend; it is wrapped.
        warnings: Warnings below the caption, in words; each begins a new line and is wrapped.

    Returns:
        RGB, shape (H + legend, W, 3), dtype uint8.
    """
    blended = blend(image, mask, classes)
    height, width = mask.shape
    labels = [
        (classes.display_colour(entry.id), f"{entry.name} {class_fractions[entry.name]:.1%}")
        for entry in classes
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
        prediction.classes,
        prediction.class_fractions,
        caption=" | ".join(filter(None, [*parts, describe_ground(prediction.ground)])),
        warnings=[warning.message for warning in prediction.warnings],
    )


@dataclass(frozen=True)
class Ring:
    """A landing site to draw, in pixels of the image.

    Attributes:
        x: Column of the centre.
        y: Row of the centre.
        radius: Radius of the disc.
        outer_radius: Radius of the largest disc around the same centre that keeps the clearances.
        label: Text beside it.
    """

    x: float
    y: float
    radius: float
    outer_radius: float
    label: str


def draw_sites(image: Image, prediction: Prediction, rings: Sequence[Ring], message: str, *, name: str = "") -> Image:
    """Draw landing sites over an image and its mask, with the legend, caption and warnings of `draw_prediction`.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        prediction: Prediction for this image.
        rings: Sites, best first; the best one is drawn in white.
        message: The decision in words, for the caption.
        name: Name of the image for the caption.
    """
    height, width = image.shape[:2]
    drawn = draw_prediction(image, prediction, name=" | ".join(filter(None, [name, message])))
    canvas = pillow.fromarray(drawn)
    draw = ImageDraw.Draw(canvas)
    line = max(2, max(height, width) // 400)
    font = ImageFont.load_default(max(12, max(height, width) // 50))
    inks = [_BEST_INK if number == 0 else _OTHER_INK for number in range(len(rings))]
    for ring, ink in reversed(list(zip(rings, inks, strict=True))):
        for radius, thick in ((ring.outer_radius, line), (ring.radius, 2 * line)):
            for margin, colour in ((line / 2, _HALO_INK), (0, ink)):
                outside = radius + margin
                box = (ring.x - outside, ring.y - outside, ring.x + outside, ring.y + outside)
                draw.ellipse(box, outline=colour, width=thick + round(2 * margin))
    for ring, ink in zip(rings, inks, strict=True):
        draw.text(
            (ring.x, ring.y), ring.label, fill=ink, font=font, anchor="mm", stroke_width=line, stroke_fill=_HALO_INK
        )
    return np.asarray(canvas)


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
    labels, texts = ([(ink, _drawable(text)) for ink, text in part] for part in (labels, texts))
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


def _drawable(text: str) -> str:
    """Return a text in ASCII, as Pillow's font has few other letters: without accents, and with ? for unknown ones."""
    plain = unicodedata.normalize("NFKD", text.translate(_SPELLINGS))
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


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
