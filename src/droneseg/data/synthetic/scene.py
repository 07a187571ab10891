"""Composes scenes and writes them in the Kaggle layout."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image as pillow
from PIL import ImageFilter

from droneseg.core.files import new_folder, write_text
from droneseg.core.images import Image, encode_png
from droneseg.core.masks import Mask, encode_mask
from droneseg.core.system import usable_cores
from droneseg.data.layouts import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.data.synthetic import objects
from droneseg.data.synthetic.canvas import Canvas

SAMPLE_NAME = "sample.json"

# How many of each thing a scene has: (smallest, largest) number, painted in this order.
_CONTENTS: tuple[tuple[Callable[[Canvas], None], int, int], ...] = (
    (objects.ground, 1, 1),
    (objects.patch, 1, 3),
    (objects.path, 0, 2),
    (objects.pond, 0, 1),
    (objects.pool, 0, 1),
    (objects.rocks, 0, 1),
    (objects.fence, 1, 3),
    (objects.crates, 0, 2),
    (objects.house, 0, 1),
    (objects.car, 1, 3),
    (objects.person, 2, 5),
    (objects.tree, 0, 3),
)
# The scene is this many metres across its shorter side, so that objects keep their share whatever the size.
_ACROSS_M = (11.0, 15.0)


def generate_scene(seed: int, width: int, height: int) -> tuple[Image, Mask]:
    """Generate one aerial scene.

    Args:
        seed: Equal seeds and sizes give equal scenes.
        width: Pixels.
        height: Pixels.

    Returns:
        RGB, shape (H, W, 3), and class ids, shape (H, W), both uint8. No pixel is background, as in the real masks.
    """
    rng = np.random.default_rng(seed)
    metre = min(width, height) / rng.uniform(*_ACROSS_M)
    direction, length = rng.uniform(0, 2 * np.pi), metre * rng.uniform(0.3, 0.9)
    sun = (float(length * np.cos(direction)), float(length * np.sin(direction)))
    canvas = Canvas(width, height, rng, sun, metre)
    for draw, fewest, most in _CONTENTS:
        for _ in range(rng.integers(fewest, most + 1)):
            draw(canvas)
    return _photograph(canvas), canvas.mask


def _photograph(canvas: Canvas) -> Image:
    """Apply light, white balance, exposure, optics and sensor noise; return RGB uint8."""
    rng = canvas.rng
    light = 1 + 0.08 * np.linspace(-1, 1, canvas.width, dtype=np.float32)[None, :, None] * rng.uniform(-1, 1)
    balance = rng.uniform(0.86, 1.14, 3).astype(np.float32)
    exposed = np.clip(canvas.pixels * light * balance * rng.uniform(0.8, 1.25), 0, 1) ** rng.uniform(0.85, 1.2)
    haze = rng.uniform(0, 0.08)
    picture = pillow.fromarray(((exposed * (1 - haze) + 0.8 * haze) * 255).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.6))), dtype=np.float32)
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
    """Write generated pairs to `folder` in the Kaggle layout.

    Args:
        folder: Made new; see `new_folder`.
        count: Number of pairs.
        size: Width and height in pixels.
        seed: The first scene's seed; the others follow, so a larger count begins with the same scenes.
        replace: Whether older generated data there may be replaced.
        progress: Called with (done, count) after each pair.

    Raises:
        OutputExistsError: If `folder` is there and not empty, and `replace` is false.
    """
    with (
        new_folder(folder, marker=SAMPLE_NAME, replace=replace) as aside,
        ThreadPoolExecutor(usable_cores()) as workers,
    ):
        # what tells generated data from somebody's photographs
        write_text(aside / SAMPLE_NAME, json.dumps({"count": count, "size": size, "seed": seed}) + "\n")
        root = aside / KAGGLE_FOLDER
        for name in (IMAGES_FOLDER, MASKS_FOLDER):
            (root / name).mkdir(parents=True)

        def write(index: int) -> None:
            image, mask = generate_scene(seed + index, *size)
            (root / IMAGES_FOLDER / f"{index:03d}.png").write_bytes(encode_png(image))
            (root / MASKS_FOLDER / f"{index:03d}.png").write_bytes(encode_mask(mask))

        for done, _ in enumerate(workers.map(write, range(count)), start=1):
            if progress:
                progress(done, count)
