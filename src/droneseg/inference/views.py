"""Views of an image: resampling to the model's ground resolution, the whole image in one tile, exposure correction.

A tile of nothing but lake looks like asphalt, so a large image is seen at two scales: in tiles at the model's ground
resolution, and as a whole. The predictions of both views are combined.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.inference.runtimes.base import Probabilities, require_finite
from droneseg.model.bundle import Context, Exposure, TrainingGround

_MAX_ENLARGEMENT = 2.0
_MAX_CONTEXT_REDUCTION = 4.0
"""Largest reduction of the whole image below the model's resolution; beyond it the network recognises little."""
_MIN_CONTEXT_REDUCTION = 1.25
"""Smallest reduction for which the whole image is another view."""
_UNKNOWN_SCALE_TILES = 2.0
"""Tiles along the longer side of an image of unknown ground resolution."""
_MIN_TILE_SHARE = 0.5
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BRIGHTNESS_STEP = 8
_STRETCH_PERCENTILES = (1, 99)


@dataclass(frozen=True)
class ViewPlan:
    """How an image is presented to the network.

    Attributes:
        size: Height and width of the image that is cut into tiles.
        context_size: Height and width of the reduced image that shows the context; None without this view.
        scale: Factor by which the image is resampled before it is cut into tiles.
        warnings: Warnings about the scale.
    """

    size: tuple[int, int]
    context_size: tuple[int, int] | None
    scale: float
    warnings: tuple[WarningCode, ...]


def plan_views(
    size: tuple[int, int],
    patch: tuple[int, int],
    ground: Ground,
    training: TrainingGround | None,
    *,
    context: bool,
) -> ViewPlan:
    """Choose the resampling of an image and whether to add a view of the whole image.

    Args:
        size: Height and width of the image.
        patch: Height and width of a tile.
        ground: Ground resolution of the image.
        training: Ground resolution of the training images; None leaves the image as it is.
        context: Whether to add a view of the whole image if it is larger than a tile.
    """
    if training is None or ground.gsd_m is None:
        warnings: tuple[WarningCode, ...] = (WarningCode.UNKNOWN_SCALE,)
    else:
        warnings = ()
    if training is None:
        return ViewPlan(size, None, 1.0, warnings)
    tiles = max(side / tile for side, tile in zip(size, patch, strict=True))
    if ground.gsd_m is None:
        scale = min(1.0, _UNKNOWN_SCALE_TILES / tiles)
    else:
        scale = min(_MAX_ENLARGEMENT, ground.gsd_m / training.gsd_m)
        if ground.gsd_m > training.gsd_range_m[1]:
            warnings += (WarningCode.COARSER_THAN_TRAINED,)
        elif tiles * scale < _MIN_TILE_SHARE:
            warnings += (WarningCode.FINER_THAN_TRAINED,)
    seen = _scaled(size, scale)
    reduction = min(tiles * scale, _MAX_CONTEXT_REDUCTION)
    if not context or reduction < _MIN_CONTEXT_REDUCTION:
        return ViewPlan(seen, None, scale, warnings)
    return ViewPlan(seen, _scaled(seen, 1 / reduction), scale, warnings)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


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
    """Return the mean luma of an image, 0 to 1, from every eighth row and column; black pixels are ignored."""
    pixels = image[::_BRIGHTNESS_STEP, ::_BRIGHTNESS_STEP].reshape(-1, 3)
    pixels = pixels[pixels.any(axis=1)]
    return float((pixels.astype(np.float32) @ _LUMA).mean() / 255) if len(pixels) else 0.0


def correct_exposure(image: Image, exposure: Exposure | None) -> Image:
    """Bring the brightness of a dark or bright image to that of the training images.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        exposure: Correction; None returns the image unchanged.
    """
    if exposure is None:
        return image
    mean = brightness(image)
    if exposure.range[0] <= mean <= exposure.range[1] or not 0 < mean < 1:
        return image
    values = np.arange(256, dtype=np.float64) / 255
    if exposure.method == "stretch":
        low, high = np.percentile(image[::_BRIGHTNESS_STEP, ::_BRIGHTNESS_STEP], _STRETCH_PERCENTILES) / 255
        values = np.clip((values - low) / max(high - low, 1 / 255), 0, 1)
    else:
        values **= np.log(exposure.target) / np.log(mean)
    return (values * 255).round().astype(np.uint8)[image]


class ContextCombiner:
    """Combines the logits of the tiles with those of the whole image.

    Args:
        logits: Logits of the whole image, shape (C, h, w), dtype float32.
        size: Height and width of the image that is cut into tiles.
        context: How to combine the views.
        temperature: Number that logits are divided by.
    """

    def __init__(
        self, logits: NDArray[np.float32], size: tuple[int, int], context: Context, temperature: float
    ) -> None:
        self._context, self._temperature, self._size = context, temperature, size
        values = logits if context.combine == "logits" else softmax(logits, temperature)
        self._layers = [pillow.fromarray(values[index]) for index in range(len(values))]
        self._disagreement = 0.0

    @property
    def disagreement(self) -> float:
        """Share of the pixels for which the two views predict different classes, 0 to 1."""
        return self._disagreement / (self._size[0] * self._size[1])

    def classify(self, logits: NDArray[np.float32] | NDArray[np.float16], first: int) -> tuple[Mask, Probabilities]:
        """Return classes and probabilities of a band of rows; see `sliding_window.Classifier`."""
        context = self._band(first, logits.shape[1])
        tiles = logits.astype(np.float32, copy=False)
        weight = np.float32(self._context.weight)
        if self._context.combine == "logits":
            self._count_disagreement(tiles, context)
            combined = softmax((1 - weight) * tiles + weight * context, self._temperature)
        else:
            tiles = softmax(tiles, self._temperature)
            self._count_disagreement(tiles, context)
            combined = (1 - weight) * tiles + weight * context
        ids = combined.argmax(axis=0).astype(np.uint8)
        winning = combined.max(axis=0)
        require_finite(winning)
        return ids, winning

    def _count_disagreement(self, tiles: NDArray[np.float32], context: NDArray[np.float32]) -> None:
        self._disagreement += float((tiles.argmax(axis=0) != context.argmax(axis=0)).sum())

    def _band(self, first: int, rows: int) -> NDArray[np.float32]:
        """Return the values of the whole image's view for a band of rows, by bilinear interpolation."""
        height, width = self._size
        unit = self._layers[0].height / height
        box = (0, first * unit, self._layers[0].width, (first + rows) * unit)
        return np.stack(
            [np.asarray(layer.resize((width, rows), pillow.Resampling.BILINEAR, box=box)) for layer in self._layers]
        )


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return the class probabilities of logits, shape (C, H, W), divided by a temperature."""
    scaled = logits / np.float32(temperature)
    scaled -= scaled.max(axis=0)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=0)
    return scaled
