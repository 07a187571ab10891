"""Textures of real photographs: find uniform regions, and synthesise any area from them by image quilting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import optional_import
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.data.shapes import Field, Size, smooth_noise

with optional_import("opencv-python-headless", "train"):
    import cv2

Pixels = NDArray[np.float32]
"""RGB, shape (H, W, 3), dtype float32, nominally 0 to 255."""

_IDS = 256
_SMALLEST_SHARE = 0.12  # side of the smallest usable square, relative to the shorter side of the image
_LARGEST_SHARE = 0.6
_MARGIN = 3  # pixels next to another class, which are often a mixture of both
_CANDIDATES = 8
_SMALLEST_TEXTURE = 0.2  # relative to the shorter side of the area to fill; smaller ones repeat too often
_TRIES = 5
_UNIFORM = 0.14  # coarse contrast; lawns and asphalt have 0.03 to 0.1, shrubs and half-shaded ground 0.2 and more
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class TextureRegion:
    """Square of a photograph that shows one class only.

    Attributes:
        stem: Stem of the photograph.
        label: Class id.
        fine: Id of the fine class; 0 if unknown.
        x: Left column.
        y: Top row.
        side: Side in pixels.
    """

    stem: str
    label: int
    fine: int
    x: int
    y: int
    side: int

    def cut(self, image: Image) -> Image:
        """Return the square of the photograph that the region belongs to."""
        return image[self.y : self.y + self.side, self.x : self.x + self.side]


def find_texture_regions(stem: str, mask: Mask, fine: Mask | None = None) -> list[TextureRegion]:
    """Find the largest square of each class in a mask.

    Args:
        stem: Stem of the photograph.
        mask: Class ids, shape (H, W), dtype uint8.
        fine: Ids of fine classes, same shape and dtype; a region then shows only one of them.

    Returns:
        At most one region for each class or fine class; none for one without a square of sufficient size.
    """
    # one number for each pair of fine class and class, because the unknown fine class 0 may span several classes
    detail = mask.astype(np.uint16) if fine is None else fine.astype(np.uint16) * _IDS + mask
    regions = []
    for value in np.unique(detail):
        inside = np.pad((detail == value).astype(np.uint8), 1)
        distance = cv2.distanceTransform(inside, cv2.DIST_C, 3)[1:-1, 1:-1]
        y, x = (int(index) for index in np.unravel_index(int(distance.argmax()), distance.shape))
        half = int(min(distance[y, x] - _MARGIN, _LARGEST_SHARE * min(mask.shape) / 2))
        if 2 * half >= _SMALLEST_SHARE * min(mask.shape):
            fine_id, label = divmod(int(value), _IDS)
            regions.append(TextureRegion(stem, label, fine_id, x - half, y - half, 2 * half))
    return regions


def quilt(patch: Image, size: Size, rng: np.random.Generator) -> Pixels:
    """Fill an area with blocks of a texture, joined along the seams of least difference.

    Source: Efros and Freeman, "Image Quilting for Texture Synthesis and Transfer", SIGGRAPH 2001. Each block is the
    best of a few random ones instead of all possible ones.

    Args:
        patch: Texture, shape (S, S, 3), dtype uint8.
        size: Height and width of the area.
        rng: Random generator.

    Returns:
        Texture, shape (H, W, 3), dtype float32.
    """
    side = min(patch.shape[:2])
    block = max(8, int(side * 0.7))
    overlap = max(3, block // 5)
    step = block - overlap
    rows, columns = (max(1, -(-(length - overlap) // step)) for length in size)
    source = patch.astype(np.float32)
    out = np.zeros((rows * step + overlap, columns * step + overlap, 3), dtype=np.float32)
    for row in range(rows):
        for column in range(columns):
            target = out[row * step : row * step + block, column * step : column * step + block]
            _place_block(target, source, overlap, has_above=row > 0, has_left=column > 0, rng=rng)
    return out[: size[0], : size[1]]


def _place_block(
    target: Pixels, source: Pixels, overlap: int, *, has_above: bool, has_left: bool, rng: np.random.Generator
) -> None:
    """Write the best of a few random blocks to `target`, blended along seams with the blocks above and to the left."""
    block = target.shape[0]
    best, lowest = source[:block, :block], np.inf
    for _ in range(_CANDIDATES if has_above or has_left else 1):
        y, x = rng.integers(0, source.shape[0] - block + 1), rng.integers(0, source.shape[1] - block + 1)
        candidate = source[y : y + block, x : x + block]
        candidate = candidate[:: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]  # hides repetitions
        error = 0.0
        if has_above:
            error += float(np.abs(candidate[:overlap:2, ::2] - target[:overlap:2, ::2]).mean())
        if has_left:
            error += float(np.abs(candidate[::2, :overlap:2] - target[::2, :overlap:2]).mean())
        if error < lowest:
            best, lowest = candidate, error
    weight = np.ones((block, block), dtype=np.float32)
    if has_above:
        weight[:overlap] *= _seam_weight(((best[:overlap] - target[:overlap]) ** 2).sum(-1).T).T
    if has_left:
        weight[:, :overlap] *= _seam_weight(((best[:, :overlap] - target[:, :overlap]) ** 2).sum(-1))
    target += weight[..., None] * (best - target)


def _seam_weight(cost: Field) -> Field:
    """Return the weight of the new block, shape (N, overlap): 1 to the right of the cheapest seam."""
    total = np.ascontiguousarray(cost[::2])  # a seam moves by at most one pixel in two rows
    padded = np.full(cost.shape[1] + 2, np.inf, dtype=np.float32)
    for row in range(1, len(total)):
        padded[1:-1] = total[row - 1]
        total[row] += np.minimum(np.minimum(padded[:-2], padded[2:]), padded[1:-1])
    seam = np.empty(len(total), dtype=np.float32)
    column = int(total[-1].argmin())
    for row in range(len(total) - 1, -1, -1):
        low = max(0, column - 1)
        column = low + int(total[row, low : column + 2].argmin()) if row < len(total) - 1 else column
        seam[row] = column
    seam = np.repeat(seam, 2)[: len(cost)]
    positions = np.arange(cost.shape[1], dtype=np.float32)[None]
    return np.asarray(np.clip((positions - seam[:, None]) / 4 + 0.5, 0, 1), dtype=np.float32)


def luminance(pixels: Pixels) -> Field:
    """Return the luminance (ITU-R BT.601) of RGB pixels."""
    return np.asarray(pixels @ _GREY, dtype=np.float32)


def blur_pixels(pixels: Pixels, sigma: float) -> Pixels:
    """Return RGB pixels smoothed with a Gaussian of `sigma` pixels."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.float32)


def recolour(texture: Pixels, dark: Sequence[float], bright: Sequence[float], *, strength: float) -> Pixels:
    """Tint a texture with a ramp from a dark to a bright colour along its luminance, keeping its detail.

    Args:
        texture: Texture, shape (H, W, 3), dtype float32.
        dark: RGB of pixels two standard deviations darker than the mean.
        bright: RGB of pixels two standard deviations brighter.
        strength: 0 keeps the texture's own colours, 1 uses the ramp only.
    """
    grey = luminance(texture)
    position = np.clip((grey - grey.mean()) / (4 * grey.std() + 1e-3) + 0.5, -0.3, 1.3)[..., None]
    low, high = np.array(dark, dtype=np.float32), np.array(bright, dtype=np.float32)
    return np.asarray(texture * (1 - strength) + (low + position * (high - low)) * strength, dtype=np.float32)


class TextureLibrary:
    """Textures of several photographs, decoded when they are needed.

    Args:
        regions: Regions to choose from.
        read: Function that returns the photograph of a stem.
    """

    def __init__(self, regions: Sequence[TextureRegion], read: Callable[[str], Image]) -> None:
        self._regions = tuple(regions)
        self._read = read

    def select(self, keep: Callable[[TextureRegion], bool]) -> TextureLibrary:
        """Return the library of those regions for which `keep` is true."""
        return TextureLibrary([region for region in self._regions if keep(region)], self._read)

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self._regions)

    def draw(self, rng: np.random.Generator, size: Size, *, zoom: float = 1.0) -> tuple[Pixels, int]:
        """Fill an area with the texture of a random region.

        All classes and fine classes are equally likely, whatever the number of their regions. Within one of them, large
        and uniform regions are preferred.

        Args:
            rng: Random generator.
            size: Height and width of the area.
            zoom: Magnification of the texture; higher if the texture would be too small.

        Returns:
            Texture, shape (H, W, 3), dtype float32, and its class id.

        Raises:
            IndexError: If the library is empty.
        """
        region, patch = self._draw_patch(rng)
        patch = np.ascontiguousarray(np.rot90(_even_out(patch), int(rng.integers(4))))
        side = round(max(region.side * zoom, _SMALLEST_TEXTURE * min(size), 24))
        interpolation = cv2.INTER_AREA if side < region.side else cv2.INTER_CUBIC
        resized = np.asarray(cv2.resize(patch, (side, side), interpolation=interpolation), dtype=np.uint8)
        texture = quilt(resized, size, rng)
        shading = smooth_noise(rng, size, min(size) * rng.uniform(0.15, 0.5))
        return texture * (1 + np.float32(rng.uniform(0, 0.1)) * shading)[..., None], region.label

    def _draw_patch(self, rng: np.random.Generator) -> tuple[TextureRegion, Image]:
        """Return the first of a few random regions that is uniform, or the most uniform of them."""
        candidates = []
        for _ in range(_TRIES):
            region = self._draw_region(rng)
            patch = region.cut(self._read(region.stem))
            candidates.append((_coarse_contrast(patch), region, patch))
            if candidates[-1][0] < _UNIFORM:
                break
        _, region, patch = min(candidates, key=lambda candidate: candidate[0])
        return region, patch

    def _draw_region(self, rng: np.random.Generator) -> TextureRegion:
        kinds = sorted({(region.label, region.fine) for region in self._regions})
        if not kinds:
            raise IndexError("The texture library is empty.")
        kind = kinds[int(rng.integers(len(kinds)))]
        same = [region for region in self._regions if (region.label, region.fine) == kind]
        sides = np.array([region.side for region in same], dtype=float)
        return same[int(rng.choice(len(same), p=sides / sides.sum()))]


def _even_out(patch: Image) -> Image:
    """Remove most of the gradual changes of brightness from a texture, which would show where blocks meet."""
    coarse = cv2.resize(patch, (6, 6), interpolation=cv2.INTER_AREA).astype(np.float32)
    deviation = cv2.resize(coarse - coarse.mean((0, 1)), patch.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(patch - np.float32(0.85) * deviation, 0, 255), dtype=np.uint8)


def _coarse_contrast(patch: Image) -> float:
    """Return the standard deviation of the brightness of large blocks, relative to its mean."""
    blocks = cv2.resize(patch, (12, 12), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = luminance(blocks)
    return float(grey.std() / (grey.mean() + 1))
