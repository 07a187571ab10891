"""Preprocessing, tiles, Gaussian weights, logit accumulation."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.inference.runtimes.base import LogitAccumulator, Patches, Runtime

Normalisation: TypeAlias = Literal["rgb_to_0_1", "zscore"]

_ZSCORE_EPS = 1e-8  # of nnU-Net's ZScoreNormalization


def nonzero_box(image: Image) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box around all pixels that are not black; all of a black image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
    """
    # most photographs have no black border: their four edges tell
    if image[0].any() and image[-1].any() and image[:, 0].any() and image[:, -1].any():
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    rows = np.flatnonzero(np.any(image, axis=(1, 2)))
    columns = np.flatnonzero(np.any(image, axis=(0, 2)))
    if not len(rows):
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def normalisation_table(image: Image, normalisation: Normalisation) -> NDArray[np.float32]:
    """Return what each byte value becomes, by channel, shape (3, 256), dtype float32.

    Args:
        image: The cropped photograph, shape (H, W, 3), dtype uint8.
        normalisation: `rgb_to_0_1` divides by 255; `zscore` makes each channel mean 0 and deviation 1.
    """
    values = np.arange(256, dtype=np.float32)
    if normalisation == "rgb_to_0_1":
        return np.repeat((values / np.float32(255))[None], 3, axis=0)
    return np.stack([_zscored(values, image[..., channel]) for channel in range(3)])


def _zscored(values: NDArray[np.float32], channel: NDArray[np.uint8]) -> NDArray[np.float32]:
    counts = np.bincount(channel.ravel(), minlength=256)
    wide = values.astype(np.float64)
    mean = (counts * wide).sum() / counts.sum()
    deviation = np.sqrt((counts * (wide - mean) ** 2).sum() / counts.sum())
    return (values - np.float32(mean)) / np.float32(max(deviation, _ZSCORE_EPS))


# of nnU-Net's `compute_gaussian` and scipy's `gaussian_filter`, which it calls
_SIGMA_SHARE = 1 / 8
_TRUNCATE = 4.0
_PEAK = 10.0


def window_starts(size: int, patch: int, step: float) -> list[int]:
    """Return where tiles begin along one axis, as nnU-Net's `compute_steps_for_sliding_window` does.

    Args:
        size: Length of the axis, at least `patch`.
        patch: Length of a tile.
        step: Largest distance of two tiles, as a share of `patch`, above 0 and at most 1.

    Raises:
        ValueError: If the axis is shorter than a tile.
    """
    if size < patch:
        raise ValueError(f"An axis of {size} is shorter than a tile of {patch}.")
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    distance = (size - patch) / (count - 1) if count > 1 else 0.0
    return [int(np.round(distance * index)) for index in range(count)]


def padding(size: int, patch: int) -> int:
    """Return how many pixels nnU-Net puts before an axis that is shorter than a tile; the rest goes behind it."""
    return max(patch - size, 0) // 2


@lru_cache(maxsize=4)
def gaussian(patch: tuple[int, int]) -> NDArray[np.float16]:
    """Return the weight of each pixel of a tile, shape (h, w), dtype float16, highest 10: nnU-Net's `compute_gaussian`.

    Scipy's filter of one bright pixel is the product of its two kernels; where it or float16 leaves 0, the smallest
    other weight stands, so that no sum of weights is 0.
    """
    rows, columns = (_kernel(side) for side in patch)
    product = rows[:, None] * columns[None, :]
    # torch rounds to float16 by way of float32
    weights: NDArray[np.float16] = (product / (product.max() / _PEAK)).astype(np.float32).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    weights.setflags(write=False)
    return weights


def _kernel(side: int) -> NDArray[np.float64]:
    """Return the filter's answer to a bright pixel in the middle of an axis, shape (side,)."""
    sigma = side * _SIGMA_SHARE
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    values = np.exp(-0.5 / sigma**2 * offsets**2)
    values /= values.sum()
    answer = np.zeros(side)
    places = offsets + side // 2
    inside = (places >= 0) & (places < side)
    answer[places[inside]] = values[inside]
    return answer


@dataclass(frozen=True)
class SlidingWindowConfig:
    """How the sliding window goes.

    Attributes:
        patch: Height and width of a tile.
        step: Largest distance of two tiles, as a share of the patch.
        mirror_axes: Axes of the image along which mirrored passes are averaged; none for one pass.
        half_sums: Whether tiles are summed in float16, as nnU-Net does.
    """

    patch: tuple[int, int]
    step: float
    mirror_axes: tuple[int, ...]
    accumulate_float16: bool


@dataclass
class SlidingWindowResult:
    """What the window found.

    Attributes:
        mask: Class ids, shape (H, W), dtype uint8.
        probability_sum: Of the winning class over all pixels.
        network_s: Seconds in the network.
    """

    mask: Mask
    probability_sum: float = 0.0
    network_s: float = field(default=0.0)


# a score that overflows is told as an error where rows are decided
@np.errstate(over="ignore", invalid="ignore")
def sliding_window_inference(
    runtime: Runtime, image: Image, table: NDArray[np.float32] | None, window: SlidingWindowConfig
) -> SlidingWindowResult:
    """Predict the classes of a cropped photograph.

    Args:
        runtime: Runs batches of tiles.
        image: RGB, shape (H, W, 3), dtype uint8.
        table: What each byte value becomes, shape (3, 256); None if the runtime normalises.
        window: How to slide.
    """
    cutter = _TileExtractor(image, table, window)
    answer = SlidingWindowResult(np.empty(image.shape[:2], np.uint8))
    if len(cutter.places) == 1 and not window.mirror_axes and not window.accumulate_float16:
        _one_tile(runtime, cutter, answer)
    else:
        _many_tiles(runtime, cutter, window, answer)
    return answer


def central_tile(image: Image, table: NDArray[np.float32], patch: tuple[int, int]) -> NDArray[np.float32]:
    """Return the normalised tile in the middle of an image, shape (3, h, w), dtype float32, zero beyond the image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        table: What each byte value becomes, shape (3, 256).
        patch: Height and width of the tile.
    """
    cutter = _TileExtractor(
        image, table, SlidingWindowConfig(patch, step=0.5, mirror_axes=(), accumulate_float16=False)
    )
    top, left = ((side - tile) // 2 for side, tile in zip(cutter.padded, patch, strict=True))
    tile: NDArray[np.float32] = cutter.extract([(top, left)])[0].astype(np.float32, copy=False)
    return tile


class _TileExtractor:
    """Knows where tiles lie and cuts them, with zeros beyond the image."""

    def __init__(self, image: Image, table: NDArray[np.float32] | None, window: SlidingWindowConfig) -> None:
        self._image, self._table, self.patch = image, table, window.patch
        size = image.shape[:2]
        self.padded = tuple(max(side, patch) for side, patch in zip(size, window.patch, strict=True))
        self.before = tuple(padding(side, patch) for side, patch in zip(size, window.patch, strict=True))
        self.tops, self.lefts = (
            window_starts(side, patch, window.step) for side, patch in zip(self.padded, window.patch, strict=True)
        )
        self.places = [(top, left) for top in self.tops for left in self.lefts]

    def extract(self, places: list[tuple[int, int]]) -> Patches:
        """Return the tiles that begin at (top, left) each, as the runtime wants them."""
        height, width = self.patch
        bytes_ = np.zeros((len(places), height, width, 3), np.uint8)
        values = None if self._table is None else np.zeros((len(places), 3, height, width), np.float32)
        for index, (top, left) in enumerate(places):
            (y, rows), (x, columns) = (
                _inside(start, side, before, patch)
                for start, side, before, patch in zip(
                    (top, left), self._image.shape, self.before, self.patch, strict=False
                )
            )
            part = self._image[rows, columns]
            area = slice(y, y + part.shape[0]), slice(x, x + part.shape[1])
            if values is None or self._table is None:
                bytes_[index][area] = part
            else:
                for channel in range(3):
                    values[index, channel][area] = self._table[channel][part[..., channel]]
        return bytes_ if values is None else values


def _inside(start: int, side: int, before: int, patch: int) -> tuple[int, slice]:
    """Return where in a tile the image begins, and which part of the image lies in the tile, along one axis."""
    first, last = max(start - before, 0), min(start - before + patch, side)
    return max(before - start, 0), slice(first, last)


def _one_tile(runtime: Runtime, cutter: _TileExtractor, answer: SlidingWindowResult) -> None:
    """Let the runtime decide: a single tile's weights cancel out."""
    patches = cutter.extract(cutter.places)
    begin = time.perf_counter()
    ids, winning = runtime.argmax(patches)
    answer.network_s = time.perf_counter() - begin
    height, width = answer.mask.shape
    area = slice(cutter.before[0], cutter.before[0] + height), slice(cutter.before[1], cutter.before[1] + width)
    answer.mask[:] = ids[0][area]
    answer.probability_sum = float(winning[0][area].sum(dtype=np.float64))


def _many_tiles(
    runtime: Runtime, cutter: _TileExtractor, window: SlidingWindowConfig, answer: SlidingWindowResult
) -> None:
    height, width = answer.mask.shape
    (above, beside), bottom = cutter.before, cutter.padded[0]
    rows: LogitAccumulator | None = None
    following = dict(zip(cutter.tops, [*cutter.tops[1:], bottom], strict=True))
    for (top, left), logits in _scores_by_tile(runtime, cutter, window, answer):
        rows = rows or LogitAccumulator(
            len(logits), cutter.padded[1], gaussian(window.patch), half=window.accumulate_float16
        )
        rows.add(left, logits)
        if left != cutter.lefts[-1]:
            continue
        ids, winning = rows.close(following[top] - top)
        # the decided rows, without those that only pad the image
        first, last = max(top, above), min(following[top], above + height)
        if first < last:
            decided = slice(first - top, last - top), slice(beside, beside + width)
            answer.mask[first - above : last - above] = ids[decided]
            answer.probability_sum += float(winning[decided].sum(dtype=np.float64))


def _scores_by_tile(
    runtime: Runtime, cutter: _TileExtractor, window: SlidingWindowConfig, answer: SlidingWindowResult
) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
    """Yield place and scores (C, h, w) of each tile, row by row; the network runs in batches."""
    for begin in range(0, len(cutter.places), runtime.batch):
        places = cutter.places[begin : begin + runtime.batch]
        patches = cutter.extract(places)
        started = time.perf_counter()
        logits = _mirrored_mean(runtime, patches, window.mirror_axes)
        answer.network_s += time.perf_counter() - started
        yield from zip(places, logits, strict=True)


def _mirrored_mean(runtime: Runtime, patches: Patches, axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Average the scores over all mirrored passes, in nnU-Net's order."""
    total = runtime.logits(patches)
    # bytes come as (N, H, W, 3), values and scores as (N, C, H, W)
    first = 1 if patches.dtype == np.uint8 else 2
    flips = [chosen for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]
    for chosen in flips:
        total += np.flip(
            runtime.logits(_flipped(patches, tuple(first + axis for axis in chosen))),
            tuple(2 + axis for axis in chosen),
        )
    if flips:
        total /= len(flips) + 1
    return total


def _flipped(patches: Patches, axes: tuple[int, ...]) -> Patches:
    # numpy's types lose which of the two kinds of tiles it is
    return np.ascontiguousarray(np.flip(patches, axes), dtype=patches.dtype)  # type: ignore[return-value]
