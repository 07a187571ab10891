"""A scene being painted: pixels and class ids change together, so that the mask is exact."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw

from droneseg.core.classes import BACKGROUND_ID
from droneseg.core.masks import Mask

Pixels = NDArray[np.float32]
"""RGB, shape (H, W, 3), dtype float32, nominally 0 to 1."""
Region = NDArray[np.bool_]
"""Which pixels belong, shape (H, W)."""

_TRIES = 8


@dataclass
class Canvas:
    """Painted surface of a scene seen from above.

    Attributes:
        width: Pixels.
        height: Pixels.
        rng: Source of every random choice.
        sun: Shadow offset (x, y) in pixels per metre of height.
        metre: Pixels per metre.
        pixels: RGB, shape (H, W, 3), float32.
        mask: Class ids, shape (H, W), uint8.
    """

    width: int
    height: int
    rng: np.random.Generator
    sun: tuple[float, float]
    metre: float
    pixels: Pixels = field(init=False)
    mask: Mask = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing: black pixels of class background."""
        self.pixels = np.zeros((self.height, self.width, 3), dtype=np.float32)
        self.mask = np.full((self.height, self.width), BACKGROUND_ID, dtype=np.uint8)

    def paint(self, region: Region, texture: Pixels, class_id: int) -> None:
        """Cover `region` with `texture`, shape (H, W, 3), and give it the class."""
        self.pixels[region] = texture[region]
        self.mask[region] = class_id

    def shade(self, region: Region, height_m: float, strength: float = 0.5) -> None:
        """Darken where something of this height over `region` throws its shadow; the class stays."""
        dx, dy = (round(component * height_m) for component in self.sun)
        shadow = shift(region, dx, dy) & ~region
        self.pixels[shadow] *= 1 - strength

    def everywhere(self) -> Region:
        """Return the region of all pixels."""
        return np.ones((self.height, self.width), dtype=bool)

    def polygon(self, points: list[tuple[float, float]]) -> Region:
        """Return the inside of a polygon given as (x, y) corners."""
        picture = pillow.new("1", (self.width, self.height))
        ImageDraw.Draw(picture).polygon(points, fill=1)
        return np.array(picture)

    def rectangle(self, x: float, y: float, length: float, width: float, angle: float) -> Region:
        """Return a rectangle around (x, y), turned by `angle` radians."""
        return self.polygon(corners(x, y, length, width, angle))

    def ellipse(self, x: float, y: float, a: float, b: float, angle: float) -> Region:
        """Return an ellipse around (x, y) with half axes `a` and `b`, turned by `angle` radians."""
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        u, v = a * np.cos(turns), b * np.sin(turns)
        return self.polygon(_turned(x, y, u, v, angle))

    def blob(self, x: float, y: float, radius: float, roughness: float = 0.25) -> Region:
        """Return a rounded, irregular region around (x, y)."""
        turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radii = np.ones_like(turns)
        for wave in range(2, 7):
            radii += self.rng.normal(0, roughness / wave) * np.cos(wave * turns + self.rng.uniform(0, 6.28))
        radii = radius * np.clip(radii, 0.35, 1.8)
        return self.polygon(_turned(x, y, radii * np.cos(turns), radii * np.sin(turns), 0.0))

    def band(self, points: list[tuple[float, float]], width: float) -> Region:
        """Return a stripe of `width` pixels along a line through `points`."""
        picture = pillow.new("1", (self.width, self.height))
        ImageDraw.Draw(picture).line(points, fill=1, width=max(1, round(width)), joint="curve")
        return np.array(picture)

    def place(self, margin: float = 0.0, avoid: int | None = None) -> tuple[float, float]:
        """Return a random (x, y), at least `margin` pixels from the border and, if it can be, not on class `avoid`."""
        margin = min(margin, self.width / 2.5, self.height / 2.5)
        for _ in range(_TRIES):
            x = float(self.rng.uniform(margin, self.width - margin))
            y = float(self.rng.uniform(margin, self.height - margin))
            if self.mask[int(y), int(x)] != avoid:
                break
        return x, y


def corners(x: float, y: float, length: float, width: float, angle: float) -> list[tuple[float, float]]:
    """Return the four corners (x, y) of a turned rectangle."""
    u = np.array([-1, 1, 1, -1]) * length / 2
    v = np.array([-1, -1, 1, 1]) * width / 2
    return _turned(x, y, u, v, angle)


def shift(region: Region, dx: int, dy: int) -> Region:
    """Return `region` moved by (dx, dy) pixels, empty where nothing came from."""
    moved = np.zeros_like(region)
    height, width = region.shape
    if abs(dx) >= width or abs(dy) >= height:
        return moved
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = region[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def _turned(
    x: float, y: float, u: NDArray[np.float64], v: NDArray[np.float64], angle: float
) -> list[tuple[float, float]]:
    c, s = np.cos(angle), np.sin(angle)
    return [(float(x + a * c - b * s), float(y + a * s + b * c)) for a, b in zip(u, v, strict=True)]
