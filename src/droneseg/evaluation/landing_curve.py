"""Unsafe landing rate and landing recall at every threshold on the probability of a landing zone."""

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import ClassTable, Role
from droneseg.core.errors import ShapeMismatchError
from droneseg.core.masks import Mask

_LARGEST_LOG_ODDS = 16.0  # float32 holds no larger probability below 1
_BINS = 4096


class LandingCurve:
    """Counts pixels by their probability of a landing zone, over any number of images.

    The counts are kept in 4096 bins of equal width in log-odds, which distinguish probabilities near 1.

    Args:
        classes: Class table of the masks.
    """

    def __init__(self, classes: ClassTable) -> None:
        self._classes = classes
        # rows: true landing zones; true obstacles, water and moving objects; all counted pixels
        self._counts = np.zeros((3, _BINS), np.int64)

    def add(self, truth: Mask, landing: NDArray[np.float32], *, ignore: int | None = None) -> None:
        """Count the pixels of an image.

        Args:
            truth: Class ids, shape (H, W), dtype uint8. Pixels without a label are not counted.
            landing: Probability of a landing zone, shape (H, W), dtype float32.
            ignore: Class id of further pixels that are not counted; None if there are none.

        Raises:
            ShapeMismatchError: If the two arrays differ in shape.
        """
        if truth.shape != landing.shape:
            raise ShapeMismatchError(f"The mask has shape {truth.shape}, the probabilities {landing.shape}.")
        counted = truth < len(self._classes)
        if ignore is not None:
            counted &= truth != ignore
        landing_zones = np.isin(truth, self._classes.ids_of(Role.LANDING))
        unsafe = np.isin(truth, self._classes.unsafe_ids)
        bins = _bins(landing)
        for row, chosen in enumerate((landing_zones, unsafe, counted)):
            self._counts[row] += np.bincount(bins[chosen & counted], minlength=_BINS)

    def unsafe_rate(self, recall: float) -> float | None:
        """Return the share of unsafe pixels above the highest threshold with at least this landing recall.

        Args:
            recall: Share of the true landing zones above the threshold, above 0 and at most 1.

        Returns:
            Share of the pixels above the threshold that are obstacles, water or moving objects; None without true
            landing zones.
        """
        # from the most probable bin downwards
        landing, unsafe, total = self._counts[:, ::-1].cumsum(axis=1)
        if not landing[-1]:
            return None
        chosen = int(np.argmax(landing >= recall * landing[-1]))
        return float(unsafe[chosen] / total[chosen])


def _bins(probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
    smallest = np.finfo(np.float32).tiny
    log_odds = np.log(np.maximum(probabilities, smallest)) - np.log(np.maximum(1 - probabilities, smallest))
    position = (np.clip(log_odds, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS) / _LARGEST_LOG_ODDS + 1) / 2
    bins: NDArray[np.intp] = np.minimum((position * _BINS).astype(np.intp), _BINS - 1)
    return bins
