"""What a photograph looks like in a few numbers: what drift is told by, beside the model's own answers."""

import numpy as np
from numpy.typing import NDArray

from droneseg.core.images import Image

_ROW_STEP = 4  # neighbours matter along a row only, so most rows can be left out
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_NOISE_OF_MEDIAN = 1.4826 / 6**0.5  # median to standard deviation of a normal, and that of a second difference


def image_statistics(image: Image) -> dict[str, float]:
    """Return brightness, contrast, saturation, sharpness, noise, warmth and green share of a photograph.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.

    Returns:
        `brightness` and `contrast`: mean and standard deviation of the luma, 0 to 1. `saturation`: mean of (largest -
        smallest) / largest channel. `sharpness`: standard deviation of the luma's second difference along rows.
        `noise`: that standard deviation as its median gives it, in which edges do not count (after Immerkaer 1996).
        `warmth`: red / (red + blue). `green_share`: share of the pixels whose largest channel is green.
    """
    rows = image[::_ROW_STEP].astype(np.float32) / 255
    luma = rows @ _LUMA
    highest = rows.max(axis=2)
    spread = highest - rows.min(axis=2)
    second = luma[:, 2:] - 2 * luma[:, 1:-1] + luma[:, :-2]
    red, _, blue = rows.mean(axis=(0, 1))
    found = {
        "brightness": luma.mean(),
        "contrast": luma.std(),
        "saturation": np.divide(spread, highest, out=np.zeros_like(spread), where=highest > 0).mean(),
        "sharpness": second.std() if second.size else 0.0,
        "noise": _median(np.abs(second)) * _NOISE_OF_MEDIAN,
        "warmth": red / (red + blue) if red + blue else 0.5,
        "green_share": (rows[..., 1] > np.maximum(rows[..., 0], rows[..., 2])).mean(),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def _median(values: NDArray[np.float32]) -> float:
    return float(np.median(values)) if values.size else 0.0
