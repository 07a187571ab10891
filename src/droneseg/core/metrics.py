"""Confusion matrix, IoU, Dice, unsafe landing rate."""

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
"""One such matrix, or a stack of them, shape (..., C, C); float64 holds counts exactly up to 2^53."""


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
        InvalidIdsError: If an id is not below C.
    """
    if truth.shape != prediction.shape:
        raise ShapeMismatchError(
            f"Truth is {truth.shape[1]}x{truth.shape[0]}, prediction {prediction.shape[1]}x{prediction.shape[0]}."
        )
    highest = max(int(truth.max(initial=0)), int(prediction.max(initial=0)))
    if highest >= classes:
        raise InvalidIdsError(f"Mask holds {highest}; class ids end at {classes - 1}.")
    pairs = truth.astype(np.int64).ravel() * classes + prediction.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou(counts: Counts) -> NDArray[np.float64]:
    """Return intersection over union by class, shape (..., C); NaN where a class is in neither truth nor prediction.

    Args:
        counts: One matrix, shape (C, C), or a stack of them, shape (..., C, C).
    """
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(hit, counts.sum(axis=-2) + counts.sum(axis=-1) - hit)


def dice(counts: Counts) -> NDArray[np.float64]:
    """Return 2 |A and B| / (|A| + |B|) by class, shape (..., C); NaN where a class is in neither; see `iou`."""
    return _ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-2) + counts.sum(axis=-1))


def mean_iou(counts: Counts) -> NDArray[np.float64]:
    """Return the mean IoU over the foreground classes that occur in truth or prediction, shape (...); NaN if none does.

    A predicted background pixel is an error of its true class and adds no class to the mean.
    """
    values = iou(counts)[..., [entry.id for entry in FOREGROUND]]
    present = np.isfinite(values)
    return _ratio(np.where(present, values, 0).sum(axis=-1), present.sum(axis=-1))


def unsafe_landing_rate(counts: Counts) -> NDArray[np.float64]:
    """Return the share of the pixels called landing zone that are truly obstacle, water or moving; NaN if none is."""
    called = counts[..., :, LANDING_ID]
    return _ratio(called[..., list(UNSAFE_IDS)].sum(axis=-1), called.sum(axis=-1))


def landing_recall(counts: Counts) -> NDArray[np.float64]:
    """Return the share of the true landing zone that is called so; NaN if there is none."""
    return _ratio(counts[..., LANDING_ID, LANDING_ID], counts[..., LANDING_ID, :].sum(axis=-1))


def background_share(counts: Counts) -> NDArray[np.float64]:
    """Return the share of the pixels that are truly of no class; NaN if there is none.

    Whatever is predicted there is wrong for IoU, and not unsafe for landing: much of it makes both say little.
    """
    return _ratio(counts[..., 0, :].sum(axis=-1), counts.sum(axis=(-2, -1)))


def pixel_accuracy(counts: Counts) -> NDArray[np.float64]:
    """Return the share of the pixels whose class is right; NaN if there is none."""
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


@dataclass(frozen=True)
class SegmentationMetrics:
    """The quality of predictions over a set of images.

    Attributes:
        images: Number of images.
        miou: Mean IoU over classes 1-5 that occur, from one confusion matrix over the whole set; None if none occurs.
        image_wise_miou: Mean over images of each image's own mean IoU, where it has one.
        per_class_iou: IoU by class name, over the whole set; None where the class does not occur.
        per_class_dice: Dice by class name; None where the class does not occur.
        pixel_accuracy: Share of pixels whose class is right.
        unsafe_landing_rate: Share of pixels called landing zone that are truly class 1, 2 or 4; None if none is.
        landing_recall: Share of the true landing zone that is called so; None if there is none.
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
    """Compute all figures from one confusion matrix per image.

    Raises:
        ValueError: If there is no image.
    """
    per_image = list(matrices)
    if not per_image:
        raise ValueError("No image to score.")
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
    """Divide, with NaN where the divisor is 0."""
    divisor = np.asarray(whole, np.float64)
    ratios = np.full(divisor.shape, np.nan)
    np.divide(np.asarray(part, np.float64), divisor, out=ratios, where=divisor > 0)
    return ratios


def _or_none(value: NDArray[np.float64] | np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
