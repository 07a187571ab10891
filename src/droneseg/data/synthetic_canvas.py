"""Canvas and textures of generated scenes."""

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
"""Boolean mask of a region, shape (H, W)."""
Field = NDArray[np.float32]
"""One value per pixel, shape (H, W), dtype float32."""

_TRIES = 8

# Similar tints occur on most surfaces, so that colour alone does not reveal the class.
_EARTHS = ((0.36, 0.43, 0.20), (0.46, 0.46, 0.26), (0.44, 0.36, 0.24), (0.28, 0.38, 0.20), (0.52, 0.48, 0.32))
_STONES = ((0.52, 0.51, 0.50), (0.56, 0.51, 0.45), (0.50, 0.41, 0.37), (0.38, 0.39, 0.41), (0.45, 0.46, 0.40))
_WATERS = ((0.18, 0.42, 0.52), (0.20, 0.37, 0.40), (0.27, 0.38, 0.41), (0.24, 0.42, 0.46), (0.34, 0.46, 0.54))


@dataclass
class Canvas:
    """Image and mask of a scene seen from above, to paint on.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        rng: Random generator of the scene.
        sun: Offset (x, y) of a shadow in pixels per metre of height.
        metre: Pixels per metre.
        pixels: RGB, shape (H, W, 3), dtype float32, nominally 0 to 1.
        mask: Class ids, shape (H, W), dtype uint8.
    """

    width: int
    height: int
    rng: np.random.Generator
    sun: tuple[float, float]
    metre: float
    pixels: Pixels = field(init=False)
    mask: Mask = field(init=False)

    def __post_init__(self) -> None:
        """Create a black image and a mask that is all background."""
        self.pixels = np.zeros((self.height, self.width, 3), dtype=np.float32)
        self.mask = np.full((self.height, self.width), BACKGROUND_ID, dtype=np.uint8)

    def paint(self, region: Region, texture: Pixels, class_id: int) -> None:
        """Paint a region with a texture, shape (H, W, 3), and set its class."""
        self.pixels[region] = texture[region]
        self.mask[region] = class_id

    def shade(self, region: Region, height_m: float, strength: float = 0.5) -> None:
        """Darken the shadow of an object that covers `region` and is `height_m` high, without changing classes."""
        dx, dy = (round(component * height_m) for component in self.sun)
        shadow = shift(region, dx, dy) & ~region
        self.pixels[shadow] *= 1 - strength

    def everywhere(self) -> Region:
        """Return a region with all pixels."""
        return np.ones((self.height, self.width), dtype=bool)

    def polygon(self, points: list[tuple[float, float]]) -> Region:
        """Return the region inside a polygon with corners (x, y)."""
        region = pillow.new("1", (self.width, self.height))
        ImageDraw.Draw(region).polygon(points, fill=1)
        return np.array(region)

    def rectangle(self, x: float, y: float, length: float, width: float, angle: float) -> Region:
        """Return a rectangle centred at (x, y), rotated by `angle` radians."""
        return self.polygon(corners(x, y, length, width, angle))

    def ellipse(self, x: float, y: float, a: float, b: float, angle: float) -> Region:
        """Return an ellipse centred at (x, y) with semi-axes `a` and `b`, rotated by `angle` radians."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        u, v = a * np.cos(angles), b * np.sin(angles)
        return self.polygon(_rotate(x, y, u, v, angle))

    def blob(self, x: float, y: float, radius: float, roughness: float = 0.25) -> Region:
        """Return a rounded, irregular region centred at (x, y)."""
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radii = np.ones_like(angles)
        for wave in range(2, 7):
            radii += self.rng.normal(0, roughness / wave) * np.cos(wave * angles + self.rng.uniform(0, 6.28))
        radii = radius * np.clip(radii, 0.35, 1.8)
        return self.polygon(_rotate(x, y, radii * np.cos(angles), radii * np.sin(angles), 0.0))

    def band(self, points: list[tuple[float, float]], width: float) -> Region:
        """Return a band, `width` pixels wide, along a line through `points`."""
        region = pillow.new("1", (self.width, self.height))
        ImageDraw.Draw(region).line(points, fill=1, width=max(1, round(width)), joint="curve")
        return np.array(region)

    def random_point(self, margin: float = 0.0, avoid: int | None = None) -> tuple[float, float]:
        """Return a random point (x, y), `margin` or more pixels from the border, preferably not on class `avoid`."""
        margin = min(margin, self.width / 2.5, self.height / 2.5)
        for _ in range(_TRIES):
            x = float(self.rng.uniform(margin, self.width - margin))
            y = float(self.rng.uniform(margin, self.height - margin))
            if self.mask[int(y), int(x)] != avoid:
                break
        return x, y


def corners(x: float, y: float, length: float, width: float, angle: float) -> list[tuple[float, float]]:
    """Return the four corners (x, y) of a rotated rectangle."""
    u = np.array([-1, 1, 1, -1]) * length / 2
    v = np.array([-1, -1, 1, 1]) * width / 2
    return _rotate(x, y, u, v, angle)


def shift(region: Region, dx: int, dy: int) -> Region:
    """Return a region shifted by (dx, dy) pixels; pixels shifted in from outside are False."""
    moved = np.zeros_like(region)
    height, width = region.shape
    if abs(dx) >= width or abs(dy) >= height:
        return moved
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = region[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def _rotate(
    x: float, y: float, u: NDArray[np.float64], v: NDArray[np.float64], angle: float
) -> list[tuple[float, float]]:
    c, s = np.cos(angle), np.sin(angle)
    return [(float(x + a * c - b * s), float(y + a * s + b * c)) for a, b in zip(u, v, strict=True)]


def noise(canvas: Canvas, cell: float) -> Field:
    """Return smooth noise of mean 0 and standard deviation 1 that varies over about `cell` pixels."""
    rows = max(2, round(canvas.height / cell) + 2)
    columns = max(2, round(canvas.width / cell) + 2)
    grid = canvas.rng.normal(size=(rows, columns)).astype(np.float32)
    scaled_up = pillow.fromarray(grid).resize((canvas.width, canvas.height), pillow.Resampling.BICUBIC)
    values = np.asarray(scaled_up)
    scaled: Field = (values - values.mean()) / (values.std() + 1e-6)
    return scaled


def grain(canvas: Canvas) -> Field:
    """Return independent noise per pixel, of mean 0 and standard deviation 1."""
    return canvas.rng.standard_normal((canvas.height, canvas.width), dtype=np.float32)


def coordinates(canvas: Canvas, angle: float) -> tuple[Field, Field]:
    """Return the coordinates (u, v) of all pixels in metres, along a direction and perpendicular to it."""
    y, x = np.mgrid[: canvas.height, : canvas.width].astype(np.float32) / canvas.metre
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def tinted(canvas: Canvas, tints: tuple[tuple[float, float, float], ...], spread: float = 0.06) -> NDArray[np.float32]:
    """Return a random tint, slightly varied, at a random brightness."""
    tint = np.array(tints[canvas.rng.integers(len(tints))], dtype=np.float32)
    tint = tint + canvas.rng.normal(0, spread, 3).astype(np.float32)
    bright: NDArray[np.float32] = np.clip(tint * canvas.rng.uniform(0.8, 1.2), 0.05, 0.95).astype(np.float32)
    return bright


def _coloured(tint: NDArray[np.float32], value: Field) -> Pixels:
    return (tint * (1 + value)[..., None]).astype(np.float32)


def lawn(canvas: Canvas) -> Pixels:
    """Return a lawn: fine grain, tufts and worn patches."""
    value = 0.13 * grain(canvas) + 0.13 * noise(canvas, 0.25 * canvas.metre) + 0.08 * noise(canvas, 2 * canvas.metre)
    pixels = _coloured(tinted(canvas, _EARTHS), value)
    worn = np.clip(noise(canvas, 3 * canvas.metre) - 0.8, 0, 1)[..., None]
    mixed: Pixels = pixels * (1 - 0.3 * worn) + 0.3 * worn * tinted(canvas, _EARTHS)
    return mixed


def soil(canvas: Canvas) -> Pixels:
    """Return soil: noise at every scale."""
    value = 0.10 * grain(canvas) + 0.22 * noise(canvas, 0.25 * canvas.metre) + 0.10 * noise(canvas, 0.8 * canvas.metre)
    return _coloured(tinted(canvas, _EARTHS), value)


def foliage(canvas: Canvas) -> Pixels:
    """Return foliage: bright tufts with dark gaps."""
    tufts = noise(canvas, 0.45 * canvas.metre)
    value = 0.40 * np.tanh(1.5 * tufts) + 0.16 * noise(canvas, 0.12 * canvas.metre) + 0.06 * grain(canvas)
    return _coloured(tinted(canvas, _EARTHS), value)


def paving(canvas: Canvas) -> Pixels:
    """Return paving: slabs of different shades with joints."""
    u, v = coordinates(canvas, canvas.rng.uniform(0, np.pi))
    size = canvas.rng.uniform(0.5, 1.1)
    row = np.floor(v / size)
    u = u + (row % 2) * size * canvas.rng.uniform(0, 0.5)
    column = np.floor(u / size)
    shades = canvas.rng.normal(0, 0.05, 4096).astype(np.float32)
    value = shades[(row * 57 + column * 131).astype(np.int64) % 4096] + 0.02 * grain(canvas)
    joint = (np.minimum(u % size, v % size) < 0.07).astype(np.float32)
    return _coloured(tinted(canvas, _STONES), value - 0.32 * joint)


def asphalt(canvas: Canvas) -> Pixels:
    """Return asphalt: an even colour with fine grain and large stains."""
    value = 0.03 * grain(canvas) + 0.05 * noise(canvas, 3 * canvas.metre)
    return _coloured(tinted(canvas, _STONES), value)


def tiles(canvas: Canvas, angle: float) -> Pixels:
    """Return a texture of roof tiles in rows along a direction."""
    u, v = coordinates(canvas, angle)
    value = 0.22 * np.sin(2 * np.pi * v / 0.5) + 0.04 * np.sign(np.sin(2 * np.pi * u / 0.6)) + 0.02 * grain(canvas)
    return _coloured(tinted(canvas, _STONES), value.astype(np.float32))


def water(canvas: Canvas, ripple_m: float) -> Pixels:
    """Return water: curved ripples of the given wavelength in metres, with glints on their crests."""
    u, _ = coordinates(canvas, canvas.rng.uniform(0, np.pi))
    bend = 0.5 * noise(canvas, 1.5 * canvas.metre)
    crest = np.sin(2 * np.pi * u / ripple_m + 2.5 * bend) * np.clip(0.7 + 0.5 * noise(canvas, 2 * canvas.metre), 0, 2)
    pixels = _coloured(tinted(canvas, _WATERS, 0.04), (0.14 * crest + 0.05 * bend).astype(np.float32))
    glints = np.clip(crest - 1.15, 0, 1)[..., None] * canvas.rng.uniform(0.3, 0.9)
    shining: Pixels = (pixels + glints).astype(np.float32)
    return shining


def painted(canvas: Canvas, colour: NDArray[np.float32]) -> Pixels:
    """Return a uniform colour with slight grain, such as painted metal, plaster or cloth."""
    return _coloured(colour, 0.02 * grain(canvas))
