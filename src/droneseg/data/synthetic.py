"""Generate aerial scenes with exact masks: objects, composition and sample datasets."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageFilter

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.files import atomic_directory, write_text
from droneseg.core.images import Image, encode_png
from droneseg.core.masks import Mask, encode_mask
from droneseg.core.system import usable_cores
from droneseg.data import synthetic_canvas as textures
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.data.synthetic_canvas import Canvas, Region, corners

SAMPLE_NAME = "sample.json"

# Range of the length of the shorter side in metres, so that objects cover the same share at every size in pixels.
_SHORT_SIDE_M = (11.0, 15.0)

_SELF_CHECK_SEED = 3_000_000
_MIN_SHARE = 0.02
_COLOUR_STEP = 16

OBSTACLE = DEFAULT_CLASSES.id_of("obstacles")
WATER = DEFAULT_CLASSES.id_of("water")
SOFT = DEFAULT_CLASSES.id_of("soft-surfaces")
MOVING = DEFAULT_CLASSES.id_of("moving-objects")
LANDING = DEFAULT_CLASSES.id_of("landing-zones")


def _random_colour(canvas: Canvas, low: float = 0.1, high: float = 0.9) -> NDArray[np.float32]:
    """Return a slightly coloured random grey, shape (3,), with a level between `low` and `high`."""
    grey = canvas.rng.uniform(low, high)
    return np.clip(grey + canvas.rng.normal(0, 0.13, 3), 0.04, 0.96).astype(np.float32)


def ground(canvas: Canvas) -> None:
    """Cover the scene with lawn, soil, paving or asphalt."""
    surface = canvas.rng.choice(["lawn", "lawn", "soil", "paving", "asphalt"])
    _surface(canvas, canvas.everywhere(), str(surface))


def patch(canvas: Canvas) -> None:
    """Add a patch of another surface: a terrace, a flower bed or a yard."""
    x, y = canvas.random_point()
    reach = canvas.rng.uniform(2.5, 6) * canvas.metre
    if canvas.rng.random() < 0.6:
        region = canvas.rectangle(x, y, 2 * reach, 1.3 * reach, canvas.rng.uniform(0, np.pi))
        _surface(canvas, region, str(canvas.rng.choice(["paving", "asphalt", "soil", "lawn"])))
    else:
        _surface(canvas, canvas.blob(x, y, reach), str(canvas.rng.choice(["soil", "lawn"])))


def path(canvas: Canvas) -> None:
    """Add a paved path across the scene."""
    across, down = (float(v) for v in canvas.rng.uniform(0, 1, 2))
    ends = [(0.0, across * canvas.height), (float(canvas.width), down * canvas.height)]
    if canvas.rng.random() < 0.5:
        ends = [(across * canvas.width, 0.0), (down * canvas.width, float(canvas.height))]
    region = canvas.band([ends[0], canvas.random_point(), ends[1]], canvas.rng.uniform(1.2, 3.5) * canvas.metre)
    _surface(canvas, region, str(canvas.rng.choice(["paving", "asphalt"])))


def _surface(canvas: Canvas, region: Region, surface: str) -> None:
    paint = {"lawn": textures.lawn, "soil": textures.soil, "paving": textures.paving, "asphalt": textures.asphalt}
    canvas.paint(region, paint[surface](canvas), SOFT if surface in ("lawn", "soil") else LANDING)


def pool(canvas: Canvas) -> None:
    """Add a pool with a stone rim."""
    length, width = canvas.rng.uniform(4, 8) * canvas.metre, canvas.rng.uniform(2.5, 4) * canvas.metre
    x, y = canvas.random_point(width)
    angle, rim = canvas.rng.uniform(0, np.pi), 0.35 * canvas.metre
    outline = canvas.ellipse if canvas.rng.random() < 0.3 else canvas.rectangle
    half = 0.5 if outline == canvas.ellipse else 1.0
    canvas.paint(
        outline(x, y, half * (length + 2 * rim), half * (width + 2 * rim), angle), textures.paving(canvas), LANDING
    )
    canvas.paint(
        outline(x, y, half * length, half * width, angle), textures.water(canvas, canvas.rng.uniform(0.5, 1.0)), WATER
    )


def pond(canvas: Canvas) -> None:
    """Add a pond with an irregular outline."""
    x, y = canvas.random_point(2 * canvas.metre)
    region = canvas.blob(x, y, canvas.rng.uniform(2, 4.5) * canvas.metre)
    canvas.paint(region, textures.water(canvas, canvas.rng.uniform(0.6, 1.4)), WATER)


def house(canvas: Canvas) -> None:
    """Add a house: a roof with two halves, and chimneys and skylights, which are obstacles."""
    x, y = canvas.random_point(avoid=WATER)
    length, width = canvas.rng.uniform(7, 11) * canvas.metre, canvas.rng.uniform(5, 8) * canvas.metre
    angle = canvas.rng.uniform(0, np.pi)
    roof = canvas.rectangle(x, y, length, width, angle)
    canvas.shade(roof, 4.0)
    texture = textures.tiles(canvas, angle)
    nx, ny = -np.sin(angle) * width / 4, np.cos(angle) * width / 4
    canvas.paint(roof, texture, LANDING)
    canvas.pixels[canvas.rectangle(x + nx, y + ny, length, width / 2, angle)] *= canvas.rng.uniform(0.6, 0.85)
    for _ in range(canvas.rng.integers(1, 4)):
        along, across = canvas.rng.uniform(-0.4, 0.4) * length, canvas.rng.uniform(-0.35, 0.35) * width
        at = (x + along * np.cos(angle) - across * np.sin(angle), y + along * np.sin(angle) + across * np.cos(angle))
        _crate(canvas, float(at[0]), float(at[1]), canvas.rng.uniform(0.8, 1.4), angle, height_m=0.8)


def _crate(canvas: Canvas, x: float, y: float, size_m: float, angle: float, height_m: float) -> None:
    """Add a box with a bright rim and a dark interior: a chimney, a skylight or a container."""
    size = size_m * canvas.metre
    outside = canvas.rectangle(x, y, 1.3 * size, size, angle)
    canvas.shade(outside, height_m)
    canvas.paint(outside, textures.painted(canvas, _random_colour(canvas, 0.5, 0.9)), OBSTACLE)
    canvas.paint(
        canvas.rectangle(x, y, 0.9 * size, 0.6 * size, angle),
        textures.painted(canvas, _random_colour(canvas, 0.05, 0.3)),
        OBSTACLE,
    )


def crates(canvas: Canvas) -> None:
    """Add a row of boxes."""
    x, y = canvas.random_point(canvas.metre, avoid=WATER)
    angle, size = canvas.rng.uniform(0, np.pi), canvas.rng.uniform(1.0, 1.8)
    for step in range(canvas.rng.integers(1, 4)):
        gap = 1.5 * size * canvas.metre * step
        _crate(canvas, x + gap * np.cos(angle), y + gap * np.sin(angle), size, angle, height_m=1.0)


def rocks(canvas: Canvas) -> None:
    """Add a group of rocks, each lit from one side."""
    x, y = canvas.random_point(canvas.metre, avoid=WATER)
    for _ in range(canvas.rng.integers(2, 6)):
        dx, dy = canvas.rng.normal(0, 1.6 * canvas.metre, 2)
        radius = canvas.rng.uniform(0.7, 1.3) * canvas.metre
        rock = canvas.blob(x + dx, y + dy, radius, 0.5)
        canvas.shade(rock, 0.8)
        tint = textures.tinted(canvas, ((0.5, 0.5, 0.5), (0.5, 0.45, 0.4)))
        canvas.paint(rock, textures.painted(canvas, tint), OBSTACLE)
        lit = canvas.blob(x + dx - 0.3 * radius, y + dy - 0.3 * radius, 0.5 * radius, 0.5) & rock
        canvas.pixels[lit] *= 1.35


def fence(canvas: Canvas) -> None:
    """Add a fence with posts and a shadow."""
    x, y = canvas.random_point()
    angle = canvas.rng.uniform(0, np.pi)
    reach = canvas.rng.uniform(0.3, 0.8) * canvas.width
    ends = [(x, y), (x + reach * np.cos(angle), y + reach * np.sin(angle))]
    width = canvas.rng.uniform(0.5, 0.85) * canvas.metre
    region = canvas.band(ends, width)
    canvas.shade(region, 1.6)
    u, _ = textures.coordinates(canvas, angle)
    post = (np.sin(2 * np.pi * u / canvas.rng.uniform(0.7, 1.2)) > 0.3)[..., None]
    light, dark = _random_colour(canvas, 0.5, 0.95), _random_colour(canvas, 0.08, 0.3)
    canvas.paint(region, np.where(post, light, dark).astype(np.float32), OBSTACLE)


def tree(canvas: Canvas) -> None:
    """Add the crown of a tree with a long shadow."""
    x, y = canvas.random_point(avoid=WATER)
    crown = canvas.blob(x, y, canvas.rng.uniform(1.3, 3) * canvas.metre, 0.4)
    canvas.shade(crown, 3.0)
    canvas.paint(crown, textures.foliage(canvas), SOFT)


def car(canvas: Canvas) -> None:
    """Add a car: body, dark windows and roof."""
    x, y = canvas.random_point(canvas.metre, avoid=WATER)
    length, width = canvas.rng.uniform(4.0, 5.0) * canvas.metre, canvas.rng.uniform(1.9, 2.2) * canvas.metre
    angle = canvas.rng.uniform(0, 2 * np.pi)
    points = corners(x, y, length, width, angle)
    body = canvas.polygon(points) & ~_corner_discs(canvas, points, 0.2 * canvas.metre)
    canvas.shade(body, 1.4)
    colour = _random_colour(canvas)
    canvas.paint(body, textures.painted(canvas, colour), MOVING)
    c, s = np.cos(angle), np.sin(angle)
    for offset, share in ((-0.02, 0.56), (-0.04, 0.34)):
        part = canvas.rectangle(x + offset * length * c, y + offset * length * s, share * length, 0.84 * width, angle)
        tone = np.full(3, 0.10, np.float32) if share > 0.5 else np.clip(colour * 1.1, 0, 1).astype(np.float32)
        canvas.paint(part & body, textures.painted(canvas, tone), MOVING)


def _corner_discs(canvas: Canvas, points: list[tuple[float, float]], radius: float) -> Region:
    """Return discs around the corners of a rectangle, which are removed to round it."""
    discs = np.zeros((canvas.height, canvas.width), dtype=bool)
    for x, y in points:
        discs |= canvas.ellipse(x, y, radius, radius, 0.0)
    return discs


def person(canvas: Canvas) -> None:
    """Add a person seen from above: shoulders, head and a long shadow."""
    x, y = canvas.random_point(canvas.metre, avoid=WATER)
    angle = canvas.rng.uniform(0, np.pi)
    size = canvas.rng.uniform(0.55, 0.75) * canvas.metre
    shoulders = canvas.ellipse(x, y, size, 0.6 * size, angle)
    canvas.shade(shoulders, 1.7, strength=0.6)
    canvas.paint(shoulders, textures.painted(canvas, _random_colour(canvas, 0.15, 0.9)), MOVING)
    hair = canvas.rng.uniform(0.05, 0.5) * np.array([1.0, 0.8, 0.6], dtype=np.float32)
    canvas.paint(
        canvas.ellipse(x, y, 0.4 * size, 0.4 * size, 0.0), textures.painted(canvas, hair.astype(np.float32)), MOVING
    )


# Objects of a scene with their smallest and largest number, painted in this order.
_CONTENTS: tuple[tuple[Callable[[Canvas], None], int, int], ...] = (
    (ground, 1, 1),
    (patch, 1, 3),
    (path, 0, 2),
    (pond, 0, 1),
    (pool, 0, 1),
    (rocks, 0, 1),
    (fence, 1, 3),
    (crates, 0, 2),
    (house, 0, 1),
    (car, 1, 3),
    (person, 2, 5),
    (tree, 0, 3),
)


def generate_scene(seed: int, width: int, height: int) -> tuple[Image, Mask]:
    """Generate one aerial scene.

    Args:
        seed: Random seed; equal seeds and sizes give equal scenes.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        Image, shape (H, W, 3), and class ids, shape (H, W), both uint8. No pixel is background, as in the real masks.
    """
    rng = np.random.default_rng(seed)
    metre = min(width, height) / rng.uniform(*_SHORT_SIDE_M)
    direction, length = rng.uniform(0, 2 * np.pi), metre * rng.uniform(0.3, 0.9)
    sun = (float(length * np.cos(direction)), float(length * np.sin(direction)))
    canvas = Canvas(width, height, rng, sun, metre)
    for draw, smallest, largest in _CONTENTS:
        for _ in range(rng.integers(smallest, largest + 1)):
            draw(canvas)
    return _render(canvas), canvas.mask


def generate_self_check_image(width: int, height: int) -> Image:
    """Generate a scene with every class except background, for the self-check of a bundle.

    The scene has few colours, which makes its PNG file four times smaller. For the sizes see `generate_scene`.
    """
    for seed in count(_SELF_CHECK_SEED):
        image, mask = generate_scene(seed, width, height)
        shares = [(mask == entry.id).mean() for entry in DEFAULT_CLASSES.foreground]
        if min(shares) >= _MIN_SHARE:
            break
    return image // _COLOUR_STEP * _COLOUR_STEP + _COLOUR_STEP // 2


def _render(canvas: Canvas) -> Image:
    """Apply light, white balance, exposure, haze, blur and sensor noise to a painted scene."""
    rng = canvas.rng
    light = 1 + 0.08 * np.linspace(-1, 1, canvas.width, dtype=np.float32)[None, :, None] * rng.uniform(-1, 1)
    balance = rng.uniform(0.86, 1.14, 3).astype(np.float32)
    exposed = np.clip(canvas.pixels * light * balance * rng.uniform(0.8, 1.25), 0, 1) ** rng.uniform(0.85, 1.2)
    haze = rng.uniform(0, 0.08)
    sharp = pillow.fromarray(((exposed * (1 - haze) + 0.8 * haze) * 255).astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.6))), dtype=np.float32)
    noisy = blurred + rng.normal(0, rng.uniform(0.5, 3), blurred.shape).astype(np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_samples(
    folder: Path,
    *,
    count: int,
    size: tuple[int, int],
    seed: int,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write generated pairs in the Kaggle layout.

    Args:
        folder: Folder to write.
        count: Number of pairs.
        size: Width and height in pixels.
        seed: Seed of the first scene, increased by 1 for each further scene, so that a larger dataset begins with the
            same scenes.
        replace: Whether earlier samples in `folder` may be replaced.
        progress: Progress callback with the number of pairs written and `count`.

    Raises:
        OutputExistsError: If `folder` contains files of another origin, or samples while `replace` is False.
    """
    with (
        atomic_directory(folder, marker=SAMPLE_NAME, replace=replace) as staging_dir,
        ThreadPoolExecutor(usable_cores()) as workers,
    ):
        # this file distinguishes generated data from real images
        write_text(staging_dir / SAMPLE_NAME, json.dumps({"count": count, "size": size, "seed": seed}) + "\n")
        root = staging_dir / KAGGLE_FOLDER
        for name in (IMAGES_FOLDER, MASKS_FOLDER):
            (root / name).mkdir(parents=True)

        def write(index: int) -> None:
            image, mask = generate_scene(seed + index, *size)
            (root / IMAGES_FOLDER / f"{index:03d}.png").write_bytes(encode_png(image))
            (root / MASKS_FOLDER / f"{index:03d}.png").write_bytes(encode_mask(mask, DEFAULT_CLASSES))

        for done, _ in enumerate(workers.map(write, range(count)), start=1):
            if progress:
                progress(done, count)
