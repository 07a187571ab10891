"""Views of an image: resampling to the model's ground resolution, coarser views for context, exposure correction.

A lake that fills a tile looks like asphalt, so a large image is predicted at several scales, and the predictions are
combined. With a known ground resolution, these are tiles at the model's resolution and up to two coarser views; without
one, a reduced image of two tiles along its longer side, and the whole image in one tile.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.system import usable_cores
from droneseg.inference.probability_map import ProbabilityObserver
from droneseg.inference.runtimes.base import Probabilities, argmax_and_max, require_finite, softmax
from droneseg.model.bundle import Context, Exposure, TrainingGround

DEFAULT_EXPOSURE = Exposure(methods=("mixed",), range=(0.34, 0.54), target=0.44)
"""Default exposure correction; the range covers 80 % of the 218 training photographs of the included model."""
_OWN_SOURCE = "60 training photographs enlarged, reduced and darkened; see docs/experiments.md"
_OTHER_SOURCE = "the values of the included model, which has other classes"
_REGION_ROLES = (Role.WATER, Role.SOFT, Role.LANDING)
MAX_ENLARGEMENT = 2.0
"""Largest enlargement of an image that is coarser than the training images."""
MAX_REDUCTION = 4.0
"""Largest reduction of a view below the model's resolution; the network recognises little in smaller ones."""
_TWO_STEPS = 2.0  # from this reduction on, there is a second view of intermediate size
_UNKNOWN_SCALE_TILES = 2.0  # along the longer side
_MAX_ENLARGED_TILES = 6.0  # along the longer side; bounds the time for a large image that is coarse
_MIN_TILE_SHARE = 0.5
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BRIGHTNESS_STEP = 8
_STRETCH_PERCENTILES = (1, 99)
_ROWS = 64  # rows combined at once; few enough to fit in the processor's cache


def default_context(classes: ClassTable) -> Context | None:
    """Return the default combination of views; None if fewer than two classes can be exchanged for each other.

    Coarse views may exchange water, soft surfaces and landing zones, because these fill large regions.
    """
    region_classes = tuple(classes[i].name for i in classes.ids_of(*_REGION_ROLES))
    if len(region_classes) < 2:
        return None
    return Context(
        whole_weight=0.7,
        region_classes=region_classes,
        exposure=DEFAULT_EXPOSURE,
        source=_OWN_SOURCE if classes == DEFAULT_CLASSES else _OTHER_SOURCE,
    )


@dataclass(frozen=True)
class View:
    """A smaller copy of an image, whose prediction is combined with that of the tiles.

    Attributes:
        size: Height and width.
        weight: Weight of its logits, 0 to 1; the tiles have the rest.
        only_regions: Whether the view may only exchange region classes, because objects are too small in it.
    """

    size: tuple[int, int]
    weight: float
    only_regions: bool


@dataclass(frozen=True)
class ViewPlan:
    """How an image is presented to the network.

    Attributes:
        size: Height and width of the image that is cut into tiles.
        views: Smaller views, largest first.
        scale: Factor by which the image is resampled before it is cut into tiles.
        warnings: Warnings about the scale.
    """

    size: tuple[int, int]
    views: tuple[View, ...]
    scale: float
    warnings: tuple[WarningCode, ...]


def plan_views(
    size: tuple[int, int],
    patch: tuple[int, int],
    ground: Ground,
    training: TrainingGround | None,
    context: Context | None,
    *,
    plain: bool = False,
) -> ViewPlan:
    """Choose the resampling of an image and its smaller views.

    With a known ground resolution, the image is resampled to that of the training images and gets up to two coarser
    views. It is enlarged at most twofold, and a large image less. With an unknown one, the longer side is reduced to
    two tiles, and the whole image in one tile is added.

    Args:
        size: Height and width of the image.
        patch: Height and width of a tile.
        ground: Ground resolution of the image.
        training: Ground resolution of the training images; None leaves the image as it is.
        context: How to combine views; None for tiles only.
        plain: Whether to leave the image as it is.
    """
    if plain or training is None:
        return ViewPlan(size, (), 1.0, _unscaled_warnings(ground, training))
    tiles = max(side / tile for side, tile in zip(size, patch, strict=True))
    if ground.gsd_m is None:
        scale = min(1.0, _UNKNOWN_SCALE_TILES / tiles)
        seen = _scaled(size, scale)
        whole = () if context is None else _whole_view(seen, tiles * scale, context)
        return ViewPlan(seen, whole, scale, (WarningCode.UNKNOWN_SCALE,))
    scale = min(ground.gsd_m / training.gsd_m, MAX_ENLARGEMENT, max(1.0, _MAX_ENLARGED_TILES / tiles))
    seen = _scaled(size, scale)
    warnings: tuple[WarningCode, ...] = ()
    if ground.gsd_m > training.gsd_range_m[1]:
        warnings = (WarningCode.COARSER_THAN_TRAINED,)
    elif tiles * scale < _MIN_TILE_SHARE:
        warnings = (WarningCode.FINER_THAN_TRAINED,)
    return ViewPlan(seen, () if context is None else _coarse_views(seen, tiles * scale), scale, warnings)


def _unscaled_warnings(ground: Ground, training: TrainingGround | None) -> tuple[WarningCode, ...]:
    """Return the warnings about the scale of an image that is not resampled."""
    if training is None or ground.gsd_m is None:
        return (WarningCode.UNKNOWN_SCALE,)
    if ground.gsd_m > training.gsd_range_m[1]:
        return (WarningCode.COARSER_THAN_TRAINED,)
    return (WarningCode.FINER_THAN_TRAINED,) if ground.gsd_m < training.gsd_range_m[0] else ()


def _whole_view(size: tuple[int, int], tiles: float, context: Context) -> tuple[View, ...]:
    """Return the view of the whole image in one tile; no view if the image is not larger than a tile."""
    if tiles <= 1:
        return ()
    return (View(_scaled(size, 1 / tiles), context.whole_weight, only_regions=False),)


def _coarse_views(size: tuple[int, int], tiles: float) -> tuple[View, ...]:
    """Return up to two views that are coarser than the training images, all with the weight of the tiles.

    Even a view that is hardly smaller adds a signal: where it differs from the tiles, one of them is wrong.
    """
    reduction = min(tiles, MAX_REDUCTION)
    if reduction <= 1:
        return ()
    reductions = (reduction**0.5, reduction) if reduction >= _TWO_STEPS else (reduction,)
    weight = 1 / (len(reductions) + 1)
    return tuple(View(_scaled(size, 1 / factor), weight, only_regions=True) for factor in reductions)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def scaled_sizes(plan: ViewPlan, scales: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Return height and width of the image at further scales.

    Args:
        plan: How the image is presented to the network.
        scales: Factors relative to the size of the plan; 1, that size itself, is left out. A factor that would enlarge
            the image more than twofold is also left out, because it shows no more details.
    """
    return tuple(
        _scaled(plan.size, factor) for factor in scales if factor != 1 and plan.scale * factor <= MAX_ENLARGEMENT
    )


def resample(image: Image, size: tuple[int, int]) -> Image:
    """Resample an image: area filter when it becomes smaller, bilinear when it becomes larger.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        size: Height and width of the result.
    """
    if image.shape[:2] == size:
        return image
    enlarged = size[0] > image.shape[0]
    method = pillow.Resampling.BILINEAR if enlarged else pillow.Resampling.BOX
    return np.asarray(pillow.fromarray(image).resize(size[::-1], method))


def resample_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resample class ids to height and width `size` by the nearest neighbour."""
    if mask.shape == size:
        return mask
    return np.asarray(pillow.fromarray(mask).resize(size[::-1], pillow.Resampling.NEAREST))


def brightness(image: Image) -> float:
    """Return the median luma of an image, 0 to 1, from every eighth row and column; black pixels are ignored.

    Small bright areas change the median less than the mean.
    """
    pixels = image[::_BRIGHTNESS_STEP, ::_BRIGHTNESS_STEP].reshape(-1, 3)
    pixels = pixels[pixels.any(axis=1)]
    return float(np.median(pixels.astype(np.float32) @ _LUMA) / 255) if len(pixels) else 0.0


def exposure_tables(image: Image, exposure: Exposure | None) -> tuple[NDArray[np.uint8] | None, ...]:
    """Return the look-up tables, shape (256,), dtype uint8, that correct the exposure of an image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        exposure: Correction; None for no correction.

    Returns:
        One table for each method; a single None if the median luma is within the range, or is 0 or 1.
    """
    median = brightness(image)
    if exposure is None or exposure.range[0] <= median <= exposure.range[1] or not 0 < median < 1:
        return (None,)
    values = np.arange(256, dtype=np.float64) / 255
    low, high = np.percentile(image[::_BRIGHTNESS_STEP, ::_BRIGHTNESS_STEP], _STRETCH_PERCENTILES) / 255
    gamma = values ** (np.log(exposure.target) / np.log(median))
    stretch = np.clip((values - low) / max(high - low, 1 / 255), 0, 1)
    tables = {"gamma": gamma, "stretch": stretch, "mixed": (gamma + stretch) / 2}
    return tuple((tables[method] * 255).round().astype(np.uint8) for method in exposure.methods)


class ViewCombiner:
    """Combines the logits of the tiles with those of smaller views.

    Logits are averaged, which multiplies the probabilities. In views that are coarser than the training images, objects
    are too small to be recognised; these views only decide between the region classes.

    Args:
        views: Smaller views with their logits, shape (C, h, w), dtype float32.
        size: Height and width of the image that is cut into tiles.
        region_ids: Ids of the region classes.
        temperature: Number that logits are divided by.
        scales: Logits of the image at further scales, shape (C, h, w), dtype float32. They are averaged with those of
            the tiles before the smaller views are combined with them.
    """

    def __init__(
        self,
        views: Sequence[tuple[View, NDArray[np.float32]]],
        size: tuple[int, int],
        region_ids: Sequence[int],
        temperature: float,
        scales: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        self._temperature, self._size = temperature, size
        self._views = [(view, [pillow.fromarray(channel) for channel in logits]) for view, logits in views]
        self._scales = [[pillow.fromarray(channel) for channel in logits] for logits in scales]
        self._tile_weight = np.float32(1 - sum(view.weight for view, _ in views))
        self._only_regions = any(view.only_regions for view, _ in views)
        self._region_ids = sorted(region_ids)
        self._is_region = np.isin(np.arange(256), self._region_ids)
        self._disagreeing = 0

    @property
    def disagreement(self) -> float:
        """Share of the pixels for which the tiles and the smallest view predict different region classes, 0 to 1."""
        return self._disagreeing / (self._size[0] * self._size[1])

    def classify(
        self,
        logits: NDArray[np.float32] | NDArray[np.float16],
        first: int,
        observe: ProbabilityObserver | None = None,
    ) -> tuple[Mask, Probabilities]:
        """Return classes and probabilities of a band of rows; see `sliding_window.Classifier`.

        Args:
            logits: Logits of the tiles, shape (C, rows, W).
            first: Index of the first row.
            observe: Function that receives the probabilities of all classes, in smaller bands from the top; None if
                they are not needed.
        """
        shape = logits.shape[1:]
        ids, winning = np.empty(shape, np.uint8), np.empty(shape, np.float32)

        def classify_rows(top: int) -> tuple[int, NDArray[np.float32] | None]:
            rows = slice(top, min(top + _ROWS, shape[0]))
            probabilities, disagreeing = self._combine(logits[:, rows].astype(np.float32, copy=False), first + top)
            ids[rows], winning[rows] = argmax_and_max(probabilities)
            return disagreeing, probabilities if observe else None

        tops = range(0, shape[0], _ROWS)
        size = usable_cores() if observe else len(tops)  # few probabilities at a time
        with ThreadPoolExecutor(usable_cores()) as pool:  # the network does not run meanwhile
            for group in (tops[i : i + size] for i in range(0, len(tops), size)):
                for top, (disagreeing, probabilities) in zip(group, pool.map(classify_rows, group), strict=True):
                    self._disagreeing += disagreeing
                    if observe and probabilities is not None:
                        observe(probabilities, first + top)
        require_finite(winning)
        return ids, winning

    # here, because threads do not inherit the state; `require_finite` raises an error for logits that overflow
    @np.errstate(over="ignore", invalid="ignore")
    def _combine(self, tiles: NDArray[np.float32], first: int) -> tuple[NDArray[np.float32], int]:
        """Combine rows of the logits of the tiles, shape (C, rows, W), with the other scales and the smaller views.

        Returns:
            Class probabilities, shape (C, rows, W), and the number of pixels on which the views disagree.
        """
        if self._scales:
            bands = (self._band(channels, first, tiles.shape[1]) for channels in self._scales)
            tiles = sum(bands, tiles) / np.float32(len(self._scales) + 1)
        if not self._views:
            return softmax(tiles, self._temperature), 0
        (*larger, (view, channels)), rows = self._views, tiles.shape[1]
        smallest = self._band(channels, first, rows)
        # classes whose probabilities depend on the smaller views
        combined_ids = self._region_ids if self._only_regions else list(range(len(tiles)))
        mean = self._tile_weight * tiles[combined_ids]
        for other, its_channels in larger:
            mean += np.float32(other.weight) * self._band([its_channels[i] for i in combined_ids], first, rows)
        mean += np.float32(view.weight) * smallest[combined_ids]
        combined = softmax(mean, self._temperature)
        disagreeing = self._count_disagreeing(argmax_and_max(tiles)[0], argmax_and_max(smallest)[0])
        if not self._only_regions:
            return combined, disagreeing
        probabilities = softmax(tiles, self._temperature)
        combined *= probabilities[combined_ids].sum(axis=0)
        probabilities[combined_ids] = combined
        return probabilities, disagreeing

    def _count_disagreeing(self, ids: Mask, others: Mask) -> int:
        # small views miss objects, so only pixels of different region classes count
        return int((self._is_region[ids] & self._is_region[others] & (ids != others)).sum())

    def _band(self, channels: list[pillow.Image], first: int, rows: int) -> NDArray[np.float32]:
        """Return the logits of a view for a band of rows, by bilinear interpolation."""
        height, width = self._size
        unit = channels[0].height / height
        box = (0, first * unit, channels[0].width, (first + rows) * unit)
        return np.stack(
            [np.asarray(channel.resize((width, rows), pillow.Resampling.BILINEAR, box=box)) for channel in channels]
        )
