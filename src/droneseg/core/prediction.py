"""What a prediction is, and what can make one: the seam between models and everything that uses them."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

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
class ModelDescription:
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
    def about(self) -> ModelDescription:
        """What the model says of itself."""
        ...

    def segment(self, image: Image) -> Prediction:
        """Predict the class of every pixel of an RGB image, shape (H, W, 3), dtype uint8."""
        ...


def class_fractions(mask: Mask) -> dict[str, float]:
    """Return the share of the pixels by class name, all classes, summing to 1."""
    counts = np.bincount(mask.ravel(), minlength=len(CLASSES))
    return {entry.name: float(counts[entry.id] / mask.size) for entry in CLASSES}
