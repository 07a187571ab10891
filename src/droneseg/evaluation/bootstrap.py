"""Bootstrap confidence intervals of metrics, and of paired differences between two models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from droneseg.core import metrics
from droneseg.core.classes import ClassTable, Role

RESAMPLES = 2000
MIN_IMAGES = 20
"""Number of images below which intervals are too narrow to be relied on."""
LEVEL = 0.95
_MIN_DEFINED_SHARE = 0.975  # if a metric is defined in fewer resamples, these are not a random selection

Metric = Callable[[metrics.Counts], NDArray[np.float64]]


def _of_class(metric: Metric, class_id: int) -> Metric:
    return lambda counts: metric(counts)[..., class_id]


def metrics_of(classes: ClassTable) -> Mapping[str, Metric]:
    """Return the metrics of a confusion matrix over a set of images, by name; landing figures need a landing role."""
    landing: dict[str, Metric] = {
        "unsafe_landing_rate": lambda counts: metrics.unsafe_landing_rate(counts, classes),
        "landing_recall": lambda counts: metrics.landing_recall(counts, classes),
    }
    return {
        "miou": metrics.mean_iou,
        **{f"iou/{entry.name}": _of_class(metrics.iou, entry.id) for entry in classes.foreground},
        **{f"dice/{entry.name}": _of_class(metrics.dice, entry.id) for entry in classes.foreground},
        "pixel_accuracy": metrics.pixel_accuracy,
        **(landing if classes.has(Role.LANDING) else {}),
    }


@dataclass(frozen=True)
class Interval:
    """Value with its 95 % confidence interval.

    Attributes:
        value: Value on all images; None if it is not defined.
        low: Lower end; None if too few resamples define the value.
        high: Upper end; None if `low` is None.
    """

    value: float | None
    low: float | None
    high: float | None


def bootstrap_intervals(
    matrices: NDArray[np.int64], classes: ClassTable, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Return the metrics of a set of images with confidence intervals, by name.

    Each resample draws N images with replacement. The interval of a metric contains the middle
    95 % of its values (percentile bootstrap, Efron 1979). Images are resampled instead of pixels, because the pixels
    of an image are not independent.

    Args:
        matrices: One confusion matrix per image, shape (N, C, C).
        classes: Class table of the matrices.
        resamples: Number of resamples.
        seed: Seed of the random numbers; equal seeds give equal intervals.
    """
    drawn = _draw(len(matrices), resamples, seed)
    whole, sampled = _compute_metrics(matrices, classes, None), _compute_metrics(matrices, classes, drawn)
    return {name: _interval(float(whole[name][0]), sampled[name], len(matrices)) for name in whole}


def paired_differences(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    classes: ClassTable,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the metrics of the second model minus those of the first, with confidence intervals, by name.

    Each resample draws the same images for both models, so differences in image difficulty cancel out.

    Args:
        first: Confusion matrices of the first model, one per image, shape (N, C, C).
        second: Confusion matrices of the second model on the same images, same shape.
        classes: Class table of the matrices.
        resamples: Number of resamples.
        seed: Seed of the random numbers; equal seeds give equal intervals.

    Raises:
        ValueError: If the two arrays differ in shape.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"The evaluations have {len(first)} and {len(second)} images. Pass the same images in the same order."
        )
    drawn = _draw(len(first), resamples, seed)
    whole_a, whole_b = _compute_metrics(first, classes, None), _compute_metrics(second, classes, None)
    sampled_a, sampled_b = _compute_metrics(first, classes, drawn), _compute_metrics(second, classes, drawn)
    return {
        name: _interval(float(whole_b[name][0] - whole_a[name][0]), sampled_b[name] - sampled_a[name], len(first))
        for name in whole_a
    }


def mean_interval(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of one value per image with its confidence interval.

    Args:
        values: Values, shape (N,); NaN values are ignored.
        resamples: Number of resamples.
        seed: Seed of the random numbers.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(None, None, None)
    weights = _draw(len(known), resamples, seed)
    return _interval(float(known.mean()), weights @ known / len(known), len(known))


def _draw(images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image occurs in each resample, shape (R, N)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples)


def _compute_metrics(
    matrices: NDArray[np.int64], classes: ClassTable, drawn: NDArray[np.int64] | None
) -> dict[str, NDArray[np.float64]]:
    """Return each metric by name: one value per resample, or a single one on all images if `drawn` is None."""
    count, number = matrices.shape[:2]
    weights = np.ones((1, count), np.int64) if drawn is None else drawn
    # float64 represents pixel counts exactly up to 2^53 and multiplies much faster than int64
    totals = (weights.astype(np.float64) @ matrices.reshape(count, -1).astype(np.float64)).reshape(-1, number, number)
    values = {name: metric(totals) for name, metric in metrics_of(classes).items()}
    miou_per_image = metrics.mean_iou(matrices)
    known = np.isfinite(miou_per_image)
    divisor = weights[:, known].sum(axis=1)
    values["image_wise_miou"] = np.divide(
        weights[:, known] @ miou_per_image[known], divisor, out=np.full(len(weights), np.nan), where=divisor > 0
    )
    return values


def _interval(value: float, sampled: NDArray[np.float64], images: int) -> Interval:
    known = sampled[np.isfinite(sampled)]
    defined = None if np.isnan(value) else value
    # if a rare class is missing from many resamples, it is over-represented in the others; with a single image, all
    # resamples are equal
    if defined is None or len(known) < _MIN_DEFINED_SHARE * len(sampled) or images < 2:
        return Interval(defined, None, None)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(defined, float(low), float(high))
