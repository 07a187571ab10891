"""Is the model as often right as it says: mean confidence of each image beside its share of right pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, over images.

    Attributes:
        images: Number of images whose confidence is known.
        mean_confidence: Mean over images.
        mean_accuracy: Mean share of right pixels over the same images.
        overconfidence: Mean of confidence minus accuracy; above 0 the model promises too much.
        expected_calibration_error: Mean gap of confidence and accuracy over ten bins of confidence, weighted by the
            images in each (Guo et al. 2017, with images in place of single answers).
    """

    images: int
    mean_confidence: float
    mean_accuracy: float
    overconfidence: float
    expected_calibration_error: float


def calibrate(confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> Calibration | None:
    """Compare confidence with accuracy, one of each per image, both shape (N,) and 0 to 1; None for no image."""
    if not len(confidence):
        return None
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        (bins == index).sum() * abs(confidence[bins == index].mean() - accuracy[bins == index].mean())
        for index in np.unique(bins)
    ]
    return Calibration(
        images=len(confidence),
        mean_confidence=float(confidence.mean()),
        mean_accuracy=float(accuracy.mean()),
        overconfidence=float((confidence - accuracy).mean()),
        expected_calibration_error=float(np.sum(gaps) / len(confidence)),
    )
