"""Cast shadows of clouds, trees and buildings, which darken the ground and do not change its class."""

import numpy as np

from droneseg.core.errors import optional_import
from droneseg.data.shapes import Field, Size, blur, draw_outline, fractal_noise, smooth_noise, smooth_step
from droneseg.data.textures import Pixels

with optional_import("opencv-python-headless", "train"):
    import cv2

FREQUENCIES = {"cloud": 0.22, "trees": 0.33, "dappled": 0.2, "building": 0.15, "rows": 0.1}
"""Relative frequency of each kind of shadow."""


def cast_shadow(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Darken an image with a random shadow, and sometimes warm the lit part as low sun does.

    Args:
        pixels: RGB, shape (H, W, 3), dtype float32.
        rng: Random generator.

    Returns:
        The image with a shadow, same shape and dtype.
    """
    shade = draw_shadow(rng, pixels.shape[:2])
    darkness = rng.uniform(0.3, 0.7)
    # sunlight is missing in a shadow and bluish skylight remains
    light = (1 - darkness) * np.array((1 - 0.12 * rng.random(), 1.0, 1 + 0.25 * rng.random()), dtype=np.float32)
    sun = np.ones(3, dtype=np.float32)
    if rng.random() < 0.25:
        sun = np.array((1.05, 1.0, rng.uniform(0.84, 0.96)), dtype=np.float32)
    return np.asarray(pixels * (sun + shade[..., None] * (light - sun)), dtype=np.float32)


def draw_shadow(rng: np.random.Generator, size: Size) -> Field:
    """Return a random shadow, 1 in full shadow and 0 in the light; shape (H, W), dtype float32."""
    weights = np.array(list(FREQUENCIES.values()))
    kind = rng.choice(list(FREQUENCIES), p=weights / weights.sum())
    drawers = {"cloud": _cloud, "trees": _trees, "dappled": _dappled, "building": _building, "rows": _rows}
    return np.asarray(np.clip(drawers[str(kind)](rng, size), 0, 1), dtype=np.float32)


def _cloud(rng: np.random.Generator, size: Size) -> Field:
    """Return a large shadow with a soft edge."""
    side = min(size)
    distance = draw_outline(rng, size, kinds={"shore": 2, "pond": 1, "band": 1}).distance
    distance = distance + np.float32(0.08 * side) * fractal_noise(rng, size, side * rng.uniform(0.2, 0.6), octaves=3)
    soft = side * rng.uniform(0.03, 0.25)
    return smooth_step(distance, -soft, soft)


def _trees(rng: np.random.Generator, size: Size) -> Field:
    """Return the shadows of crowns, with leafy edges and holes."""
    side = min(size)
    distance = np.full(size, -1e4, dtype=np.float32)
    ys, xs = np.ogrid[: size[0], : size[1]]
    place, spread = (rng.uniform(0, size[1]), rng.uniform(0, size[0])), side * rng.uniform(0.1, 0.6)
    for _ in range(int(rng.integers(1, 9))):
        radius = side * rng.uniform(0.05, 0.3)
        x, y = place[0] + rng.normal(0, spread), place[1] + rng.normal(0, spread)
        distance = np.maximum(distance, (radius - np.hypot(xs - x, ys - y)).astype(np.float32))
    leaves = fractal_noise(rng, size, side * rng.uniform(0.04, 0.12), octaves=5, persistence=0.65)
    distance = distance + np.float32(side * rng.uniform(0.015, 0.05)) * leaves
    soft = max(1.0, side * rng.uniform(0.001, 0.008))
    return smooth_step(distance, -soft, soft)


def _dappled(rng: np.random.Generator, size: Size) -> Field:
    """Return light that falls through leaves: blurred spots in a shadow."""
    side = min(size)
    inside = _cloud(rng, size) if rng.random() < 0.6 else np.ones(size, dtype=np.float32)
    leaves = fractal_noise(rng, size, side * rng.uniform(0.02, 0.09), octaves=4, persistence=0.6)
    clumps = smooth_noise(rng, size, side * rng.uniform(0.15, 0.4))
    low = rng.uniform(-1.0, 0.4)
    soft = rng.uniform(0.15, 0.8)
    return np.asarray(inside * smooth_step(leaves + np.float32(0.6) * clumps, low, low + soft), dtype=np.float32)


def _building(rng: np.random.Generator, size: Size) -> Field:
    """Return the shadow of straight walls and roofs."""
    side, shade = min(size), np.zeros(size, dtype=np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        angle, centre = rng.uniform(0, 180), (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
        lengths = (side * rng.uniform(0.1, 0.9), side * rng.uniform(0.05, 0.45))
        corners = cv2.boxPoints((centre, lengths, angle)).round().astype(np.int32)
        cv2.fillPoly(shade, [corners], 255, cv2.LINE_AA)
    return blur(shade.astype(np.float32) / np.float32(255), side * rng.uniform(0.0005, 0.006))


def _rows(rng: np.random.Generator, size: Size) -> Field:
    """Return long parallel shadows in low sun: of trunks, poles, a fence or a lattice."""
    side, shade = min(size), np.zeros(size, dtype=np.uint8)
    angle, length = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.3, 1.5)
    width, gap = max(1, round(side * rng.uniform(0.004, 0.04))), side * rng.uniform(0.04, 0.2)
    start = np.array((rng.uniform(0, size[1]), rng.uniform(0, size[0])))
    row = np.array((np.cos(angle + rng.uniform(0.6, 2.5)), np.sin(angle + rng.uniform(0.6, 2.5)))) * gap
    for step in range(int(rng.integers(2, 14))):
        root = start + step * row * rng.uniform(0.8, 1.2)
        tip = root + length * rng.uniform(0.6, 1.2) * np.array((np.cos(angle), np.sin(angle)))
        ends = [tuple(int(value) for value in np.rint(point)) for point in (root, tip)]
        cv2.line(shade, ends[0], ends[1], 255, width, cv2.LINE_AA)
    return blur(shade.astype(np.float32) / np.float32(255), side * rng.uniform(0.001, 0.006))
