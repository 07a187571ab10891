"""Sliding-window inference with nnU-Net's results: normalisation, tiles, Gaussian weights, logit accumulation."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import Normalisation
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.inference import nnunet_logits
from droneseg.inference.probability_map import ProbabilityObserver
from droneseg.inference.runtimes.base import Logits, Patches, Probabilities, Runtime, argmax_with_confidence, softmax
from droneseg.model.bundle import NnunetLogits

_ZSCORE_EPS = 1e-8  # as in nnU-Net's ZScoreNormalization
# as in nnU-Net's `compute_gaussian` and SciPy's `gaussian_filter`, which it calls
_SIGMA_SHARE = 1 / 8
_TRUNCATE = 4.0
_PEAK = 10.0
_OBSERVED_ROWS = 64  # few enough to fit in the processor's cache

Table: TypeAlias = NDArray[np.float32] | NDArray[np.uint8] | None
"""Look-up table for the bytes of a tile: normalised values by channel, shape (3, 256), dtype float32, see
`normalisation_table`; or, if the runtime normalises, other bytes, shape (256,), dtype uint8; None for no change."""
Classifier: TypeAlias = Callable[[NDArray[np.float32] | NDArray[np.float16], int], tuple[Mask, Probabilities]]
"""Function from the logits of finished rows, shape (C, rows, W), and the index of the first row to classes and their
probabilities, each of shape (rows, W)."""


def nonzero_box(image: Image) -> tuple[slice, slice]:
    """Return the rows and columns of the bounding box of all non-black pixels; the whole image if all are black.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
    """
    # usual case: no row or column at an edge is black, so the box is the whole image
    if image[0].any() and image[-1].any() and image[:, 0].any() and image[:, -1].any():
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    rows = np.flatnonzero(np.any(image, axis=(1, 2)))
    columns = np.flatnonzero(np.any(image, axis=(0, 2)))
    if not len(rows):
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def normalisation_table(image: Image, normalisation: Normalisation) -> NDArray[np.float32]:
    """Return the look-up table from byte value to normalised value by channel, shape (3, 256), dtype float32.

    Args:
        image: Cropped RGB image, shape (H, W, 3), dtype uint8.
        normalisation: `rgb_to_0_1` divides by 255; `zscore` gives each channel mean 0 and standard deviation 1.
    """
    values = np.arange(256, dtype=np.float32)
    if normalisation == Normalisation.RGB_TO_0_1:
        return np.repeat((values / np.float32(255))[None], 3, axis=0)
    return np.stack([_zscored(values, image[..., channel]) for channel in range(3)])


def _zscored(values: NDArray[np.float32], channel: NDArray[np.uint8]) -> NDArray[np.float32]:
    counts = np.bincount(channel.ravel(), minlength=256)
    wide = values.astype(np.float64)
    mean = (counts * wide).sum() / counts.sum()
    deviation = np.sqrt((counts * (wide - mean) ** 2).sum() / counts.sum())
    return (values - np.float32(mean)) / np.float32(max(deviation, _ZSCORE_EPS))


def window_starts(size: int, patch: int, step: float) -> list[int]:
    """Return the start of each tile along one axis, as nnU-Net's `compute_steps_for_sliding_window` does.

    Args:
        size: Length of the axis in pixels, at least `patch`.
        patch: Length of a tile in pixels.
        step: Largest distance between tiles, as a share of `patch`; above 0 and at most 1.

    Raises:
        ValueError: If the axis is shorter than a tile.
    """
    if size < patch:
        raise ValueError(f"The axis of {size} pixels is shorter than a tile of {patch}.")
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    distance = (size - patch) / (count - 1) if count > 1 else 0.0
    return [int(np.round(distance * index)) for index in range(count)]


def padding(size: int, patch: int) -> int:
    """Return how many pixels nnU-Net pads before an axis that is shorter than a tile; the rest is padded after it."""
    return max(patch - size, 0) // 2


@lru_cache(maxsize=4)
def gaussian(patch: tuple[int, int]) -> NDArray[np.float16]:
    """Return the weight of each pixel of a tile, shape (h, w), dtype float16, maximum 10.

    Equals nnU-Net's `compute_gaussian`, which filters a single bright pixel with SciPy's Gaussian filter. The result is
    the product of two one-dimensional kernels. Weights of 0, from the filter or from float16, are replaced by the
    smallest other weight, so that no sum of weights is 0.
    """
    rows, columns = (_kernel(side) for side in patch)
    product = rows[:, None] * columns[None, :]
    # torch converts to float32 before it rounds to float16
    weights: NDArray[np.float16] = (product / (product.max() / _PEAK)).astype(np.float32).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    weights.setflags(write=False)
    return weights


def _kernel(side: int) -> NDArray[np.float64]:
    """Return the impulse response of the Gaussian filter, centred on an axis, shape (side,)."""
    sigma = side * _SIGMA_SHARE
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    values = np.exp(-0.5 / sigma**2 * offsets**2)
    values /= values.sum()
    response = np.zeros(side)
    positions = offsets + side // 2
    inside = (positions >= 0) & (positions < side)
    response[positions[inside]] = values[inside]
    return response


@dataclass(frozen=True)
class SlidingWindowConfig:
    """Parameters of sliding-window inference.

    Attributes:
        patch: Height and width of a tile.
        step: Largest distance between tiles, as a share of the patch.
        mirror_axes: Image axes along which mirrored passes are averaged; empty for a single pass.
        accumulate_float16: Whether logits are accumulated in float16, as in nnU-Net.
        border: Content of tiles beyond the image: black as in nnU-Net, or the image mirrored at its border.
        temperature: Number that logits are divided by before the softmax.
        nnunet_logits: How classes follow from the logits of nnU-Net's folds and classes, if the network gives these.
    """

    patch: tuple[int, int]
    step: float
    mirror_axes: tuple[int, ...]
    accumulate_float16: bool
    border: Literal["black", "mirror"] = "black"
    temperature: float = 1.0
    nnunet_logits: NnunetLogits | None = None


@dataclass
class SlidingWindowResult:
    """Result of sliding-window inference.

    Attributes:
        mask: Class ids, shape (H, W), dtype uint8.
        probability_sum: Sum of the predicted class's probability over all pixels.
        network_s: Seconds spent in the network.
    """

    mask: Mask
    probability_sum: float = 0.0
    network_s: float = field(default=0.0)


class LogitAccumulator:
    """Weighted sums of the logits of overlapping tiles, for the rows that later tiles may still cover.

    Tiles are added row by row, so memory is needed for only one row of tiles. Sums are float32, or float16 as in
    nnU-Net's predictor, whose rounding decides ties.

    Args:
        classes: Number of classes C.
        width: Width of the padded image.
        weights: Weight of each pixel of a tile, shape (h, w), dtype float16.
        half: Whether to accumulate in float16.
    """

    def __init__(self, classes: int, width: int, weights: NDArray[np.float16], *, half: bool) -> None:
        dtype = np.float16 if half else np.float32
        self._weights = weights
        self._factor = weights.astype(np.float32)
        self._weighted = np.empty(weights.shape, np.float32)
        self._logits = np.zeros((classes, weights.shape[0], width), dtype)
        self._total = np.zeros((weights.shape[0], width), dtype)

    def add(self, left: int, logits: Logits) -> None:
        """Add the logits of a tile, shape (C, h, w), whose left edge is at column `left`."""
        columns = slice(left, left + self._weights.shape[1])
        # float16 sums are computed in float32 and rounded at each step, as in torch
        for target, plane in zip(self._logits[:, :, columns], logits, strict=True):
            np.multiply(plane, self._factor, out=self._weighted)
            np.add(target, self._weighted, out=target, casting="same_kind")
        total = self._total[:, columns]
        np.add(total, self._factor, out=total, casting="same_kind")

    def finish_rows(self, rows: int) -> NDArray[np.float32] | NDArray[np.float16]:
        """Return the mean logits of the first `rows` rows, shape (C, rows, W), a view of the sums until `drop_rows`."""
        finished = self._logits[:, :rows]
        np.divide(finished, self._total[:rows], out=finished)
        return finished

    def drop_rows(self, rows: int) -> None:
        """Remove the first `rows` rows and shift the others to the top."""
        remaining = self._logits.shape[1] - rows
        # plane by plane, because NumPy copies whole arrays whose parts might overlap
        for plane in (*self._logits, self._total):
            plane[:remaining] = plane[rows:]
            plane[remaining:] = 0


def count_tiles(size: tuple[int, int], window: SlidingWindowConfig) -> int:
    """Return the number of tiles of an image of this height and width."""
    rows, columns = (
        len(window_starts(max(side, patch), patch, window.step)) for side, patch in zip(size, window.patch, strict=True)
    )
    return rows * columns


# logits that overflow raise an error in `require_finite`
@np.errstate(over="ignore", invalid="ignore")
def sliding_window_inference(
    runtime: Runtime,
    image: Image,
    tables: Sequence[Table],
    window: SlidingWindowConfig,
    classify: Classifier | None = None,
    observe: ProbabilityObserver | None = None,
) -> SlidingWindowResult:
    """Segment a cropped image.

    Args:
        runtime: Runtime that predicts batches of tiles.
        image: RGB, shape (H, W, 3), dtype uint8.
        tables: Look-up tables, at least one; the logits of the tiles are averaged over the tables.
        window: Parameters of the sliding window.
        classify: Function that turns logits into classes; None for the class with the largest logit.
        observe: Function that receives the class probabilities, in bands of rows; not to be combined with `classify`.
    """
    tiles = _TileExtractor(image, window)
    result = SlidingWindowResult(np.empty(image.shape[:2], np.uint8))
    single = len(tiles.positions) == len(tables) == 1 and not window.mirror_axes
    if single and not window.accumulate_float16 and not classify:
        _one_tile(runtime, tiles, tables[0], window.temperature, observe, result)
        return result

    classify = classify or (lambda logits, _first: _classify(logits, window))

    def decide(logits: NDArray[np.float32] | NDArray[np.float16], first: int) -> None:
        ids, probabilities = classify(logits, first)
        result.mask[first : first + len(ids)] = ids
        result.probability_sum += float(probabilities.sum(dtype=np.float64))
        if observe:
            _observe(_combined(logits, window), first, window.temperature, observe)

    result.network_s = _finished_rows(runtime, tiles, tables, window, decide)
    return result


@np.errstate(over="ignore", invalid="ignore")
def logit_map(
    runtime: Runtime, image: Image, tables: Sequence[Table], window: SlidingWindowConfig
) -> tuple[NDArray[np.float32], float]:
    """Return the logits of every pixel, shape (C, H, W), dtype float32, and the seconds spent in the network.

    For the arguments see `sliding_window_inference`.
    """
    bands: list[NDArray[np.float32]] = []
    tiles = _TileExtractor(image, window)

    def keep(logits: NDArray[np.float32] | NDArray[np.float16], _first: int) -> None:
        # a copy, because the rows are valid during the call only
        bands.append(_combined(logits, window).astype(np.float32))

    network_s = _finished_rows(runtime, tiles, tables, window, keep)
    return np.concatenate(bands, axis=1), network_s


def central_tile(image: Image, table: NDArray[np.float32], patch: tuple[int, int]) -> NDArray[np.float32]:
    """Return the normalised tile in the centre of an image, shape (3, h, w), dtype float32, zero outside the image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        table: Normalisation table, shape (3, 256).
        patch: Height and width of the tile.
    """
    tiles = _TileExtractor(image, SlidingWindowConfig(patch, step=0.5, mirror_axes=(), accumulate_float16=False))
    top, left = ((side - tile) // 2 for side, tile in zip(tiles.padded, patch, strict=True))
    tile: NDArray[np.float32] = tiles.extract([(top, left)], table)[0].astype(np.float32, copy=False)
    return tile


class _TileExtractor:
    """Computes the positions of the tiles of an image and extracts tiles, padded with zeros."""

    def __init__(self, image: Image, window: SlidingWindowConfig) -> None:
        self._image, self.patch = image, window.patch
        self._border = window.border
        self.size = image.shape[:2]
        self.padded = tuple(max(side, patch) for side, patch in zip(self.size, window.patch, strict=True))
        self.before = tuple(padding(side, patch) for side, patch in zip(self.size, window.patch, strict=True))
        self.tops, self.lefts = (
            window_starts(side, patch, window.step) for side, patch in zip(self.padded, window.patch, strict=True)
        )
        self.positions = [(top, left) for top in self.tops for left in self.lefts]

    def extract(self, positions: list[tuple[int, int]], table: Table) -> Patches:
        """Return the tiles at positions (top, left), in the format of the runtime's input."""
        height, width = self.patch
        pixels: Patches
        if table is None or table.dtype == np.uint8:
            pixels = np.zeros((len(positions), height, width, 3), np.uint8)
            channels_last: Patches = pixels
        else:
            pixels = np.zeros((len(positions), 3, height, width), np.float32)
            channels_last = pixels.transpose(0, 2, 3, 1)
        for tile, position in zip(channels_last, positions, strict=True):
            self._fill(tile, position, table)
        return pixels

    def _fill(self, tile: NDArray[np.uint8] | NDArray[np.float32], position: tuple[int, int], table: Table) -> None:
        """Write the pixels at a position to a tile, shape (h, w, 3)."""
        (y, rows), (x, columns) = (
            _inside(start, side, before, patch)
            for start, side, before, patch in zip(position, self.size, self.before, self.patch, strict=True)
        )
        part = self._image[rows, columns]
        area = slice(y, y + part.shape[0]), slice(x, x + part.shape[1])
        if table is None:
            tile[area] = part
        else:
            for channel in range(3):
                tile[area][..., channel] = (table if table.ndim == 1 else table[channel])[part[..., channel]]
        if self._border == "mirror" and part.shape[:2] != self.patch:
            _mirror_border(tile, area)


def _mirror_border(tile: NDArray[np.uint8] | NDArray[np.float32], area: tuple[slice, slice]) -> None:
    """Fill a tile, shape (h, w, 3), outside `area` with the content of `area`, mirrored at its borders."""
    padding_widths = [(part.start, side - part.stop) for part, side in zip(area, tile.shape, strict=False)]
    tile[:] = np.pad(tile[area], [*padding_widths, (0, 0)], mode="symmetric")


def _inside(start: int, side: int, before: int, patch: int) -> tuple[int, slice]:
    """Return, along one axis, the offset of the image in a tile and the part of the image that the tile covers."""
    first, last = max(start - before, 0), min(start - before + patch, side)
    return max(before - start, 0), slice(first, last)


def _one_tile(
    runtime: Runtime,
    tiles: _TileExtractor,
    table: Table,
    temperature: float,
    observe: ProbabilityObserver | None,
    result: SlidingWindowResult,
) -> None:
    """Segment an image that fits in one tile, with the runtime's argmax: a single tile needs no weights."""
    patches = tiles.extract(tiles.positions, table)
    begin = time.perf_counter()
    by_class: NDArray[np.float32] | None = None
    if observe:
        ids, probabilities, by_class = runtime.argmax_and_softmax(patches, temperature)
    else:
        ids, probabilities = runtime.argmax(patches, temperature)
    result.network_s = time.perf_counter() - begin
    height, width = result.mask.shape
    area = slice(tiles.before[0], tiles.before[0] + height), slice(tiles.before[1], tiles.before[1] + width)
    result.mask[:] = ids[0][area]
    result.probability_sum = float(probabilities[0][area].sum(dtype=np.float64))
    if observe and by_class is not None:
        for first, rows in _row_blocks(by_class[0][:, area[0], area[1]]):
            observe(rows, first)


def _row_blocks(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the index of the first row and the rows of each block of an array, shape (C, H, W)."""
    for first in range(0, values.shape[1], _OBSERVED_ROWS):
        yield first, values[:, first : first + _OBSERVED_ROWS]


def _classify(
    logits: NDArray[np.float32] | NDArray[np.float16], window: SlidingWindowConfig
) -> tuple[Mask, Probabilities]:
    """Return the class of each pixel of finished rows, and its probability."""
    if window.nnunet_logits:
        return nnunet_logits.classify(logits, window.nnunet_logits, window.temperature)
    return argmax_with_confidence(logits, window.temperature)


def _combined(
    logits: NDArray[np.float32] | NDArray[np.float16], window: SlidingWindowConfig
) -> NDArray[np.float32] | NDArray[np.float16]:
    """Return the logits of the bundle's classes in finished rows."""
    return nnunet_logits.combine(logits, window.nnunet_logits) if window.nnunet_logits else logits


def _observe(
    logits: NDArray[np.float32] | NDArray[np.float16], first: int, temperature: float, observe: ProbabilityObserver
) -> None:
    """Pass the softmax of logits to an observer."""
    for top, rows in _row_blocks(logits):
        observe(softmax(rows.astype(np.float32, copy=False), temperature), first + top)


def _finished_rows(
    runtime: Runtime,
    tiles: _TileExtractor,
    tables: Sequence[Table],
    window: SlidingWindowConfig,
    use: Callable[[NDArray[np.float32] | NDArray[np.float16], int], None],
) -> float:
    """Pass the logits of the image to `use`, band by band from the top, with the index of the first row of each band.

    A band is valid during the call only.

    Returns:
        Seconds spent in the network.
    """
    (height, width), (above, beside), bottom = tiles.size, tiles.before, tiles.padded[0]
    network_s = 0.0
    following = dict(zip(tiles.tops, [*tiles.tops[1:], bottom], strict=True))
    rows: LogitAccumulator | None = None
    for (top, left), logits, seconds in _logits_by_tile(runtime, tiles, tables, window):
        network_s += seconds
        rows = rows or LogitAccumulator(
            len(logits), tiles.padded[1], gaussian(window.patch), half=window.accumulate_float16
        )
        rows.add(left, logits)
        if left != tiles.lefts[-1]:
            continue
        band = rows.finish_rows(following[top] - top)
        # the finished rows, without padding
        first, last = max(top, above), min(following[top], above + height)
        if first < last:
            use(band[:, first - top : last - top, beside : beside + width], first - above)
        rows.drop_rows(following[top] - top)
    return network_s


def _logits_by_tile(
    runtime: Runtime, tiles: _TileExtractor, tables: Sequence[Table], window: SlidingWindowConfig
) -> Iterator[tuple[tuple[int, int], NDArray[np.float32], float]]:
    """Yield the position, the logits, shape (C, h, w), and the seconds of each tile. The network runs on batches."""
    for begin in range(0, len(tiles.positions), runtime.batch):
        positions = tiles.positions[begin : begin + runtime.batch]
        seconds = 0.0
        logits: NDArray[np.float32] | None = None
        for table in tables:
            patches = tiles.extract(positions, table)
            started = time.perf_counter()
            result = _mirrored_mean(runtime, patches, window.mirror_axes)
            seconds += time.perf_counter() - started
            logits = result if logits is None else logits + result
        if logits is None:
            raise ValueError("There is no look-up table. Pass (None,) for the image as it is.")
        if len(tables) > 1:
            logits /= len(tables)
        for position, of_tile in zip(positions, logits, strict=True):
            yield position, of_tile, seconds / len(positions)


def _mirrored_mean(runtime: Runtime, patches: Patches, axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Average the logits over all mirrored passes, in nnU-Net's order."""
    total = runtime.logits(patches)
    # uint8 tiles are (N, H, W, 3); float tiles and logits are (N, C, H, W)
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
    # NumPy's type stubs do not preserve which of the two dtypes the tiles have
    return np.ascontiguousarray(np.flip(patches, axes), dtype=patches.dtype)  # type: ignore[return-value]
