"""Bootstrap confidence intervals, paired differences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import FOREGROUND
from droneseg.core.metrics import (
    Counts,
    dice,
    iou,
    landing_recall,
    mean_iou,
    pixel_accuracy,
    unsafe_landing_rate,
)

RESAMPLES = 2000
FEW_IMAGES = 20
"""Below that many images an interval is too narrow, and says so."""
_NEEDED_SHARE = 0.975  # of the resamples must define a figure: those that do not are no chance selection
LEVEL = 0.95

Figures: TypeAlias = dict[str, NDArray[np.float64]]
"""Values by name, one per resample."""

FIGURES: Mapping[str, Callable[[Counts], NDArray[np.float64]]] = {
    "miou": mean_iou,
    **{f"iou/{entry.name}": lambda counts, c=entry.id: iou(counts)[..., c] for entry in FOREGROUND},  # type: ignore[misc]  # default binds c
    **{f"dice/{entry.name}": lambda counts, c=entry.id: dice(counts)[..., c] for entry in FOREGROUND},  # type: ignore[misc]
    "pixel_accuracy": pixel_accuracy,
    "unsafe_landing_rate": unsafe_landing_rate,
    "landing_recall": landing_recall,
}
"""Figures of one confusion matrix over a whole set."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it lies with 95 % confidence.

    Attributes:
        value: On the images as they are; None if it is not defined on them.
        low: Lower end.
        high: Upper end; None, like the lower one, if too few resamples define the figure.
    """

    value: float | None
    low: float | None
    high: float | None


def bootstrap_intervals(
    matrices: NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Return every figure of a set of images with its interval.

    Images are drawn with replacement, as many as there are; a figure's interval holds the middle 95 % of its values
    (percentile bootstrap, Efron 1979). Pixels of one image are not independent, so images are what is drawn.

    Args:
        matrices: One confusion matrix per image, shape (N, C, C).
        resamples: How often to draw.
        seed: Equal seeds give equal intervals.
    """
    drawn = _draw(len(matrices), resamples, seed)
    whole, sampled = _figures(matrices, None), _figures(matrices, drawn)
    return {name: _interval(float(whole[name][0]), sampled[name], len(matrices)) for name in whole}


def paired_differences(
    first: NDArray[np.int64], second: NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Return the second model's figures minus the first's, on the same images, with intervals of the difference.

    Both models are drawn on the same images each time, so what makes an image hard for both cancels out.

    Args:
        first: One confusion matrix per image, shape (N, C, C).
        second: The same of the other model, image by image.
        resamples: How often to draw.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: If the two differ in shape.
    """
    if first.shape != second.shape:
        raise ValueError(f"Not the same images: {len(first)} and {len(second)}.")
    drawn = _draw(len(first), resamples, seed)
    whole_a, whole_b = _figures(first, None), _figures(second, None)
    sampled_a, sampled_b = _figures(first, drawn), _figures(second, drawn)
    return {
        name: _interval(float(whole_b[name][0] - whole_a[name][0]), sampled_b[name] - sampled_a[name], len(first))
        for name in whole_a
    }


def mean_interval(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of one value per image, shape (N,), with its interval; NaN values are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(None, None, None)
    weights = _draw(len(known), resamples, seed)
    return _interval(float(known.mean()), weights @ known / len(known), len(known))


def _draw(images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image is in each resample, shape (R, N)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples)


def _figures(matrices: NDArray[np.int64], drawn: NDArray[np.int64] | None) -> Figures:
    """Return every figure, of the set as it is (one value) or of each resample."""
    count, classes = matrices.shape[:2]
    weights = np.ones((1, count), np.int64) if drawn is None else drawn
    # float64 holds pixel counts exactly up to 2^53 and multiplies much faster than int64
    totals = (weights.astype(np.float64) @ matrices.reshape(count, -1).astype(np.float64)).reshape(-1, classes, classes)
    found = {name: figure(totals) for name, figure in FIGURES.items()}
    own = mean_iou(matrices)
    known = np.isfinite(own)
    divisor = weights[:, known].sum(axis=1)
    found["image_wise_miou"] = np.divide(
        weights[:, known] @ own[known], divisor, out=np.full(len(weights), np.nan), where=divisor > 0
    )
    return found


def _interval(value: float, sampled: NDArray[np.float64], images: int) -> Interval:
    known = sampled[np.isfinite(sampled)]
    shown = None if np.isnan(value) else value
    # a class in few images is missing from many resamples, and those that have it are not drawn fairly any more; one
    # image alone is always drawn as it is
    if shown is None or len(known) < _NEEDED_SHARE * len(sampled) or images < 2:
        return Interval(shown, None, None)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(shown, float(low), float(high))
