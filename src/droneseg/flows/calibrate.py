"""Calibration of a bundle on images with ground truth: temperature, and ranges of the check for unlike images."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import DatasetError
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.prediction import image_statistics
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.unlike_training import features_of, fit_ranges
from droneseg.inference.views import MAX_REDUCTION, View, ViewCombiner, resample
from droneseg.model.bundle import Bundle, Calibration, Context

MIN_IMAGES = 20
"""Smallest number of images for a calibration."""
_PIXEL_STEP = 16
"""Distance of the pixels, in rows and columns, that the temperature is fitted on."""
_TEMPERATURES = np.arange(1.0, 3.005, 0.01)


def fit_calibration(bundle: Bundle, samples: Iterable[tuple[Image, Mask]], *, source: str) -> Calibration:
    """Fit the calibration of a bundle's default profile.

    Args:
        bundle: Bundle with its final block `context`.
        samples: Images at the model's ground resolution, RGB, shape (H, W, 3), dtype uint8, and their true masks of
            class ids, shape (H, W), dtype uint8.
        source: Description of the images, and whether the network was trained on them.

    Returns:
        Block `calibration` of the manifest.

    Raises:
        DatasetError: If there are fewer than 20 images.
    """
    segmenter = BundleSegmenter(bundle)
    rows, logits, truths = [], [], []
    for image, truth in samples:
        of_image = segmenter.logits(image)
        disagreement = _measure_disagreement(segmenter, image, of_image, bundle.manifest.context)
        rows.append(features_of(image_statistics(image), disagreement))
        logits.append(of_image[:, ::_PIXEL_STEP, ::_PIXEL_STEP].reshape(len(of_image), -1))
        truths.append(truth[::_PIXEL_STEP, ::_PIXEL_STEP].reshape(-1))
    if len(rows) < MIN_IMAGES:
        raise DatasetError(f"{len(rows)} images are too few for a calibration; use at least {MIN_IMAGES}.")
    return Calibration(
        temperature=fit_temperature(np.concatenate(logits, axis=1), np.concatenate(truths)),
        source=source,
        unlike_training=fit_ranges(rows, source),
    )


def _measure_disagreement(
    segmenter: BundleSegmenter, image: Image, logits: NDArray[np.float32], context: Context | None
) -> float | None:
    """Return the disagreement of an image with its smallest view; None for a bundle that uses a single view.

    Small views disagree most, so the range also suits larger ones.
    """
    if context is None:
        return None
    height, width = image.shape[:2]
    size = max(round(height / MAX_REDUCTION), 1), max(round(width / MAX_REDUCTION), 1)
    view = View(size, weight=0.5, only_regions=True)
    smallest = segmenter.logits(resample(image, size))
    combiner = ViewCombiner([(view, smallest)], (height, width), context, temperature=1.0)
    combiner.classify(logits, 0)
    return combiner.disagreement


def fit_temperature(logits: NDArray[np.float32], truth: Mask) -> float:
    """Return the temperature from 1 to 3 with the smallest negative log-likelihood of the true classes.

    A temperature below 1 would make the model more confident. A fit on training images may prefer one, but it is not
    valid for new images, so 1 is the lower limit.

    Args:
        logits: Logits of N pixels, shape (C, N), dtype float32.
        truth: True classes, shape (N,), dtype uint8.
    """
    losses = [_negative_log_likelihood(logits / np.float32(value), truth) for value in _TEMPERATURES]
    return round(float(_TEMPERATURES[int(np.argmin(losses))]), 2)


def _negative_log_likelihood(logits: NDArray[np.float32], truth: Mask) -> float:
    shifted = logits - logits.max(axis=0)
    chosen = np.take_along_axis(shifted, truth[None].astype(np.intp), axis=0)[0]
    return float((np.log(np.exp(shifted).sum(axis=0)) - chosen).mean(dtype=np.float64))
