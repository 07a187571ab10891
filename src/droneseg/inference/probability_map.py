"""Class probabilities of every pixel of an image, quantised to bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.classes import BACKGROUND_ID

QUANTISATION_ERROR = 0.5 / 255
"""Largest difference between a probability and its byte divided by 255."""
SAMPLE_STEP = 16
"""Distance of the sampled pixels, in rows and columns."""

ProbabilityObserver: TypeAlias = Callable[[NDArray[np.float32], int], None]
"""Callback with the class probabilities of a band of rows, shape (C, rows, W), dtype float32, and the index of its
first row. Bands come from top to bottom. The array is valid only during the call."""
QuantisedProbabilities: TypeAlias = NDArray[np.uint8]
"""Class probabilities, shape (C, H, W), dtype uint8: a byte b stands for the probability b / 255."""


@dataclass
class ProbabilityMap:
    """Class probabilities of an image as it was resampled for the model.

    `add` is a `ProbabilityObserver`. Memory: C bytes for each pixel.

    Attributes:
        values: Quantised probabilities, shape (C, h, w), dtype uint8.
        samples: Natural logarithms of the probabilities at every 16th row and column, shape (C, h / 16, w / 16)
            rounded up, dtype float16. A byte is too coarse for fits that depend on small probabilities.
    """

    values: QuantisedProbabilities
    samples: NDArray[np.float16]

    @classmethod
    def empty(cls, classes: int, size: tuple[int, int]) -> "ProbabilityMap":
        """Return a map of an image of this height and width, to be filled by `add`."""
        height, width = size
        rows, columns = -(-height // SAMPLE_STEP), -(-width // SAMPLE_STEP)
        return cls(np.zeros((classes, height, width), np.uint8), np.zeros((classes, rows, columns), np.float16))

    def add(self, probabilities: NDArray[np.float32], first: int) -> None:
        """Store the probabilities of a band of rows, shape (C, rows, w), dtype float32."""
        rows = probabilities.shape[1]
        self.values[:, first : first + rows] = quantise(probabilities)
        begin = -first % SAMPLE_STEP
        sampled = probabilities[:, begin::SAMPLE_STEP, ::SAMPLE_STEP]
        if sampled.shape[1]:
            top = (first + begin) // SAMPLE_STEP
            smallest = np.finfo(np.float32).tiny
            self.samples[:, top : top + sampled.shape[1]] = np.log(np.maximum(sampled, smallest))

    def at_size(self, size: tuple[int, int], box: tuple[slice, slice]) -> QuantisedProbabilities:
        """Return the probabilities at the size of the original photograph, shape (C, H, W), dtype uint8.

        Args:
            size: Height and width of the photograph.
            box: Rows and columns of the photograph that the image shows. The black border outside is background.
        """
        height, width = (part.stop - part.start for part in box)
        whole = np.zeros((len(self.values), *size), np.uint8)
        whole[BACKGROUND_ID] = 255
        for target, channel in zip(whole, self.values, strict=True):
            if channel.shape != (height, width):
                channel = np.asarray(pillow.fromarray(channel).resize((width, height), pillow.Resampling.BILINEAR))
            target[box] = channel
        return whole


def quantise(probabilities: NDArray[np.float32]) -> QuantisedProbabilities:
    """Return probabilities, 0 to 1, as the nearest bytes, 0 to 255."""
    return (probabilities * np.float32(255) + np.float32(0.5)).astype(np.uint8)
