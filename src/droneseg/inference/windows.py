"""Where nnU-Net puts its tiles and how it weighs their pixels; arithmetic only, no image."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# of nnU-Net's `compute_gaussian` and scipy's `gaussian_filter`, which it calls
_SIGMA_SHARE = 1 / 8
_TRUNCATE = 4.0
_PEAK = 10.0


def window_starts(size: int, patch: int, step: float) -> list[int]:
    """Return where tiles begin along one axis, as nnU-Net's `compute_steps_for_sliding_window` does.

    Args:
        size: Length of the axis, at least `patch`.
        patch: Length of a tile.
        step: Largest distance of two tiles, as a share of `patch`, above 0 and at most 1.

    Raises:
        ValueError: If the axis is shorter than a tile.
    """
    if size < patch:
        raise ValueError(f"An axis of {size} is shorter than a tile of {patch}.")
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    distance = (size - patch) / (count - 1) if count > 1 else 0.0
    return [int(np.round(distance * index)) for index in range(count)]


def padding(size: int, patch: int) -> int:
    """Return how many pixels nnU-Net puts before an axis that is shorter than a tile; the rest goes behind it."""
    return max(patch - size, 0) // 2


@lru_cache(maxsize=4)
def gaussian(patch: tuple[int, int]) -> NDArray[np.float16]:
    """Return the weight of each pixel of a tile, shape (h, w), dtype float16, highest 10: nnU-Net's `compute_gaussian`.

    Scipy's filter of one bright pixel is the product of its two kernels; where it or float16 leaves 0, the smallest
    other weight stands, so that no sum of weights is 0.
    """
    rows, columns = (_kernel(side) for side in patch)
    product = rows[:, None] * columns[None, :]
    # torch rounds to float16 by way of float32
    weights: NDArray[np.float16] = (product / (product.max() / _PEAK)).astype(np.float32).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    weights.setflags(write=False)
    return weights


def _kernel(side: int) -> NDArray[np.float64]:
    """Return the filter's answer to a bright pixel in the middle of an axis, shape (side,)."""
    sigma = side * _SIGMA_SHARE
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    values = np.exp(-0.5 / sigma**2 * offsets**2)
    values /= values.sum()
    answer = np.zeros(side)
    places = offsets + side // 2
    inside = (places >= 0) & (places < side)
    answer[places[inside]] = values[inside]
    return answer
