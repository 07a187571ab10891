"""How far predicted borders between classes are from the true ones."""

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import MissingDependencyError, ShapeMismatchError
from droneseg.core.masks import Mask


def borders(mask: Mask) -> NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour has another class, shape (H, W)."""
    found = np.zeros(mask.shape, dtype=bool)
    found[:, :-1] |= mask[:, 1:] != mask[:, :-1]
    found[:-1] |= mask[1:] != mask[:-1]
    return found


def boundary_error(truth: Mask, prediction: Mask) -> float:
    """Return the mean distance in pixels between predicted and true borders, both ways (average symmetric distance).

    Over all border pixels of both masks: the distance to the nearest border pixel of the other. If only one mask has
    borders, every one of its border pixels counts with the image's diagonal.

    Args:
        truth: Class ids, shape (H, W), dtype uint8.
        prediction: Class ids, same shape.

    Returns:
        Pixels; 0 if neither mask has a border.

    Raises:
        ShapeMismatchError: If the masks differ in shape.
        MissingDependencyError: If OpenCV is not installed.
    """
    if truth.shape != prediction.shape:
        raise ShapeMismatchError(f"Truth is {truth.shape}, prediction {prediction.shape}.")
    ours, theirs = borders(prediction), borders(truth)
    if not ours.any() and not theirs.any():
        return 0.0
    if not ours.any() or not theirs.any():
        return float(np.hypot(*truth.shape))
    total = _distance_to(theirs)[ours].sum() + _distance_to(ours)[theirs].sum()
    return float(total / (ours.sum() + theirs.sum()))


def _distance_to(places: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return each pixel's distance to the nearest of some places, shape (H, W)."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "train") from error
    # OpenCV measures the distance to the nearest zero
    distance = cv2.distanceTransform((~places).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, dtype=np.float32)
