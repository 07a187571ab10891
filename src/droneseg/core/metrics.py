"""Segmentation metrics from confusion matrices: IoU, Dice, unsafe landing rate, landing recall."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from droneseg.core.classes import CLASSES, FOREGROUND, LANDING_ID, UNSAFE_IDS
from droneseg.core.errors import InvalidIdsError, ShapeMismatchError
from droneseg.core.masks import Mask

Confusion: TypeAlias = NDArray[np.int64]
"""Pixel counts, shape (C, C); rows are true classes, columns predicted ones."""
Counts: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
"""One confusion matrix or a stack of them, shape (..., C, C); float64 represents counts exactly up to 2^53."""


def confusion(truth: Mask, prediction: Mask, *, classes: int = len(CLASSES)) -> Confusion:
    """Count pixels by true and predicted class.

    Args:
        truth: Class ids, shape (H, W), dtype uint8.
        prediction: Class ids, same shape and dtype as `truth`.
        classes: Number of classes C; every id is below it.

    Returns:
        Counts, shape (C, C), dtype int64; rows are true classes, columns predicted ones.

    Raises:
        ShapeMismatchError: If the two masks differ in shape.
        InvalidIdsError: If an id is C or larger.
    """
    if truth.shape != prediction.shape:
        (height, width), (rows, columns) = truth.shape, prediction.shape
        raise ShapeMismatchError(
            f"Ground truth mask is {width}x{height}, predicted mask is {columns}x{rows}. Use masks of the same image."
        )
    highest = max(int(truth.max(initial=0)), int(prediction.max(initial=0)))
    if highest >= classes:
        raise InvalidIdsError(f"Mask contains {highest}; the largest class id is {classes - 1}.")
    pairs = truth.astype(np.int64).ravel() * classes + prediction.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou(counts: Counts) -> NDArray[np.float64]:
    """Return the intersection over union of each class.

    Args:
        counts: One confusion matrix, shape (C, C), or a stack of them, shape (..., C, C).

    Returns:
        IoU, shape (..., C); NaN where a class occurs in neither truth nor prediction.
    """
    intersection = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(intersection, counts.sum(axis=-2) + counts.sum(axis=-1) - intersection)


def dice(counts: Counts) -> NDArray[np.float64]:
    """Return the Dice coefficient of each class, 2 |A and B| / (|A| + |B|), shape (..., C); NaN as in `iou`."""
    return _ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-2) + counts.sum(axis=-1))


def mean_iou(counts: Counts) -> NDArray[np.float64]:
    """Return the mean IoU over the foreground classes in truth or prediction, shape (...); NaN if there are none.

    The mean excludes background, but a pixel predicted as background still counts as an error of its true class.
    """
    values = iou(counts)[..., [entry.id for entry in FOREGROUND]]
    present = np.isfinite(values)
    return _ratio(np.where(present, values, 0).sum(axis=-1), present.sum(axis=-1))


def unsafe_landing_rate(counts: Counts) -> NDArray[np.float64]:
    """Return the share of pixels predicted as landing zone that are obstacle, water or moving object.

    NaN if no pixel is predicted as landing zone.
    """
    predicted = counts[..., :, LANDING_ID]
    return _ratio(predicted[..., list(UNSAFE_IDS)].sum(axis=-1), predicted.sum(axis=-1))


def landing_recall(counts: Counts) -> NDArray[np.float64]:
    """Return the share of true landing-zone pixels that are predicted as such; NaN if there are none."""
    return _ratio(counts[..., LANDING_ID, LANDING_ID], counts[..., LANDING_ID, :].sum(axis=-1))


def background_share(counts: Counts) -> NDArray[np.float64]:
    """Return the share of pixels whose true class is background; NaN if there are no pixels.

    Foreground predicted on background lowers the IoU but never counts as an unsafe landing, so both metrics are less
    meaningful if the share is large.
    """
    return _ratio(counts[..., 0, :].sum(axis=-1), counts.sum(axis=(-2, -1)))


def pixel_accuracy(counts: Counts) -> NDArray[np.float64]:
    """Return the share of pixels predicted correctly; NaN if there are no pixels."""
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


@dataclass(frozen=True)
class SegmentationMetrics:
    """Segmentation quality over a set of images.

    Attributes:
        images: Number of images.
        miou: Mean IoU over the classes 1-5 that occur, from one confusion matrix of all images; None if none occurs.
        image_wise_miou: Mean of the per-image mean IoU; None if it is undefined for every image.
        per_class_iou: IoU by class name over all images; None for a class that does not occur.
        per_class_dice: Dice coefficient by class name over all images; None for a class that does not occur.
        pixel_accuracy: Share of pixels predicted correctly.
        unsafe_landing_rate: Share of pixels predicted as landing zone whose true class is 1, 2 or 4; None if no pixel
            is predicted as landing zone.
        landing_recall: Share of true landing-zone pixels predicted as such; None if there are none.
        confusion: Pixel counts; rows are true classes, columns predicted ones.
    """

    images: int
    miou: float | None
    image_wise_miou: float | None
    per_class_iou: dict[str, float | None]
    per_class_dice: dict[str, float | None]
    pixel_accuracy: float
    unsafe_landing_rate: float | None
    landing_recall: float | None
    confusion: list[list[int]]


def compute_metrics(matrices: Iterable[Confusion]) -> SegmentationMetrics:
    """Compute all metrics from one confusion matrix per image.

    Raises:
        ValueError: If `matrices` is empty.
    """
    per_image = list(matrices)
    if not per_image:
        raise ValueError("No confusion matrices.")
    total = np.sum(per_image, axis=0)
    ious, dices = iou(total), dice(total)
    image_wise = [float(value) for value in map(mean_iou, per_image) if not np.isnan(value)]
    return SegmentationMetrics(
        images=len(per_image),
        miou=_or_none(mean_iou(total)),
        image_wise_miou=float(np.mean(image_wise)) if image_wise else None,
        per_class_iou={entry.name: _or_none(ious[entry.id]) for entry in FOREGROUND},
        per_class_dice={entry.name: _or_none(dices[entry.id]) for entry in FOREGROUND},
        pixel_accuracy=float(pixel_accuracy(total)),
        unsafe_landing_rate=_or_none(unsafe_landing_rate(total)),
        landing_recall=_or_none(landing_recall(total)),
        confusion=total.tolist(),
    )


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Divide element-wise; NaN where the divisor is 0."""
    divisor = np.asarray(whole, np.float64)
    ratios = np.full(divisor.shape, np.nan)
    np.divide(np.asarray(part, np.float64), divisor, out=ratios, where=divisor > 0)
    return ratios


def _or_none(value: NDArray[np.float64] | np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
