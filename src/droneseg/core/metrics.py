"""Segmentation metrics from confusion matrices: IoU, Dice, unsafe landing rate, landing recall."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from droneseg.core.classes import ClassTable, Role
from droneseg.core.errors import InvalidIdsError, ShapeMismatchError
from droneseg.core.masks import Mask

Confusion: TypeAlias = NDArray[np.int64]
"""Pixel counts, shape (C, C); rows are true classes, columns predicted ones."""
Counts: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
"""One confusion matrix or a stack of them, shape (..., C, C); float64 represents counts exactly up to 2^53."""


def confusion(truth: Mask, prediction: Mask, classes: int) -> Confusion:
    """Count pixels by true and predicted class. Pixels whose true value is C, the ignore label, are left out.

    Args:
        truth: Class ids, shape (H, W), dtype uint8.
        prediction: Class ids, same shape and dtype as `truth`.
        classes: Number of classes C.

    Returns:
        Counts, shape (C, C), dtype int64; rows are true classes, columns predicted ones.

    Raises:
        ShapeMismatchError: If the two masks differ in shape.
        InvalidIdsError: If a true value is larger than C, or a predicted one not below it.
    """
    if truth.shape != prediction.shape:
        (height, width), (rows, columns) = truth.shape, prediction.shape
        raise ShapeMismatchError(
            f"Ground truth mask is {width}x{height}, predicted mask is {columns}x{rows}. Use masks of the same image."
        )
    for mask, highest in ((truth, classes), (prediction, classes - 1)):
        if mask.max(initial=0) > highest:
            raise InvalidIdsError(f"Mask contains {int(mask.max())}; the largest class id is {classes - 1}.")
    pairs = truth.astype(np.int64).ravel() * classes + prediction.ravel()
    counts = np.bincount(pairs, minlength=classes * classes)[: classes * classes]  # the ignore label comes last
    return counts.reshape(classes, classes)


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
    values = iou(counts)[..., 1:]
    present = np.isfinite(values)
    return _ratio(np.where(present, values, 0).sum(axis=-1), present.sum(axis=-1))


def unsafe_landing_rate(counts: Counts, classes: ClassTable) -> NDArray[np.float64]:
    """Return the share of pixels predicted as landing zone that are obstacle, water or moving object.

    NaN if no pixel is predicted as landing zone, or if the table has no unsafe class.
    """
    if not classes.unsafe_ids:
        return np.full(counts.shape[:-2], np.nan)
    predicted = counts[..., :, list(classes.ids_of(Role.LANDING))].sum(axis=-1)
    return _ratio(predicted[..., list(classes.unsafe_ids)].sum(axis=-1), predicted.sum(axis=-1))


def landing_recall(counts: Counts, classes: ClassTable) -> NDArray[np.float64]:
    """Return the share of true landing-zone pixels that are predicted as such; NaN if there are none."""
    landing = list(classes.ids_of(Role.LANDING))
    true = counts[..., landing, :]
    return _ratio(true[..., landing].sum(axis=(-2, -1)), true.sum(axis=(-2, -1)))


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
        miou: Mean IoU over the foreground classes that occur, from one confusion matrix; None if none occurs.
        image_wise_miou: Mean of the per-image mean IoU; None if it is undefined for every image.
        per_class_iou: IoU by class name over all images; None for a class that does not occur.
        per_class_dice: Dice coefficient by class name over all images; None for a class that does not occur.
        image_wise_dice: Mean of the per-image Dice coefficients by class name, over the images in which the class
            occurs in truth or prediction, as in nnU-Net's `summary.json`; None if there are none.
        pixel_accuracy: Share of pixels predicted correctly.
        unsafe_landing_rate: Share of pixels predicted as landing zone whose true class is unsafe; None if no pixel is
            predicted as landing zone, or no class has the role of landing zone or of an unsafe class.
        landing_recall: Share of true landing-zone pixels predicted as such; None if there are none.
        confusion: Pixel counts; rows are true classes, columns predicted ones.
    """

    images: int
    miou: float | None
    image_wise_miou: float | None
    per_class_iou: dict[str, float | None]
    per_class_dice: dict[str, float | None]
    image_wise_dice: dict[str, float | None]
    pixel_accuracy: float
    unsafe_landing_rate: float | None
    landing_recall: float | None
    confusion: list[list[int]]


def compute_metrics(matrices: Iterable[Confusion], classes: ClassTable) -> SegmentationMetrics:
    """Compute all metrics from one confusion matrix per image.

    Args:
        matrices: One confusion matrix per image.
        classes: Class table of the matrices.

    Raises:
        ValueError: If `matrices` is empty.
    """
    per_image = list(matrices)
    if not per_image:
        raise ValueError("No confusion matrices.")
    total = np.sum(per_image, axis=0)
    ious, dices, mean_dices = iou(total), dice(total), _mean_of_known(dice(np.stack(per_image)))
    image_wise = [float(value) for value in map(mean_iou, per_image) if not np.isnan(value)]
    return SegmentationMetrics(
        images=len(per_image),
        miou=_or_none(mean_iou(total)),
        image_wise_miou=float(np.mean(image_wise)) if image_wise else None,
        per_class_iou={entry.name: _or_none(ious[entry.id]) for entry in classes.foreground},
        per_class_dice={entry.name: _or_none(dices[entry.id]) for entry in classes.foreground},
        image_wise_dice={entry.name: _or_none(mean_dices[entry.id]) for entry in classes.foreground},
        pixel_accuracy=float(pixel_accuracy(total)),
        unsafe_landing_rate=_or_none(unsafe_landing_rate(total, classes)),
        landing_recall=_or_none(landing_recall(total, classes)),
        confusion=total.tolist(),
    )


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column without NaN, shape (C,), of values of shape (N, C); NaN if there is none."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Divide element-wise; NaN where the divisor is 0."""
    divisor = np.asarray(whole, np.float64)
    ratios = np.full(divisor.shape, np.nan)
    np.divide(np.asarray(part, np.float64), divisor, out=ratios, where=divisor > 0)
    return ratios


def _or_none(value: NDArray[np.float64] | np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
