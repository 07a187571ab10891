"""Check whether an image is unlike the training images, from its statistics and the disagreement of its views.

Each feature has a range, fitted on the training images. An image with a feature outside its range is unlike the
training images, and the feature is the reason. The content of an image is not checked: a misclassified surface in a
photograph of usual brightness and sharpness is not reported.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from droneseg.core.prediction import STATISTIC_WORDS
from droneseg.model.bundle import FeatureRange, UnlikeTraining

_DISAGREEMENT = "disagreement"
_WORDS = STATISTIC_WORDS | {_DISAGREEMENT: ("", "classified differently at a smaller size")}
_FEATURES = ("brightness", "contrast", "saturation", "sharpness", "noise", "warmth")
"""Statistics that are checked. The share of green pixels describes the content of an image, not its quality."""
_FALSE_ALARMS = 0.01
"""Share of the training images outside the ranges. On images of other places it is larger."""
_TAIL = 0.02
_TAIL_DEVIATIONS = 2.054
"""Distance of the 2 % quantile from the median of a normal distribution, in standard deviations."""
_MIN_DEVIATION = 0.01
"""Smallest deviation, for almost identical images: 1 % of a statistic, 0.01 of a share."""
_SMALLEST = 1e-5
"""Smallest value whose logarithm is used; statistics have five decimals."""


def features_of(statistics: Mapping[str, float], disagreement: float | None) -> dict[str, float]:
    """Return the features of an image by name.

    Args:
        statistics: Image statistics as `image_statistics` returns them.
        disagreement: Share of the pixels for which the views predict different region classes; None for a single view.
    """
    values = {name: statistics[name] for name in _FEATURES}
    return values if disagreement is None else values | {_DISAGREEMENT: disagreement}


def scores(values: Mapping[str, float], ranges: UnlikeTraining) -> dict[str, float]:
    """Return the position of each feature within its range by name.

    Args:
        values: Features by name; features that are missing are not checked.
        ranges: Ranges of the features.

    Returns:
        0 at the median of the training images, -1 at the low end of the range, 1 at its high end, proportionally beyond
        it; 0 on a side without a limit.
    """
    return {name: _score(values[name], entry) for name, entry in ranges.features.items() if name in values}


def _score(value: float, entry: FeatureRange) -> float:
    limit = entry.low if value < entry.centre else entry.high
    return 0.0 if limit is None else (value - entry.centre) / abs(limit - entry.centre)


def describe(values: Mapping[str, float], ranges: UnlikeTraining | None) -> tuple[str, ...]:
    """Return how an image is unlike the training images, such as "darker", largest deviation first; empty if it is not.

    Args:
        values: Features by name.
        ranges: Ranges of the features; None for no check.
    """
    found = scores(values, ranges) if ranges else {}
    outside = sorted((name for name, score in found.items() if abs(score) > 1), key=lambda name: -abs(found[name]))
    return tuple(_WORDS[name][found[name] > 0] for name in outside)


def fit_ranges(rows: Sequence[Mapping[str, float]], source: str) -> UnlikeTraining:
    """Fit the range of each feature so that 1 % of the training images are outside any of them.

    Statistics are compared by their logarithms. The distance of a value from the median is measured in deviations,
    estimated from the 2 % quantile of the same side. All limits are the same number of deviations away.

    Args:
        rows: Features by name, one mapping per training image.
        source: Description of the images.
    """
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    scales = {name: _Scale(name, values) for name, values in table.items()}
    farthest = np.max([np.abs(scales[name].deviations(values)) for name, values in table.items()], axis=0)
    limit = max(1.0, float(np.quantile(farthest, 1 - _FALSE_ALARMS)))
    return UnlikeTraining(features={name: scale.range(limit) for name, scale in scales.items()}, source=source)


class _Scale:
    """Deviations of a feature from its median, separately below and above it."""

    def __init__(self, name: str, values: NDArray[np.float64]) -> None:
        self._is_share = name == _DISAGREEMENT
        low, self._centre, high = np.quantile(self._transform(values), (_TAIL, 0.5, 1 - _TAIL))
        self._below = max((self._centre - low) / _TAIL_DEVIATIONS, _MIN_DEVIATION)
        self._above = max((high - self._centre) / _TAIL_DEVIATIONS, _MIN_DEVIATION)

    def deviations(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        distance: NDArray[np.float64] = self._transform(values) - self._centre
        distance /= np.where(distance < 0, self._below, self._above)
        return distance

    def range(self, limit: float) -> FeatureRange:
        ends = (self._centre - limit * self._below, self._centre, self._centre + limit * self._above)
        low, centre, high = (float(f"{end if self._is_share else np.exp(end):.4g}") for end in ends)
        # views that agree are no reason for a warning
        return FeatureRange(low=None if self._is_share else low, centre=centre, high=high)

    def _transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self._is_share else np.log(np.maximum(values, _SMALLEST))
