"""Prediction, ModelInfo, Segmenter protocol, image statistics."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import CLASSES
from droneseg.core.images import Image
from droneseg.core.masks import Mask


@dataclass(frozen=True)
class Prediction:
    """The answer for one photograph.

    Attributes:
        mask: Class ids, shape (H, W) of the photograph, dtype uint8.
        class_fractions: Share of the pixels by class name, all six, summing to 1.
        confidence: Mean over the pixels of the winning class's probability, 0 to 1.
        timings_s: Seconds by stage (queue, decode, preprocess, network, postprocess, encode), those that took place.
        model_id: The model that made it.
    """

    mask: Mask
    class_fractions: dict[str, float]
    confidence: float
    timings_s: dict[str, float]
    model_id: str


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself.

    Attributes:
        name: Of the project or product.
        version: Of the software that exported it.
        description: One line.
        input_shape: What its network takes, (height, width, channels).
        framework: What runs it.
        license: Terms of its weights.
        quality: Figures on held-out photographs, with what photographs; None if it was not measured.
    """

    name: str
    version: str
    description: str
    input_shape: tuple[int, int, int]
    framework: str
    license: str
    quality: dict[str, Any] | None


class Segmenter(Protocol):
    """Anything that says what is where: the only way to predict."""

    @property
    def model_id(self) -> str:
        """Short hash that tells this model from every other."""
        ...

    @property
    def profile(self) -> str:
        """Name of the trade between speed and fidelity it runs with."""
        ...

    @property
    def about(self) -> ModelInfo:
        """What the model says of itself."""
        ...

    def segment(self, image: Image) -> Prediction:
        """Predict the class of every pixel of an RGB image, shape (H, W, 3), dtype uint8."""
        ...


def class_fractions(mask: Mask) -> dict[str, float]:
    """Return the share of the pixels by class name, all classes, summing to 1."""
    counts = np.bincount(mask.ravel(), minlength=len(CLASSES))
    return {entry.name: float(counts[entry.id] / mask.size) for entry in CLASSES}


STATISTICS_ROW_STEP = 4
"""`image_statistics` uses every fourth row: it compares neighbours along a row only."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_NOISE_OF_MEDIAN = 1.4826 / 6**0.5  # median to standard deviation of a normal, and that of a second difference


def image_statistics(image: Image, *, row_step: int = STATISTICS_ROW_STEP) -> dict[str, float]:
    """Return brightness, contrast, saturation, sharpness, noise, warmth and green share of a photograph.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        row_step: Use every `row_step`-th row; 1 for an image that consists of these rows already.

    Returns:
        `brightness` and `contrast`: mean and standard deviation of the luma, 0 to 1. `saturation`: mean of (largest -
        smallest) / largest channel. `sharpness`: standard deviation of the luma's second difference along rows.
        `noise`: that standard deviation as its median gives it, in which edges do not count (after Immerkaer 1996).
        `warmth`: red / (red + blue). `green_share`: share of the pixels whose largest channel is green.
    """
    rows = image[::row_step].astype(np.float32) / 255
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
