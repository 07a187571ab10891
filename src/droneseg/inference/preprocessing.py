"""What nnU-Net does to a photograph before its network: crop to what is not black, then normalise."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.images import Image

Normalisation: TypeAlias = Literal["rgb_to_0_1", "zscore"]

_ZSCORE_EPS = 1e-8  # of nnU-Net's ZScoreNormalization


def nonzero_box(image: Image) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box around all pixels that are not black; all of a black image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
    """
    # most photographs have no black border: their four edges tell
    if image[0].any() and image[-1].any() and image[:, 0].any() and image[:, -1].any():
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    rows = np.flatnonzero(np.any(image, axis=(1, 2)))
    columns = np.flatnonzero(np.any(image, axis=(0, 2)))
    if not len(rows):
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def normalisation_table(image: Image, normalisation: Normalisation) -> NDArray[np.float32]:
    """Return what each byte value becomes, by channel, shape (3, 256), dtype float32.

    Args:
        image: The cropped photograph, shape (H, W, 3), dtype uint8.
        normalisation: `rgb_to_0_1` divides by 255; `zscore` makes each channel mean 0 and deviation 1.
    """
    values = np.arange(256, dtype=np.float32)
    if normalisation == "rgb_to_0_1":
        return np.repeat((values / np.float32(255))[None], 3, axis=0)
    return np.stack([_zscored(values, image[..., channel]) for channel in range(3)])


def _zscored(values: NDArray[np.float32], channel: NDArray[np.uint8]) -> NDArray[np.float32]:
    counts = np.bincount(channel.ravel(), minlength=256)
    wide = values.astype(np.float64)
    mean = (counts * wide).sum() / counts.sum()
    deviation = np.sqrt((counts * (wide - mean) ** 2).sum() / counts.sum())
    return (values - np.float32(mean)) / np.float32(max(deviation, _ZSCORE_EPS))
