"""How good a mask is: every figure comes from confusion matrices, counted in pixels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import CLASSES, FOREGROUND, LANDING_ID, UNSAFE_IDS
from droneseg.core.errors import InvalidIdsError, ShapeMismatchError
from droneseg.core.masks import Mask

Confusion = NDArray[np.int64]
"""Pixel counts, shape (C, C); rows are true classes, columns predicted ones."""


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


def iou(counts: Confusion) -> NDArray[np.float64]:
    """Return intersection over union by class, shape (C,); NaN where a class is in neither truth nor prediction."""
    hit = np.diag(counts)
    return _ratio(hit, counts.sum(axis=0) + counts.sum(axis=1) - hit)


def dice(counts: Confusion) -> NDArray[np.float64]:
    """Return 2 |A and B| / (|A| + |B|) by class, shape (C,); NaN where a class is in neither truth nor prediction."""
    return _ratio(2 * np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1))


def mean_iou(counts: Confusion) -> float:
    """Return the mean IoU over the foreground classes that occur in truth or prediction; NaN if none does.

    A predicted background pixel is an error of its true class and adds no class to the mean.
    """
    values = iou(counts)[[entry.id for entry in FOREGROUND]]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def unsafe_landing_rate(counts: Confusion) -> float:
    """Return the share of the pixels called landing zone that are truly obstacle, water or moving; NaN if none is."""
    called = counts[:, LANDING_ID]
    return _scalar_ratio(called[list(UNSAFE_IDS)].sum(), called.sum())


def landing_recall(counts: Confusion) -> float:
    """Return the share of the true landing zone that is called so; NaN if there is none."""
    return _scalar_ratio(counts[LANDING_ID, LANDING_ID], counts[LANDING_ID].sum())


@dataclass(frozen=True)
class Scores:
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


def score(matrices: Iterable[Confusion]) -> Scores:
    """Compute all figures from one confusion matrix per image.

    Raises:
        ValueError: If there is no image.
    """
    per_image = list(matrices)
    if not per_image:
        raise ValueError("No image to score.")
    total = np.sum(per_image, axis=0)
    ious, dices = iou(total), dice(total)
    image_wise = [value for value in map(mean_iou, per_image) if not np.isnan(value)]
    return Scores(
        images=len(per_image),
        miou=_or_none(mean_iou(total)),
        image_wise_miou=float(np.mean(image_wise)) if image_wise else None,
        per_class_iou={entry.name: _or_none(ious[entry.id]) for entry in FOREGROUND},
        per_class_dice={entry.name: _or_none(dices[entry.id]) for entry in FOREGROUND},
        pixel_accuracy=_scalar_ratio(np.trace(total), total.sum()),
        unsafe_landing_rate=_or_none(unsafe_landing_rate(total)),
        landing_recall=_or_none(landing_recall(total)),
        confusion=total.tolist(),
    )


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    ratios = np.full(part.shape, np.nan, dtype=np.float64)
    np.divide(part, whole, out=ratios, where=whole > 0)
    return ratios


def _scalar_ratio(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
