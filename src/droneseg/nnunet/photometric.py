"""Photometric augmentation of training crops: exposure, gamma, colour cast, contrast, haze, shadow, and loss of detail.

All operations on single pixels are combined in one look-up table per colour, so that their number hardly affects speed.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from droneseg.core.images import Image
from droneseg.nnunet.trainer_settings import TrainerSettings

_EXPOSURE = (0.25, 2.0)
_GAMMA = (0.5, 2.0)
_CAST = (0.8, 1.25)
_CONTRAST = (0.6, 1.5)
_MIDDLE = 110.0  # typical mean of a photograph; contrast changes around it
_DARKNESS = (0.1, 0.35)
_HAZE_TRANSMISSION = (0.45, 0.95)
_AIRLIGHT = (170.0, 250.0)
_SHADOW_DEPTH = (0.25, 0.7)
_SHADOW_TINT = (1.0, 0.98, 0.9)  # blue skylight still reaches the shadow
_BLUR_SIGMA = (0.5, 1.8)
_JPEG_QUALITY = (15, 70)
_NOISE = (2.0, 12.0)  # standard deviation
_NOISE_SIDE = 1024
_SHADOW_CELLS = (2, 9)

Curve = NDArray[np.floating[Any]]
"""Output values of the inputs 0 to 255 for each colour, shape (256, 3)."""


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Return a random number that is uniform in the logarithm."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


class PhotometricAugmentation:
    """Random changes of light, colour and sharpness.

    Args:
        settings: Settings with the share of crops for each kind of change. Dark crops get noise and no other change of
            light, colour or sharpness except shadows.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        self._curves: list[tuple[float, Callable[[Curve, np.random.Generator], Curve]]] = [
            (settings.contrast_share, _contrast),
            (settings.gamma_share, _gamma),
            (settings.exposure_share, lambda curve, rng: curve * log_uniform(rng, _EXPOSURE)),
            (settings.cast_share, lambda curve, rng: curve * [log_uniform(rng, _CAST) for _ in range(3)]),
            (settings.haze_share, _haze),
        ]
        self._shadow_share = settings.shadow_share
        self._dark_share = settings.dark_share
        self._blur_share = settings.blur_share
        self._noise: NDArray[np.int16] | None = None

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return a changed copy of a crop, shape (h, w, 3), dtype uint8, or the crop itself if no change was drawn."""
        if self._shadow_share and rng.random() < self._shadow_share:
            image = _cast_shadow(image, rng)
        curve = identity = _identity()
        dark = bool(self._dark_share) and rng.random() < self._dark_share
        for share, change in self._curves:
            if share and not dark and rng.random() < share:
                curve = change(curve, rng)
        if dark:
            curve = curve * log_uniform(rng, _DARKNESS)
        if curve is not identity:
            table = np.clip(curve + 0.5, 0, 255).astype(np.uint8)
            image = _uint8(cv2.LUT(image, table[None]))
        if dark:
            image = self._add_noise(image, rng)
        elif self._blur_share and rng.random() < self._blur_share:
            image = self._lose_detail(image, rng)
        return image

    def _lose_detail(self, image: Image, rng: np.random.Generator) -> Image:
        kind = rng.integers(3)
        if kind == 0:
            return _uint8(cv2.GaussianBlur(image, (0, 0), log_uniform(rng, _BLUR_SIGMA)))
        if kind == 1:
            quality = int(rng.integers(*_JPEG_QUALITY))
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            return _uint8(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
        return self._add_noise(image, rng)

    def _add_noise(self, image: Image, rng: np.random.Generator) -> Image:
        """Add Gaussian noise, cut at a random position from a larger array that is drawn once."""
        height, width = image.shape[:2]
        if self._noise is None or min(self._noise.shape[0] - height, self._noise.shape[1] - width) < 0:
            side = max(_NOISE_SIDE, 2 * height, 2 * width)
            self._noise = (64 * rng.standard_normal((side, side, 3), np.float32)).astype(np.int16)
        top = int(rng.integers(self._noise.shape[0] - height + 1))
        left = int(rng.integers(self._noise.shape[1] - width + 1))
        noise = self._noise[top : top + height, left : left + width]
        return _uint8(cv2.addWeighted(image.astype(np.int16), 1.0, noise, log_uniform(rng, _NOISE) / 64, 0.0))


def _identity() -> Curve:
    return np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)


def _uint8(array: Any) -> Image:
    """Return OpenCV's result as uint8, limited to 0..255."""
    result: Image = array if array.dtype == np.uint8 else np.clip(array, 0, 255).astype(np.uint8)
    return result


def _contrast(curve: Curve, rng: np.random.Generator) -> Curve:
    return _MIDDLE + (curve - _MIDDLE) * log_uniform(rng, _CONTRAST)


def _gamma(curve: Curve, rng: np.random.Generator) -> Curve:
    return 255 * (np.clip(curve, 0, 255) / 255) ** log_uniform(rng, _GAMMA)


def _haze(curve: Curve, rng: np.random.Generator) -> Curve:
    """Mix with airlight that is a little bluer than grey: Koschmieder's law at one distance."""
    transmission = rng.uniform(*_HAZE_TRANSMISSION)
    airlight = rng.uniform(*_AIRLIGHT) * np.array([1 - rng.uniform(0, 0.1), 1, 1 + rng.uniform(0, 0.05)])
    return np.clip(curve, 0, 255) * transmission + airlight * (1 - transmission)


def _cast_shadow(image: Image, rng: np.random.Generator) -> Image:
    """Darken random regions with soft or sharp edges, as clouds and trees do; shadows are a little bluer."""
    height, width = image.shape[:2]
    cells = rng.standard_normal(rng.integers(*_SHADOW_CELLS, size=2), np.float32)
    field = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    edge = log_uniform(rng, (1.0, 20.0))  # sharpness
    shade = np.clip(0.5 + edge * (field - rng.uniform(-0.3, 0.8)), 0, 1)
    depth = rng.uniform(*_SHADOW_DEPTH)
    factor = cv2.merge([1 - shade * np.float32(depth * tint) for tint in _SHADOW_TINT])
    return _uint8(cv2.multiply(image, factor, dtype=cv2.CV_8U))
