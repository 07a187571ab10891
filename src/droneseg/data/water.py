"""Generated water: body colour, shallows, ripples, reflections, glare and plants, seen from above."""

from dataclasses import dataclass

import numpy as np

from droneseg.core.errors import optional_import
from droneseg.data.shapes import Field, Outline, Size, blur, distance_inside, fractal_noise, smooth_noise, smooth_step
from droneseg.data.textures import Pixels, blur_pixels, recolour

with optional_import("opencv-python-headless", "train"):
    import cv2

Colour = tuple[float, float, float]
"""RGB, 0 to 255."""

# Body colours: a dark, peaty or deep river; a river with sediment; glacial or chalky water; algae; clear water; a river
# or lake under a grey sky.
COLOURS: dict[str, tuple[Colour, ...]] = {
    "dark": ((20, 18, 16), (30, 23, 20), (40, 28, 24), (27, 31, 26), (21, 26, 30), (45, 42, 37), (33, 34, 36)),
    "brown": ((92, 74, 50), (118, 95, 66), (70, 55, 41), (140, 118, 84), (104, 92, 70)),
    "milky": ((165, 172, 160), (148, 163, 168), (172, 163, 138), (130, 158, 154)),
    "green": ((44, 58, 34), (60, 78, 46), (76, 90, 60), (40, 55, 49), (88, 102, 62), (70, 80, 58)),
    "blue": ((40, 58, 82), (60, 88, 116), (70, 110, 128), (32, 66, 88), (88, 136, 154)),
    "grey": ((84, 90, 92), (110, 115, 118), (60, 64, 66), (134, 139, 141)),
}
FREQUENCIES = {"dark": 0.38, "brown": 0.14, "milky": 0.07, "green": 0.19, "blue": 0.09, "grey": 0.13}
"""Relative frequency of each group of body colours."""
SKIES: tuple[Colour, ...] = ((150, 170, 190), (120, 150, 185), (200, 205, 210), (170, 176, 182), (140, 145, 150))
CANOPIES: tuple[Colour, ...] = ((24, 34, 18), (34, 46, 22), (20, 24, 18), (44, 54, 30))
PLANTS: tuple[Colour, ...] = ((108, 138, 58), (84, 112, 46), (134, 150, 74), (70, 96, 50))


@dataclass(frozen=True)
class Surface:
    """Area of water to render.

    Attributes:
        ground: Image below the water, RGB, shape (H, W, 3), dtype float32.
        cover: Opacity of the water, 0 to 1, shape (H, W), dtype float32.
        outline: Outline of the water.
        exposure: Brightness of the photograph relative to a well exposed one.
        detail: Unit of length of small details such as ripples, in pixels.
        side: Shorter side of the photograph in pixels, of which the surface may be a part.
    """

    ground: Pixels
    cover: Field
    outline: Outline
    exposure: float
    detail: float
    side: int

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.cover.shape[0], self.cover.shape[1]


def render_water(
    surface: Surface, rng: np.random.Generator, *, group: str | None = None, texture: Pixels | None = None
) -> Pixels:
    """Render water over the whole of a surface.

    Args:
        surface: Area of water.
        rng: Random generator.
        group: Group of body colours, a key of `COLOURS`; None for a random one.
        texture: Texture of real water, shape (H, W, 3), dtype float32, to use instead of a generated one.

    Returns:
        RGB, shape (H, W, 3), dtype float32; the caller blends it with the ground.
    """
    body = _body_colour(group or _draw_group(rng), rng) * np.float32(surface.exposure)
    if texture is not None:
        water = _tinted_texture(texture, body, rng)
    else:
        water = _body(surface, body, rng)
        water = _add_reflections(water, surface, rng)
        water = _add_ripples(water, surface, rng)
    water = _add_shallows(water, surface, rng)
    water = _add_bank_shade(water, surface, rng)
    if rng.random() < (0.22 if surface.outline.kind == "pond" else 0.07):
        water = _add_plants(water, surface, rng)
    if rng.random() < 0.3:
        water = _add_specks(water, surface, rng)
    return np.asarray(water + rng.normal(0, rng.uniform(0.6, 2.5), (*surface.size, 1)).astype(np.float32))


def _draw_group(rng: np.random.Generator) -> str:
    weights = np.array(list(FREQUENCIES.values()))
    return str(rng.choice(list(FREQUENCIES), p=weights / weights.sum()))


def _body_colour(group: str, rng: np.random.Generator) -> Pixels:
    """Return a body colour of a group, slightly varied, shape (3,)."""
    colour = np.array(COLOURS[group][int(rng.integers(len(COLOURS[group])))])
    varied = colour * rng.uniform(0.75, 1.25) * rng.normal(1, 0.04, 3) + rng.normal(0, 2, 3)
    return np.clip(varied, 4, 235).astype(np.float32)


def _mix(pixels: Pixels, colour: Pixels | Colour, weight: Field) -> Pixels:
    """Blend pixels with a colour by a weight from 0 to 1."""
    return np.asarray(pixels + weight[..., None] * (np.asarray(colour, dtype=np.float32) - pixels), dtype=np.float32)


def _body(surface: Surface, body: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the body of the water: its colour, varied by depth, current and sediment."""
    size, side = surface.size, surface.side
    tint = body * rng.normal(1, 0.08, 3).astype(np.float32) * np.float32(rng.uniform(0.8, 1.3))
    stretch = rng.uniform(2, 6) if surface.outline.kind == "band" else rng.uniform(1, 2)
    drift = fractal_noise(
        rng, size, side * rng.uniform(0.1, 0.5), octaves=3, angle=surface.outline.angle, stretch=stretch
    )
    water = _mix(np.broadcast_to(body, (*size, 3)).astype(np.float32), tint, smooth_step(drift, -1.5, 1.5))
    shade = smooth_noise(rng, size, side * rng.uniform(0.3, 1)) * np.float32(rng.uniform(0.01, 0.1))
    return np.asarray(water * (1 + shade[..., None]), dtype=np.float32)


def _add_reflections(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Add reflections of sky, clouds and of trees on one bank. They are weak where the camera looks straight down."""
    size, side = surface.size, surface.side
    sky = np.array(SKIES[int(rng.integers(len(SKIES)))], dtype=np.float32) * np.float32(surface.exposure)
    if rng.random() < 0.5:  # the further from the nadir, the more sky
        ramp = fractal_noise(rng, size, side * rng.uniform(0.5, 1.5), octaves=1)
        water = _mix(water, sky, smooth_step(ramp, -1.8, 2.2) * np.float32(rng.uniform(0.03, 0.45)))
    if rng.random() < 0.3:
        clouds = fractal_noise(rng, size, side * rng.uniform(0.15, 0.5), octaves=4)
        low = rng.uniform(-0.3, 0.8)
        water = _mix(water, sky * 1.1, smooth_step(clouds, low, low + 1.4) * np.float32(rng.uniform(0.08, 0.5)))
    if rng.random() < 0.3 and surface.outline.kind != "frame":
        canopy = np.array(CANOPIES[int(rng.integers(len(CANOPIES)))], dtype=np.float32) * np.float32(surface.exposure)
        edge = fractal_noise(rng, size, surface.detail * rng.uniform(8, 25), octaves=4, persistence=0.6)
        near = _near_bank(surface, rng.uniform(0.04, 0.2) * side, rng.uniform(0, 2 * np.pi)) + np.float32(0.22) * edge
        water = _mix(water, canopy, smooth_step(near, 0.35, 0.65) * np.float32(rng.uniform(0.4, 0.9)))
    return water


def _near_bank(surface: Surface, reach: float, direction: float) -> Field:
    """Return how near each pixel is to the bank in one direction: 1 at the bank, 0 at `reach` pixels from it."""
    shift = np.array([[1, 0, reach * np.cos(direction)], [0, 1, reach * np.sin(direction)]])
    height, width = surface.size
    moved = cv2.warpAffine(surface.cover, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return blur(np.asarray(1 - moved, dtype=np.float32), reach / 4)


def _add_ripples(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Add ripples that reflect the bright and the dark side of the sky, with wind patches and glare."""
    if rng.random() < 0.35:  # calm
        return _add_glare(water, surface, rng) if rng.random() < 0.15 else water
    size, cell = surface.size, surface.detail * float(np.exp(rng.uniform(np.log(2.2), np.log(7))))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.3, 4)
    waves = fractal_noise(rng, size, cell, octaves=3, persistence=0.6, angle=angle, stretch=stretch)
    turned = fractal_noise(
        rng, size, cell, octaves=2, persistence=0.6, angle=angle + rng.normal(0, 0.35), stretch=stretch
    )
    patches = smooth_noise(rng, size, surface.side * rng.uniform(0.1, 0.4))
    waves = waves + (turned - waves) * smooth_step(patches, -0.7, 0.7)
    swell = fractal_noise(rng, size, cell * rng.uniform(3, 7), octaves=2, angle=angle, stretch=stretch)
    waves = np.asarray((waves + np.float32(rng.uniform(0, 0.5)) * swell) / np.float32(1.2), dtype=np.float32)
    skew = rng.uniform(0.2, 1.1)  # few bright crests, many dark troughs
    crests = (np.exp(np.minimum(np.float32(skew) * waves, 3)) - 1) / np.float32(skew)
    strength = np.exp(rng.uniform(np.log(1.5), np.log(24))) * surface.exposure
    wind = fractal_noise(rng, size, surface.side * rng.uniform(0.08, 0.5), octaves=3)
    still = rng.uniform(0, 1)
    amplitude = np.float32(strength) * (still + (1 - still) * smooth_step(wind, -0.8, 1.2))
    tint = np.array((0.92, 1.0, 1.06), dtype=np.float32)
    water = water + (amplitude * crests)[..., None] * tint
    if rng.random() < 0.3:
        water = _add_glints(water, waves, surface, rng)
    return np.asarray(water, dtype=np.float32)


def _add_glints(water: Pixels, waves: Field, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Add the sun on the crests of ripples, in a part of the water."""
    place = smooth_noise(rng, surface.size, surface.side * rng.uniform(0.3, 0.8))
    threshold = rng.uniform(0.8, 2.0)
    sparkle = smooth_step(waves + np.float32(0.5) * place, threshold, threshold + 0.6)
    return _mix(water, (250, 250, 245), sparkle * smooth_step(place, -0.5, 1.0) * np.float32(rng.uniform(0.5, 1)))


def _add_glare(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Add the blurred mirror image of the sun or of a bright sky to calm water."""
    glow = smooth_noise(rng, surface.size, surface.side * rng.uniform(0.4, 1.0))
    low = rng.uniform(0.5, 1.2)
    return _mix(water, (245, 245, 240), smooth_step(glow, low, low + 1.5) * np.float32(rng.uniform(0.3, 0.9)))


def _tinted_texture(texture: Pixels, body: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a texture of real water, often in another colour."""
    if rng.random() < 0.4:
        return texture * np.float32(rng.uniform(0.6, 1.2))
    spread = np.float32(rng.uniform(0.15, 0.6)) * body + 4
    return recolour(texture, list(body - spread), list(body + 1.6 * spread), strength=rng.uniform(0.6, 1))


def _add_shallows(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Let the ground show through where the water is shallow, at the bank or in places."""
    if rng.random() < 0.45:
        return water
    size, side = surface.size, surface.side
    reach = side * float(np.exp(rng.uniform(np.log(0.006), np.log(0.12))))
    depth = distance_inside(surface.cover > 0.5) / np.float32(reach)
    depth = depth + np.float32(0.5) * fractal_noise(rng, size, max(6.0, reach), octaves=3)
    clear = np.exp(-np.clip(depth, 0, 8)) * np.float32(rng.uniform(0.25, 0.8))
    if surface.outline.kind == "frame":
        banks = fractal_noise(rng, size, side * rng.uniform(0.2, 0.6), octaves=3)
        clear = smooth_step(banks, 0.5, 2.5) * np.float32(rng.uniform(0, 0.5))
    wet = blur_pixels(surface.ground, max(0.6, 0.8 * surface.detail)) * np.float32(rng.uniform(0.4, 0.75))
    sand = np.array(((96, 80, 56), (72, 60, 46), (104, 100, 84))[int(rng.integers(3))], dtype=np.float32)
    bottom = wet + (sand * np.float32(surface.exposure) - wet) * np.float32(rng.uniform(0.2, 0.8))
    return np.asarray(water + clear[..., None] * (bottom - water), dtype=np.float32)


def _add_bank_shade(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Darken the water below the bank: a thin line all around, and the shadow of a higher bank on one side."""
    if surface.outline.kind == "frame":
        return water
    near = blur(1 - surface.cover, surface.detail * rng.uniform(1.5, 5))
    shade = smooth_step(near, 0, 0.7) * np.float32(rng.uniform(0.1, 0.55))
    if rng.random() < 0.4:
        reach = surface.detail * rng.uniform(8, 40)
        one_side = _near_bank(surface, reach, rng.uniform(0, 2 * np.pi))
        shade = np.maximum(shade, smooth_step(one_side, 0.4, 0.6) * np.float32(rng.uniform(0.2, 0.6)))
    return np.asarray(water * (1 - shade[..., None]), dtype=np.float32)


def _add_plants(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Add floating leaves, duckweed or algae in patches."""
    colour = np.array(PLANTS[int(rng.integers(len(PLANTS)))], dtype=np.float32) * np.float32(surface.exposure)
    place = fractal_noise(rng, surface.size, surface.side * rng.uniform(0.08, 0.3), octaves=3)
    cell = surface.detail * rng.uniform(3, 14)
    leaves = fractal_noise(rng, surface.size, cell, octaves=2, persistence=0.4)
    cover = smooth_step(leaves + place * np.float32(1.5), rng.uniform(1.2, 2.6), 2.9)
    shade = 1 + np.float32(0.14) * smooth_noise(rng, surface.size, max(2.0, cell / 3))
    plants = colour * shade[..., None]
    return np.asarray(water + (0.9 * cover)[..., None] * (plants - water), dtype=np.float32)


def _add_specks(water: Pixels, surface: Surface, rng: np.random.Generator) -> Pixels:
    """Add foam, leaves and insects: sparse specks, in streaks along a current."""
    size = surface.size
    streaks = fractal_noise(
        rng, size, surface.side * rng.uniform(0.03, 0.12), octaves=2, angle=surface.outline.angle, stretch=4
    )
    dots = smooth_noise(rng, size, surface.detail * rng.uniform(1.8, 3.5))
    specks = smooth_step(dots + np.float32(0.5) * streaks, 2.2, 2.9) * np.float32(rng.uniform(0.3, 0.9))
    colour = ((225, 222, 212), (200, 190, 170), (150, 130, 80))[int(rng.integers(3))]
    return _mix(water, colour, specks)
