"""What surfaces look like from above. Colours of different surfaces overlap on purpose: structure tells them apart."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.data.synthetic.canvas import Canvas, Pixels

Field = NDArray[np.float32]
"""One value per pixel, shape (H, W)."""

# Tints that occur on nearly every surface, so that colour gives little away.
_EARTHS = ((0.36, 0.43, 0.20), (0.46, 0.46, 0.26), (0.44, 0.36, 0.24), (0.28, 0.38, 0.20), (0.52, 0.48, 0.32))
_STONES = ((0.52, 0.51, 0.50), (0.56, 0.51, 0.45), (0.50, 0.41, 0.37), (0.38, 0.39, 0.41), (0.45, 0.46, 0.40))
_WATERS = ((0.18, 0.42, 0.52), (0.20, 0.37, 0.40), (0.27, 0.38, 0.41), (0.24, 0.42, 0.46), (0.34, 0.46, 0.54))


def noise(canvas: Canvas, cell: float) -> Field:
    """Return smooth random values of mean 0 and deviation 1 that vary over about `cell` pixels."""
    rows = max(2, round(canvas.height / cell) + 2)
    columns = max(2, round(canvas.width / cell) + 2)
    grid = canvas.rng.normal(size=(rows, columns)).astype(np.float32)
    grown = pillow.fromarray(grid).resize((canvas.width, canvas.height), pillow.Resampling.BICUBIC)
    values = np.asarray(grown)
    scaled: Field = (values - values.mean()) / (values.std() + 1e-6)
    return scaled


def grain(canvas: Canvas) -> Field:
    """Return an independent random value per pixel, mean 0 and deviation 1."""
    return canvas.rng.standard_normal((canvas.height, canvas.width), dtype=np.float32)


def coordinates(canvas: Canvas, angle: float) -> tuple[Field, Field]:
    """Return the pixel coordinates (u, v) in metres along a direction and across it."""
    y, x = np.mgrid[: canvas.height, : canvas.width].astype(np.float32) / canvas.metre
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def tinted(canvas: Canvas, tints: tuple[tuple[float, float, float], ...], spread: float = 0.06) -> NDArray[np.float32]:
    """Return one of the tints, a little changed, at a random brightness."""
    tint = np.array(tints[canvas.rng.integers(len(tints))], dtype=np.float32)
    tint = tint + canvas.rng.normal(0, spread, 3).astype(np.float32)
    bright: NDArray[np.float32] = np.clip(tint * canvas.rng.uniform(0.8, 1.2), 0.05, 0.95).astype(np.float32)
    return bright


def _coloured(tint: NDArray[np.float32], value: Field) -> Pixels:
    return (tint * (1 + value)[..., None]).astype(np.float32)


def lawn(canvas: Canvas) -> Pixels:
    """Blades as fine grain, clumps and worn patches over it."""
    value = 0.13 * grain(canvas) + 0.13 * noise(canvas, 0.25 * canvas.metre) + 0.08 * noise(canvas, 2 * canvas.metre)
    pixels = _coloured(tinted(canvas, _EARTHS), value)
    worn = np.clip(noise(canvas, 3 * canvas.metre) - 0.8, 0, 1)[..., None]
    mixed: Pixels = pixels * (1 - 0.3 * worn) + 0.3 * worn * tinted(canvas, _EARTHS)
    return mixed


def soil(canvas: Canvas) -> Pixels:
    """Clods: rough at every scale."""
    value = 0.10 * grain(canvas) + 0.22 * noise(canvas, 0.25 * canvas.metre) + 0.10 * noise(canvas, 0.8 * canvas.metre)
    return _coloured(tinted(canvas, _EARTHS), value)


def foliage(canvas: Canvas) -> Pixels:
    """Leaves: dark gaps between bright tufts."""
    tufts = noise(canvas, 0.45 * canvas.metre)
    value = 0.40 * np.tanh(1.5 * tufts) + 0.16 * noise(canvas, 0.12 * canvas.metre) + 0.06 * grain(canvas)
    return _coloured(tinted(canvas, _EARTHS), value)


def paving(canvas: Canvas) -> Pixels:
    """Slabs with joints, each slab a shade of its own."""
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
    """Even, with a fine grain and broad stains."""
    value = 0.03 * grain(canvas) + 0.05 * noise(canvas, 3 * canvas.metre)
    return _coloured(tinted(canvas, _STONES), value)


def tiles(canvas: Canvas, angle: float) -> Pixels:
    """Rows of roof tiles along `angle`, brighter on the side of the sun."""
    u, v = coordinates(canvas, angle)
    value = 0.22 * np.sin(2 * np.pi * v / 0.5) + 0.04 * np.sign(np.sin(2 * np.pi * u / 0.6)) + 0.02 * grain(canvas)
    return _coloured(tinted(canvas, _STONES), value.astype(np.float32))


def water(canvas: Canvas, ripple_m: float) -> Pixels:
    """Smooth, with bent ripples of the given length and glints on their crests."""
    u, _ = coordinates(canvas, canvas.rng.uniform(0, np.pi))
    bend = 0.5 * noise(canvas, 1.5 * canvas.metre)
    crest = np.sin(2 * np.pi * u / ripple_m + 2.5 * bend) * np.clip(0.7 + 0.5 * noise(canvas, 2 * canvas.metre), 0, 2)
    pixels = _coloured(tinted(canvas, _WATERS, 0.04), (0.14 * crest + 0.05 * bend).astype(np.float32))
    glints = np.clip(crest - 1.15, 0, 1)[..., None] * canvas.rng.uniform(0.3, 0.9)
    shining: Pixels = (pixels + glints).astype(np.float32)
    return shining


def painted(canvas: Canvas, colour: NDArray[np.float32]) -> Pixels:
    """One even colour with hardly any grain: metal, plaster, cloth."""
    return _coloured(colour, 0.02 * grain(canvas))
