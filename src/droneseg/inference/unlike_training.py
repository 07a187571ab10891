"""Check whether an image is unlike the training images, from its statistics and the network's predictions.

Each feature has a range, fitted on the training images. An image with a feature outside its range is unlike the
training images, and the feature tells why. The check knows nothing about the content of an image: a surface that the
network misjudges in a photograph of usual brightness and sharpness is not noticed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from droneseg.core.prediction import Prediction
from droneseg.model.bundle import FeatureRange, UnlikeTraining

_FALSE_ALARMS = 0.02
"""Share of the training images outside the ranges."""
_LOGARITHMIC = ("sharpness", "noise")
"""Features whose ratio to the usual value matters, rather than the difference."""
_SMALLEST = 1e-5
_TAIL = 0.05
_TAIL_DEVIATIONS = 1.645
"""Distance of the 5 % quantile from the median of a normal distribution, in standard deviations."""


def features_of(prediction: Prediction) -> dict[str, float]:
    """Return the features of a prediction by name."""
    values = {**prediction.statistics, "confidence": prediction.confidence}
    if prediction.disagreement is not None:
        values["disagreement"] = prediction.disagreement
    return values


def scores(values: Mapping[str, float], ranges: UnlikeTraining) -> dict[str, float]:
    """Return the distance of each feature from its centre by name.

    Args:
        values: Features by name; features that are missing are not checked.
        ranges: Ranges of the features.

    Returns:
        0 at the centre, -1 at the low end of the range, 1 at the high end; beyond -1 or 1 the image is unlike the
        training images. 0 on a side without a limit.
    """
    return {name: _score(values[name], entry) for name, entry in ranges.features.items() if name in values}


def _score(value: float, entry: FeatureRange) -> float:
    limit = entry.low if value < entry.centre else entry.high
    return 0.0 if limit is None else (value - entry.centre) / abs(limit - entry.centre)


def fit_ranges(rows: Sequence[Mapping[str, float]], source: str) -> UnlikeTraining:
    """Fit the range of each feature so that 2 % of the training images are outside any of them.

    The distance of a value from the median is measured in deviations, estimated from the 5 % quantile of its side. All
    limits are the same number of deviations away.

    Args:
        rows: Features by name, one mapping per training image.
        source: Description of the images.
    """
    table = {name: np.array([row[name] for row in rows]) for name in rows[0] if all(name in row for row in rows)}
    scales = {name: _Scale(name, values) for name, values in table.items()}
    farthest = np.max([np.abs(scales[name].deviations(values)) for name, values in table.items()], axis=0)
    limit = float(np.quantile(farthest, 1 - _FALSE_ALARMS))
    return UnlikeTraining(features={name: scale.range(limit) for name, scale in scales.items()}, source=source)


class _Scale:
    """Deviations of a feature from its median, separately below and above it."""

    def __init__(self, name: str, values: NDArray[np.float64]) -> None:
        self._logarithmic = name in _LOGARITHMIC
        low, self._centre, high = np.quantile(self._transformed(values), (_TAIL, 0.5, 1 - _TAIL))
        self._below = max(self._centre - low, _SMALLEST) / _TAIL_DEVIATIONS
        self._above = max(high - self._centre, _SMALLEST) / _TAIL_DEVIATIONS

    def deviations(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        distance: NDArray[np.float64] = self._transformed(values) - self._centre
        distance /= np.where(distance < 0, self._below, self._above)
        return distance

    def range(self, limit: float) -> FeatureRange:
        ends = (self._centre - limit * self._below, self._centre, self._centre + limit * self._above)
        low, centre, high = (round(float(np.exp(end) if self._logarithmic else end), 5) for end in ends)
        return FeatureRange(centre=centre, low=low, high=high)

    def _transformed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(np.maximum(values, _SMALLEST)) if self._logarithmic else values
