"""How much work a photograph is, and how long a unit of it takes: what the queue counts in."""

import time

import numpy as np

from droneseg.core.errors import ImageTooLargeError
from droneseg.core.images import open_image
from droneseg.core.prediction import Segmenter
from droneseg.serving.answers import Upload

_FEW_TILES = 4  # are always allowed, however low the limit of pixels


def work_of(upload: Upload, segmenter: Segmenter, max_pixels: int) -> float:
    """Return the work of a photograph in units of what the network takes at a time; smaller ones cost as much.

    Raises:
        ImageError: If the photograph is no image, or too large.
    """
    width, height = open_image(upload.data, max_pixels=max_pixels).size
    patch_height, patch_width, _ = segmenter.about.input_shape
    seen_height, seen_width = max(height, patch_height), max(width, patch_width)
    # a strip one pixel wide is no larger than a photograph, but as much work as its tiles
    if seen_height * seen_width > max(max_pixels, _FEW_TILES * patch_height * patch_width):
        raise ImageTooLargeError(
            f"Image is {width}x{height}; in tiles of {patch_width}x{patch_height} that is as much work as "
            f"{seen_height * seen_width:,} pixels, and the limit is {max_pixels:,}. Send parts of another shape."
        )
    return seen_height * seen_width / (patch_height * patch_width)


def measure_unit_s(segmenter: Segmenter) -> float:
    """Predict twice, as the first time is slower; return the seconds that a unit of work takes."""
    height, width, _ = segmenter.about.input_shape
    image = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    segmenter.segment(image)
    begin = time.perf_counter()
    segmenter.segment(image)
    return time.perf_counter() - begin
