"""Insert generated water and real ground into photographs, with banks and edges, and change their masks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import optional_import
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.data.shadows import cast_shadow
from droneseg.data.shapes import (
    FREQUENCIES,
    Field,
    Outline,
    Size,
    blur,
    distance_inside,
    draw_outline,
    fractal_noise,
    smooth_noise,
    smooth_step,
)
from droneseg.data.textures import Pixels, TextureLibrary, blur_pixels, luminance, recolour
from droneseg.data.water import Surface, render_water

with optional_import("opencv-python-headless", "train"):
    import cv2

WATER_ID = DEFAULT_CLASSES.id_of("water")
SOFT_ID = DEFAULT_CLASSES.id_of("soft-surfaces")
LANDING_ID = DEFAULT_CLASSES.id_of("landing-zones")
DRY_IDS = (DEFAULT_CLASSES.id_of("obstacles"), DEFAULT_CLASSES.id_of("moving-objects"))
"""Classes that mostly stay above generated water and ground."""

GROUND_IDS = (SOFT_ID, LANDING_ID)
"""Classes of the ground that is taken from other photographs."""

_NATURAL_SHARE = 0.3
_REAL_SHARE = 0.14
_DRY_SHARE = 0.92
_OUTLINE_REDUCTION = 4
_OUTLINE_TRIES = 5
_SMALLEST_COVERED = 0.015  # share of the image
_GOOD_GROUND = 0.85  # share of an outline that is ground
_TYPICAL_LUMINANCE = 112.0

Ramp = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Colours of dark and bright pixels."""
# lush, mown, dry and bleached grass
_MEADOWS: tuple[Ramp, ...] = (
    ((38, 66, 14), (128, 168, 62)),
    ((52, 82, 20), (150, 186, 70)),
    ((30, 52, 18), (96, 130, 54)),
    ((60, 74, 34), (148, 158, 92)),
    ((88, 92, 52), (176, 172, 118)),
)
# bleached grass, straw, bracken, dry earth, dark earth, moss
_SOFT_RAMPS: tuple[Ramp, ...] = (
    ((118, 112, 78), (204, 196, 152)),
    ((140, 126, 84), (222, 208, 160)),
    ((74, 48, 28), (164, 116, 68)),
    ((96, 78, 60), (176, 154, 128)),
    ((40, 32, 26), (96, 80, 66)),
    ((48, 54, 24), (116, 124, 66)),
)
# pale concrete, sand, red gravel, dark and blue asphalt
_LANDING_RAMPS: tuple[Ramp, ...] = (
    ((142, 138, 130), (214, 210, 202)),
    ((150, 130, 98), (222, 202, 168)),
    ((120, 96, 92), (206, 180, 172)),
    ((38, 38, 40), (92, 92, 96)),
    ((70, 78, 90), (134, 142, 154)),
)
_BANKS = {"none": 0.22, "grass": 0.36, "earth": 0.17, "sand": 0.09, "reeds": 0.1, "rim": 0.06}


@dataclass(frozen=True)
class Photograph:
    """A photograph before a composition.

    Attributes:
        image: RGB, shape (H, W, 3), dtype uint8.
        mask: Class ids, shape (H, W), dtype uint8.
        overhang: Pixels of trees and roofs, which stay on top like obstacles; shape (H, W), dtype bool. None if
            unknown.
    """

    image: Image
    mask: Mask
    overhang: NDArray[np.bool_] | None = None

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.mask.shape[0], self.mask.shape[1]

    @cached_property
    def dry(self) -> NDArray[np.bool_]:
        """Pixels that stay on top, shape (H, W)."""
        dry = np.isin(self.mask, DRY_IDS)
        return dry if self.overhang is None else dry | self.overhang


@dataclass(frozen=True)
class Composition:
    """A photograph with inserted water or ground, or with shadows.

    Attributes:
        image: RGB, shape (H, W, 3), dtype uint8.
        mask: Class ids, shape (H, W), dtype uint8.
        changed: Inserted pixels, shape (H, W), dtype bool. Shadows do not count.
    """

    image: Image
    mask: Mask
    changed: NDArray[np.bool_]


class _Canvas:
    """Working copy of a photograph while layers are added."""

    def __init__(self, photograph: Photograph, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size = photograph.size
        self.side = min(self.size)
        self.pixels: Pixels = photograph.image.astype(np.float32)
        self.mask = photograph.mask.copy()
        self.changed = np.zeros(self.size, dtype=bool)
        # sometimes nothing stays on top
        self.dry = photograph.dry if rng.random() < _DRY_SHARE else np.zeros(self.size, dtype=bool)
        self.detail = self.side / 1000 * float(np.exp(rng.uniform(np.log(0.7), np.log(1.8))))
        relative = float(luminance(self.pixels[::4, ::4]).mean()) / _TYPICAL_LUMINANCE
        self.exposure = float(np.clip(relative, 0.4, 1.5) ** 0.7 * rng.uniform(0.85, 1.15))

    @cached_property
    def dry_cover(self) -> Field:
        """Opacity of the objects that stay on top, shape (H, W)."""
        dry = self.dry.astype(np.float32)
        grown = np.asarray(cv2.dilate(dry, np.ones((3, 3), np.uint8)), dtype=np.float32)
        return np.maximum(dry, blur(grown, 1.0))

    def lay(self, texture: Pixels, cover: Field, label: int) -> None:
        """Blend a texture into the pixels by its opacity, and label the pixels that it mostly covers."""
        self.pixels += cover[..., None] * (texture - self.pixels)
        covered = cover > 0.5
        self.mask[covered] = label
        self.changed |= covered

    def finish(self) -> Composition:
        """Return the composition."""
        return Composition(np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8), self.mask, self.changed)


def compose_water(photograph: Photograph, textures: TextureLibrary, rng: np.random.Generator) -> Composition:
    """Insert water into a photograph: a river, pond, shore, basin, or water that fills it.

    Args:
        photograph: Photograph to change.
        textures: Textures for meadows, banks and real water; may be empty.
        rng: Random generator.
    """
    canvas = _Canvas(photograph, rng)
    outline = _choose_outline(canvas, FREQUENCIES)
    # dark water between meadows looks most like a landing zone, and no photograph of gardens and roads shows it
    natural = outline.kind not in ("basin", "frame") and rng.random() < _NATURAL_SHARE
    if natural or (outline.kind != "basin" and rng.random() < 0.3):
        _lay_meadow(canvas, textures)
    if outline.kind == "frame" and rng.random() < 0.75:
        canvas.dry = np.zeros(canvas.size, dtype=bool)
    bank = str(rng.choice(["grass", "none", "reeds"])) if natural else _draw_bank(canvas, outline)
    outline = _roughen(canvas, outline, bank)
    cover = smooth_step(outline.distance, -1, 1) if bank == "rim" else _soft_cover(canvas, outline)
    _lay_bank(canvas, outline, bank, textures)
    dry = canvas.dry_cover
    _lay_water(canvas, outline, cover * (1 - dry), textures, group="dark" if natural else None)
    if rng.random() < 0.3:
        canvas.pixels = cast_shadow(canvas.pixels, rng)
    return canvas.finish()


def compose_ground(photograph: Photograph, textures: TextureLibrary, rng: np.random.Generator) -> Composition:
    """Insert ground from another photograph into a photograph, with the outlines and edges of water.

    Args:
        photograph: Photograph to change.
        textures: Textures of soft surfaces and landing zones.
        rng: Random generator.

    Raises:
        IndexError: If there is no texture of a soft surface or a landing zone.
    """
    canvas = _Canvas(photograph, rng)
    outline = _choose_outline(canvas, FREQUENCIES | {"frame": 0.12})
    if outline.kind != "frame" and rng.random() < 0.4:
        _lay_meadow(canvas, textures)
    ground = textures.select(lambda region: region.label in GROUND_IDS)
    texture, label = ground.draw(rng, canvas.size, zoom=rng.uniform(0.4, 1.5))
    bank = str(rng.choice(["none", "grass", "earth", "rim"], p=[0.45, 0.25, 0.15, 0.15]))
    outline = _roughen(canvas, outline, bank)
    cover = smooth_step(outline.distance, -1, 1) if bank == "rim" else _soft_cover(canvas, outline)
    _lay_bank(canvas, outline, bank, textures)
    canvas.lay(_vary_ground(canvas, texture, label), cover * (1 - canvas.dry_cover), label)
    if rng.random() < 0.5:
        canvas.pixels = cast_shadow(canvas.pixels, rng)
    return canvas.finish()


def compose_shadow(photograph: Photograph, rng: np.random.Generator) -> Composition:
    """Cast one to three shadows over a photograph; its mask does not change."""
    canvas = _Canvas(photograph, rng)
    for _ in range(int(rng.integers(1, 4))):
        canvas.pixels = cast_shadow(canvas.pixels, rng)
    return canvas.finish()


def _choose_outline(canvas: _Canvas, frequencies: dict[str, float]) -> Outline:
    """Return the best of a few random outlines: the one whose inside has the largest share of ground, not objects."""
    height, width = canvas.size
    small = (max(8, height // _OUTLINE_REDUCTION), max(8, width // _OUTLINE_REDUCTION))
    ground = cv2.resize((~canvas.dry).astype(np.float32), small[::-1], interpolation=cv2.INTER_AREA)
    best, highest = draw_outline(canvas.rng, small, kinds=frequencies), -1.0
    outline = best
    for _ in range(_OUTLINE_TRIES):
        inside = outline.distance > 0
        covered = float(ground[inside].sum()) / inside.size
        score = 0.0 if covered < _SMALLEST_COVERED else float(ground[inside].mean())
        if score > highest:
            best, highest = outline, score
        if highest > _GOOD_GROUND:
            break
        outline = draw_outline(canvas.rng, small, kinds=frequencies)
    scale = height / small[0]
    distance = cv2.resize(best.distance * np.float32(scale), (width, height), interpolation=cv2.INTER_CUBIC)
    return Outline(np.asarray(distance, dtype=np.float32), best.angle, best.kind)


def _roughen(canvas: _Canvas, outline: Outline, bank: str) -> Outline:
    """Return an outline with small irregularities, which partly follow the texture of the ground."""
    if bank == "rim" or outline.kind == "frame":
        return outline
    rng, detail = canvas.rng, canvas.detail
    strength = {"grass": 1.0, "reeds": 1.3, "earth": 0.7, "sand": 0.4}.get(bank, 0.6) * rng.uniform(0.4, 1.4)
    coarse = fractal_noise(rng, canvas.size, detail * rng.uniform(25, 80), octaves=6, persistence=0.6)
    fine = fractal_noise(rng, canvas.size, detail * 5, octaves=2)
    grey = luminance(canvas.pixels)
    texture = grey - blur(grey, 4 * detail + 1)
    texture = np.clip(texture / (texture.std() + 1), -2, 2)  # bright blades hang over dark water
    rough = np.float32(8 * detail * strength) * coarse + np.float32(1.3 * detail * strength) * (fine - texture)
    return Outline(np.asarray(outline.distance + rough, dtype=np.float32), outline.angle, outline.kind)


def _soft_cover(canvas: _Canvas, outline: Outline) -> Field:
    """Return the opacity inside an outline, with an edge of random softness."""
    soft = canvas.detail * float(np.exp(canvas.rng.uniform(np.log(0.8), np.log(5))))
    cover = smooth_step(outline.distance, -soft, soft)
    # the outline is a distance only approximately; the camera's blur is the same everywhere
    return blur(cover, 0.7 * canvas.detail)


def _lay_water(canvas: _Canvas, outline: Outline, cover: Field, textures: TextureLibrary, *, group: str | None) -> None:
    """Render water and insert it; sometimes with the texture of real water, if the library has one."""
    rng = canvas.rng
    box = _bounding_box(cover > 0.01)
    distance = np.ascontiguousarray(outline.distance[box])
    surface = Surface(
        np.ascontiguousarray(canvas.pixels[box]),
        np.ascontiguousarray(cover[box]),
        Outline(distance, outline.angle, outline.kind),
        canvas.exposure,
        canvas.detail,
        canvas.side,
    )
    real = textures.select(lambda region: region.label == WATER_ID)
    use_real = bool(real) and group is None and rng.random() < _REAL_SHARE
    texture = real.draw(rng, surface.size, zoom=rng.uniform(0.5, 1.6))[0] if use_real else None
    water = canvas.pixels.copy()
    water[box] = render_water(surface, rng, group=group, texture=texture)
    canvas.lay(water, cover, WATER_ID)


def _bounding_box(inside: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns that contain an area, with a margin of 8 pixels; all if the area is empty."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return slice(None), slice(None)
    return (
        slice(max(0, int(rows[0]) - 8), int(rows[-1]) + 9),
        slice(max(0, int(columns[0]) - 8), int(columns[-1]) + 9),
    )


def _draw_bank(canvas: _Canvas, outline: Outline) -> str:
    if outline.kind == "frame":
        return "none"
    if outline.kind == "basin":
        return "rim" if canvas.rng.random() < 0.85 else "none"
    return str(canvas.rng.choice(list(_BANKS), p=np.array(list(_BANKS.values())) / sum(_BANKS.values())))


def _lay_meadow(canvas: _Canvas, textures: TextureLibrary) -> None:
    """Turn all ground of the canvas into a meadow of real grass, in lush to dry colours."""
    grass = textures.select(lambda region: region.label == SOFT_ID)
    if not grass:
        return
    rng = canvas.rng
    texture, _ = grass.draw(rng, canvas.size, zoom=rng.uniform(0.35, 1.2))
    first, second = (_MEADOWS[int(index)] for index in rng.integers(0, len(_MEADOWS), 2))
    strength = rng.uniform(0.75, 1)
    meadow = recolour(texture, *first, strength=strength)
    place = fractal_noise(rng, canvas.size, canvas.side * rng.uniform(0.1, 0.5), octaves=5, persistence=0.6)
    mixed = smooth_step(place, -1.2, 1.2)[..., None] * np.float32(rng.uniform(0, 1))
    meadow = meadow + mixed * (recolour(texture, *second, strength=strength) - meadow)
    if rng.random() < 0.2:  # mown in stripes
        stripes = smooth_noise(rng, canvas.size, canvas.side * 0.04, angle=rng.uniform(0, np.pi), stretch=60)
        meadow = meadow * (1 + np.float32(0.06) * np.clip(stripes, -1, 1))[..., None]
    canvas.lay(meadow * np.float32(canvas.exposure), 1 - canvas.dry_cover, SOFT_ID)


def _vary_ground(canvas: _Canvas, texture: Pixels, label: int) -> Pixels:
    """Return a texture in other colours, darker or brighter, or smoother."""
    rng = canvas.rng
    ramps = _SOFT_RAMPS + _MEADOWS if label == SOFT_ID else _LANDING_RAMPS
    if rng.random() < 0.55:
        texture = recolour(texture, *ramps[int(rng.integers(len(ramps)))], strength=rng.uniform(0.5, 1))
        texture = texture * np.float32(canvas.exposure)
    gain = rng.uniform(0.8, 1.2)
    if rng.random() < 0.25:
        gain = rng.uniform(0.3, 0.7)
    elif rng.random() < 0.35:  # bright ground only: dark and smooth ground looks like water
        smooth = blur_pixels(texture, canvas.detail * rng.uniform(0.6, 4))
        texture = smooth + rng.normal(0, rng.uniform(0.5, 3), (*canvas.size, 1)).astype(np.float32)
    return np.asarray(texture * np.float32(gain), dtype=np.float32)


def _lay_bank(canvas: _Canvas, outline: Outline, bank: str, textures: TextureLibrary) -> None:
    """Change the ground around an outline."""
    if bank == "none":
        return
    rng, side = canvas.rng, canvas.side
    outside = distance_inside(outline.distance < 0)
    if bank == "rim":
        _lay_rim(canvas, outside)
        return
    width = side * float(np.exp(rng.uniform(np.log(0.008), np.log(0.06))))
    waves = fractal_noise(rng, canvas.size, width * rng.uniform(1, 4), octaves=4, persistence=0.6)
    cover = smooth_step(width * (1 + np.float32(0.5) * waves) - outside, -0.25 * width, 0.25 * width)
    cover = cover * (1 - canvas.dry_cover)
    if bank in ("grass", "reeds"):
        _lay_tall_grass(canvas, cover, reeds=bank == "reeds")
    elif bank == "earth":
        earth = np.array(((72, 58, 42), (54, 44, 34), (92, 78, 60))[int(rng.integers(3))], dtype=np.float32)
        _lay_earth(canvas, cover, earth, outside, label=SOFT_ID)
    else:
        _lay_sand(canvas, cover, outside, textures)


def _lay_rim(canvas: _Canvas, outside: Field) -> None:
    """Add a strip of stone or concrete with joints."""
    rng = canvas.rng
    width = canvas.side * rng.uniform(0.006, 0.03)
    cover = smooth_step(width - outside, -1, 1) * (1 - canvas.dry_cover)
    grey = rng.uniform(80, 205) * canvas.exposure
    colour = np.float32(grey) + rng.normal(0, 6, 3).astype(np.float32)
    grain = fractal_noise(rng, canvas.size, 6 * canvas.detail, octaves=2) * np.float32(rng.uniform(2, 9))
    canvas.lay(colour + grain[..., None], cover, LANDING_ID)


def _lay_tall_grass(canvas: _Canvas, cover: Field, *, reeds: bool) -> None:
    """Add a fringe of uncut grass or reeds: mottled, often lusher or paler than the ground."""
    rng, detail = canvas.rng, canvas.detail
    blades = fractal_noise(rng, canvas.size, detail * rng.uniform(5, 11), octaves=3, persistence=0.8)
    clumps = fractal_noise(rng, canvas.size, detail * rng.uniform(20, 50), octaves=2)
    mottled = np.clip(np.float32(0.2) * blades + np.float32(0.16) * clumps, -0.6, 0.6)
    greens = (((52, 70, 26), (150, 168, 88)), ((80, 84, 44), (186, 180, 122)), ((34, 54, 20), (112, 146, 62)))
    dark, bright = (np.array(colour, dtype=np.float32) for colour in greens[int(rng.integers(3))])
    fringe = (dark + (0.5 + mottled)[..., None] * (bright - dark)) * np.float32(canvas.exposure)
    own = canvas.pixels * (1 + mottled[..., None])
    share = np.float32(rng.uniform(0.6, 1) if reeds else rng.uniform(0.2, 0.8))
    fringe = own + share * (fringe - own)
    canvas.lay(fringe, cover, SOFT_ID)


def _lay_earth(canvas: _Canvas, cover: Field, colour: Pixels, outside: Field, *, label: int) -> None:
    """Add bare ground that is wet and dark near the water."""
    rng = canvas.rng
    grain = fractal_noise(rng, canvas.size, canvas.detail * rng.uniform(8, 20), octaves=4, persistence=0.75)
    wet = smooth_step(outside, 0, canvas.side * rng.uniform(0.005, 0.03))
    grey = luminance(canvas.pixels)[..., None]
    earth = colour * np.float32(canvas.exposure) * (1 + np.float32(0.14) * grain[..., None])
    earth = earth + np.float32(0.25) * (grey - grey.mean())
    canvas.lay(earth * (0.65 + 0.35 * wet[..., None]), cover * np.float32(rng.uniform(0.8, 1)), label)


def _lay_sand(canvas: _Canvas, cover: Field, outside: Field, textures: TextureLibrary) -> None:
    """Add a beach of sand or gravel, from a real texture if there is one."""
    rng = canvas.rng
    gravel = textures.select(lambda region: region.label == LANDING_ID)
    if not gravel or rng.random() < 0.4:
        pale = np.array(((176, 160, 130), (160, 150, 138), (190, 168, 156))[int(rng.integers(3))], dtype=np.float32)
        _lay_earth(canvas, cover, pale, outside, label=LANDING_ID)
        return
    texture, _ = gravel.draw(rng, canvas.size, zoom=rng.uniform(0.4, 1))
    wet = smooth_step(outside, 0, canvas.side * rng.uniform(0.005, 0.03))
    canvas.lay(texture * (0.6 + 0.4 * wet[..., None]), cover, LANDING_ID)
