"""Image statistics with values computed by hand."""

import numpy as np
import pytest

from droneseg.core.prediction import image_statistics


def test_uniform_grey_image_has_brightness_only() -> None:
    found = image_statistics(np.full((16, 16, 3), 51, np.uint8))
    assert found["brightness"] == pytest.approx(0.2, abs=1e-4)
    assert found["warmth"] == pytest.approx(0.5)
    assert all(found[name] == 0 for name in ("contrast", "saturation", "sharpness", "noise", "green_share"))


def test_statistics_of_a_half_green_half_black_image() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4, 1] = 255
    found = image_statistics(image)
    assert found["green_share"] == 0.5
    assert found["saturation"] == 0.5
    assert found["brightness"] == pytest.approx(0.587 / 2, abs=1e-4)
    assert found["contrast"] == pytest.approx(0.587 / 2, abs=1e-4)


def test_noise_estimates_the_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    grey = np.clip(rng.normal(128, 10, (400, 400, 1)), 0, 255)
    found = image_statistics(np.repeat(grey, 3, axis=2).astype(np.uint8))
    assert found["noise"] == pytest.approx(10 / 255, rel=0.05)


def test_single_edge_is_not_noise() -> None:
    image = np.zeros((16, 64, 3), np.uint8)
    image[:, 32:] = 255
    found = image_statistics(image)
    assert found["noise"] == 0
    assert found["sharpness"] > 0


def test_blue_image_has_low_warmth() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0], image[..., 2] = 50, 150
    assert image_statistics(image)["warmth"] == pytest.approx(0.25, abs=1e-4)


def test_statistics_of_a_single_pixel_are_finite() -> None:
    assert image_statistics(np.zeros((1, 1, 3), np.uint8))["sharpness"] == 0
