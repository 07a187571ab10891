"""Smooth noise and random outlines of rivers, ponds and shores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import optional_import

with optional_import("opencv-python-headless", "train"):
    import cv2

Field = NDArray[np.float32]
"""One value per pixel, shape (H, W), dtype float32."""
Size = tuple[int, int]
"""Height and width in pixels."""

_LARGEST_GRID = 512
_CUBIC_DEVIATION = 0.866  # standard deviation of normal random values after cubic interpolation
_LARGEST_CELL = 4.0  # warpAffine rounds positions to 1/32 cell, which shows as steps in larger cells
_CURVE_POINTS = 4096
_EVERYWHERE = 1e4


@dataclass(frozen=True)
class Outline:
    """Outline of an area, as a signed distance.

    Attributes:
        distance: Approximate distance to the outline in pixels, positive inside, shape (H, W), dtype float32.
        angle: Direction of a band in radians, for currents and ripples; random for other shapes.
        kind: "band", "pond", "shore", "basin" or "frame".
    """

    distance: Field
    angle: float
    kind: str


def smooth_noise(
    rng: np.random.Generator, size: Size, cell: float, *, angle: float = 0.0, stretch: float = 1.0
) -> Field:
    """Return interpolated random values with mean 0 and standard deviation 1.

    Args:
        rng: Random generator.
        size: Height and width.
        cell: Distance of the random values in pixels.
        angle: Direction in which the cells are stretched, in radians.
        stretch: Length of a cell divided by its width.
    """
    height, width = size
    reduction = max(1.0, cell / _LARGEST_CELL)
    small = (int(np.ceil(height / reduction)) + 2, int(np.ceil(width / reduction)) + 2)
    across, along = reduction / cell, reduction / (cell * stretch)
    cells = int(min(_LARGEST_GRID, np.hypot(*small) * across + 4))
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    cosine, sine = np.cos(angle), np.sin(angle)
    offset = rng.uniform(0, cells, 2)
    matrix = np.array([[cosine * along, sine * along, offset[0]], [-sine * across, cosine * across, offset[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    noise: Field = np.asarray(
        cv2.warpAffine(grid, matrix, small[::-1], flags=flags, borderMode=cv2.BORDER_WRAP), np.float32
    )
    noise /= np.float32(_CUBIC_DEVIATION)
    if reduction > 1:
        scaled = (round(small[1] * reduction), round(small[0] * reduction))
        noise = np.asarray(cv2.resize(noise, scaled, interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    return np.asarray(noise[:height, :width], dtype=np.float32)


def fractal_noise(
    rng: np.random.Generator,
    size: Size,
    cell: float,
    *,
    octaves: int = 4,
    persistence: float = 0.5,
    angle: float = 0.0,
    stretch: float = 1.0,
) -> Field:
    """Return the sum of noises whose cells halve in size, with mean 0 and standard deviation 1.

    Args:
        rng: Random generator.
        size: Height and width.
        cell: Largest cell in pixels; cells below 2 pixels are left out.
        octaves: Maximum number of noises.
        persistence: Amplitude of a noise relative to that with cells of twice the size.
        angle: Direction in which the cells are stretched, in radians.
        stretch: Length of a cell divided by its width.
    """
    total = np.zeros(size, dtype=np.float32)
    power = 0.0
    for octave in range(octaves):
        if octave and cell / 2**octave < 2:
            break
        weight = persistence**octave
        total += weight * smooth_noise(rng, size, cell / 2**octave, angle=angle, stretch=stretch)
        power += weight**2
    return total / np.float32(np.sqrt(power))


def smooth_step(values: Field, low: float, high: float) -> Field:
    """Return 0 below `low`, 1 above `high` and a smooth transition in between (Hermite)."""
    t = values * np.float32(1 / (high - low))
    t -= np.float32(low / (high - low))
    np.clip(t, 0, 1, out=t)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def blur(values: Field, sigma: float) -> Field:
    """Return values smoothed with a Gaussian of `sigma` pixels; a wide one is computed at a lower resolution."""
    if sigma < 0.3:
        return values
    if sigma <= 6:
        return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma))
    height, width = values.shape
    factor = sigma / 3
    small = (max(2, round(width / factor)), max(2, round(height / factor)))
    reduced = cv2.GaussianBlur(cv2.resize(values, small, interpolation=cv2.INTER_AREA), (0, 0), 3)
    return np.asarray(cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC))


def distance_inside(inside: NDArray[np.bool_]) -> Field:
    """Return the distance of each pixel to the outline of an area, in pixels; 0 outside the area."""
    if inside.all():
        return np.full(inside.shape, _EVERYWHERE, dtype=np.float32)
    return np.asarray(cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3), dtype=np.float32)


def draw_outline(rng: np.random.Generator, size: Size, *, kinds: dict[str, float] | None = None) -> Outline:
    """Draw a random outline.

    Args:
        rng: Random generator.
        size: Height and width.
        kinds: Relative frequency of each kind of outline; None for all kinds.
    """
    frequencies = kinds or FREQUENCIES
    weights = np.array(list(frequencies.values()), dtype=float)
    kind = str(rng.choice(list(frequencies), p=weights / weights.sum()))
    angle = float(rng.uniform(0, np.pi))
    return Outline(_DRAWERS[kind](rng, size, angle), angle, kind)


def _coordinates(size: Size, angle: float, origin: tuple[float, float]) -> tuple[Field, Field]:
    """Return coordinates along and across a direction, in pixels from an origin (x, y)."""
    ys, xs = np.ogrid[: size[0], : size[1]]
    x, y = (xs - origin[0]).astype(np.float32), (ys - origin[1]).astype(np.float32)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cosine + y * sine, y * cosine - x * sine


def _curve(rng: np.random.Generator, points: int) -> NDArray[np.float32]:
    """Return a smooth random curve through `points` values, with mean 0 and standard deviation 1."""
    values = rng.standard_normal((1, max(4, points)), dtype=np.float32)
    curve = cv2.resize(values, (_CURVE_POINTS, 1), interpolation=cv2.INTER_CUBIC)[0]
    return np.asarray((curve - curve.mean()) / (curve.std() + 1e-6), dtype=np.float32)


def _random_point(rng: np.random.Generator, size: Size, margin: float) -> tuple[float, float]:
    return float(rng.uniform(margin, 1 - margin) * size[1]), float(rng.uniform(margin, 1 - margin) * size[0])


def _band(rng: np.random.Generator, size: Size, angle: float) -> Field:
    """Return a band across the whole image: straight or bending, narrow or wide."""
    side, diagonal = min(size), float(np.hypot(*size))
    along, across = _coordinates(size, angle, _random_point(rng, size, 0.15))
    position = np.clip((along / (2.4 * diagonal) + 0.5) * _CURVE_POINTS, 0, _CURVE_POINTS - 1).astype(np.int32)
    half = side * float(np.exp(rng.uniform(np.log(0.02), np.log(0.25))))
    bends = int(rng.integers(4, 14))
    sway = half * rng.uniform(0, 1.2) + side * rng.uniform(0, 0.14) if rng.random() < 0.75 else 0.0
    centre = _curve(rng, bends) * np.float32(sway)
    width = half * np.exp(np.float32(rng.uniform(0.05, 0.3)) * _curve(rng, bends + 6))
    slope = np.gradient(centre) * _CURVE_POINTS / (2.4 * diagonal)
    narrow = (1 / np.sqrt(1 + slope**2)).astype(np.float32)
    distance = (width[position] - np.abs(across - centre[position])) * narrow[position]
    return np.asarray(distance, dtype=np.float32)


def _pond(rng: np.random.Generator, size: Size, angle: float) -> Field:
    """Return a pond: an ellipse with a wavy outline, or the irregular contour of a hill of noise."""
    side = min(size)
    radius = side * float(np.exp(rng.uniform(np.log(0.07), np.log(0.5))))
    stretch = rng.uniform(1, 2.2)
    along, across = _coordinates(size, angle, _random_point(rng, size, 0.05))
    distance = radius - np.hypot(along / np.float32(stretch), across)
    waves = fractal_noise(rng, size, radius * rng.uniform(0.5, 1.2), octaves=2)
    return np.asarray(distance + np.float32(radius * rng.uniform(0.05, 0.35)) * waves, dtype=np.float32)


def _shore(rng: np.random.Generator, size: Size, angle: float) -> Field:
    """Return one side or one corner of the image."""
    side = min(size)
    turned = angle + (np.pi if rng.random() < 0.5 else 0.0)
    _, across = _coordinates(size, turned, _random_point(rng, size, 0.1))
    waves = fractal_noise(rng, size, side * rng.uniform(0.15, 0.6), octaves=3)
    return np.asarray(across + np.float32(side * rng.uniform(0.01, 0.09)) * waves, dtype=np.float32)


def _basin(rng: np.random.Generator, size: Size, angle: float) -> Field:
    """Return a rectangle with rounded corners: a basin or a canal."""
    side = min(size)
    half_width = side * rng.uniform(0.05, 0.25)
    half_length = half_width * rng.uniform(1, 3) if rng.random() < 0.6 else 4.0 * side
    corner = half_width * rng.uniform(0, 0.5)
    along, across = _coordinates(size, angle, _random_point(rng, size, 0.1))
    x, y = np.abs(along) - np.float32(half_length - corner), np.abs(across) - np.float32(half_width - corner)
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    return np.asarray(corner - outside - np.minimum(np.maximum(x, y), 0), dtype=np.float32)


def _frame(_rng: np.random.Generator, size: Size, _angle: float) -> Field:
    """Return the whole image."""
    return np.full(size, _EVERYWHERE, dtype=np.float32)


_DRAWERS: dict[str, Callable[[np.random.Generator, Size, float], Field]] = {
    "band": _band,
    "pond": _pond,
    "shore": _shore,
    "basin": _basin,
    "frame": _frame,
}
FREQUENCIES = {"band": 0.5, "pond": 0.22, "shore": 0.16, "basin": 0.06, "frame": 0.06}
"""Relative frequency of each kind of outline."""
