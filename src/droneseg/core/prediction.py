"""Prediction for one image, the `Segmenter` protocol, and image statistics."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.camera import UNKNOWN_GROUND, Ground, PredictionWarning, explain
from droneseg.core.classes import ClassTable
from droneseg.core.images import Image
from droneseg.core.landing_grid import LandingGrid, LandingPolicy
from droneseg.core.masks import Mask

_ROW_STEP = 4  # of `image_statistics`, which compares neighbours along rows only
STATISTIC_WORDS: dict[str, tuple[str, str]] = {
    "brightness": ("darker", "brighter"),
    "contrast": ("lower in contrast", "higher in contrast"),
    "saturation": ("less saturated", "more saturated"),
    "sharpness": ("less sharp", "sharper"),
    "noise": ("less noisy", "noisier"),
    "warmth": ("bluer", "redder"),
    "green_share": ("less green", "greener"),
}
"""Words for an image with a smaller and with a larger value, by name of the statistic."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# estimates the standard deviation of normally distributed noise from the median absolute second difference: 1.4826 is
# the ratio of standard deviation to median absolute value, and a second difference has 1 + 4 + 1 times the variance
_NOISE_OF_MEDIAN = 1.4826 / 6**0.5


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one image.

    Attributes:
        mask: Class ids, shape (H, W) of the image, dtype uint8.
        classes: Class table of the mask.
        class_fractions: Share of pixels by class name, for all classes; sums to 1.
        confidence: Mean probability of the predicted class over all pixels, 0 to 1.
        timings_s: Seconds by stage (queue, decode, preprocess, network, postprocess, encode), for the stages that ran.
        model_id: Id of the model.
        ground: Ground resolution, resampling and warning codes.
        statistics: Statistics of the image as resampled for the model, see `image_statistics`.
        seen_size: Height and width of the image as resampled for the model; None for the size of the mask.
        disagreement: Share of the pixels for which the views of the image predict different region classes, 0 to 1;
            None if there is only one view.
        unlike_training: How the image is unlike the training images, such as "darker"; empty if it is like them.
        landing_grid: Pooled probabilities for landing sites; None unless requested.
    """

    mask: Mask
    classes: ClassTable
    class_fractions: dict[str, float]
    confidence: float
    timings_s: dict[str, float]
    model_id: str
    ground: Ground = UNKNOWN_GROUND
    statistics: dict[str, float] = field(default_factory=dict)
    seen_size: tuple[int, int] | None = None
    disagreement: float | None = None
    unlike_training: tuple[str, ...] = ()
    landing_grid: LandingGrid | None = None

    @property
    def warnings(self) -> tuple[PredictionWarning, ...]:
        """Warnings about this prediction, in words."""
        return explain(self.ground.warnings, self.unlike_training)


@dataclass(frozen=True)
class ModelInfo:
    """Description of a loaded model.

    Attributes:
        name: Name of the project or product.
        version: Version of the software that exported the model.
        description: One-line description.
        input_shape: Input shape of the network, (height, width, channels).
        framework: Runtime that executes the network.
        license: Licence of the weights.
        quality: Metrics on held-out images, with a description of those images; None if not measured.
        self_check: Result of the self-check at load, in words.
    """

    name: str
    version: str
    description: str
    input_shape: tuple[int, int, int]
    framework: str
    license: str
    quality: dict[str, Any] | None
    self_check: str = "not checked"


class Segmenter(Protocol):
    """Segments images. All prediction goes through this protocol."""

    @property
    def model_id(self) -> str:
        """Short hash that identifies the model."""
        ...

    @property
    def profile(self) -> str:
        """Name of the bundle profile, for example `fast` or `exact`."""
        ...

    @property
    def info(self) -> ModelInfo:
        """Description of the model."""
        ...

    @property
    def landing_policy(self) -> LandingPolicy:
        """Limits of the probabilities at which a drone may land."""
        ...

    @property
    def classes(self) -> ClassTable:
        """Classes that the model predicts."""
        ...

    def segment(
        self, image: Image, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False, landing: bool = False
    ) -> Prediction:
        """Predict the class of every pixel.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8.
            ground: Ground resolution of the image.
            plain: Whether to apply the network to the pixels as they are, without resampling, context or exposure
                correction.
            landing: Whether to also pool the probabilities for landing sites.
        """
        ...

    def count_tiles(self, size: tuple[int, int], ground: Ground = UNKNOWN_GROUND, *, plain: bool = False) -> int:
        """Return the number of tiles that `segment` passes through the network, known before decoding.

        If the model averages several exposure corrections, an image that is corrected needs a multiple of it.

        Args:
            size: Height and width of the image.
            ground: Ground resolution of the image.
            plain: As in `segment`.
        """
        ...


def class_fractions(mask: Mask, classes: ClassTable) -> dict[str, float]:
    """Return the share of pixels by class name, for all classes; sums to 1."""
    counts = pillow.fromarray(mask).histogram()  # NumPy's bincount copies the mask to 64-bit integers first
    return {entry.name: counts[entry.id] / mask.size for entry in classes}


def image_statistics(image: Image) -> dict[str, float]:
    """Return brightness, contrast, saturation, sharpness, noise, warmth and green share of an image.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.

    Returns:
        `brightness` and `contrast`: mean and standard deviation of the luma, 0 to 1. `saturation`: mean of (largest -
        smallest) / largest channel. `sharpness`: standard deviation of the luma's second difference along rows.
        `noise`: standard deviation of the noise, estimated from the median absolute second difference, which ignores
        edges (after Immerkaer 1996).
        `warmth`: red / (red + blue). `green_share`: share of pixels whose largest channel is green.
    """
    # one plane per channel: reductions over an axis of length 3 are slow
    planes = np.ascontiguousarray(image[::_ROW_STEP].transpose(2, 0, 1)).astype(np.float32) / 255
    red, green, blue = planes
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    highest = planes.max(axis=0)
    spread = highest - planes.min(axis=0)
    second = luma[:, 2:] - 2 * luma[:, 1:-1] + luma[:, :-2]
    warm, cold = red.mean(), blue.mean()
    statistics = {
        "brightness": luma.mean(),
        "contrast": luma.std(),
        "saturation": np.divide(spread, highest, out=np.zeros_like(spread), where=highest > 0).mean(),
        "sharpness": second.std() if second.size else 0.0,
        "noise": _median(np.abs(second)) * _NOISE_OF_MEDIAN,
        "warmth": warm / (warm + cold) if warm + cold else 0.5,
        "green_share": (green > np.maximum(red, blue)).mean(),
    }
    return {name: round(float(value), 5) for name, value in statistics.items()}


def _median(values: NDArray[np.float32]) -> float:
    return float(np.median(values)) if values.size else 0.0
