"""Noise has the stated statistics, and outlines are signed distances in pixels."""

import cv2
import numpy as np
import pytest

from droneseg.data.shapes import (
    FREQUENCIES,
    blur,
    distance_inside,
    draw_outline,
    fractal_noise,
    smooth_noise,
    smooth_step,
)


@pytest.mark.parametrize("cell", [2, 3, 7, 20])
def test_noise_has_mean_0_and_deviation_1_whatever_its_cell(cell: float) -> None:
    values = smooth_noise(np.random.default_rng(1), (600, 800), cell)
    assert values.shape == (600, 800)
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(0, abs=0.12)
    assert values.std() == pytest.approx(1, abs=0.12)


def test_noise_is_smooth_within_a_cell() -> None:
    values = smooth_noise(np.random.default_rng(2), (300, 300), 40)
    assert np.abs(np.diff(values, axis=0)).max() < 0.25
    assert np.abs(np.diff(values, axis=1)).max() < 0.25


def test_stretched_noise_varies_less_along_its_direction() -> None:
    values = smooth_noise(np.random.default_rng(3), (300, 300), 6, angle=0.0, stretch=5)
    along, across = np.abs(np.diff(values, axis=1)).mean(), np.abs(np.diff(values, axis=0)).mean()
    assert along < 0.35 * across


def test_fractal_noise_has_more_detail_than_its_largest_cell() -> None:
    coarse = fractal_noise(np.random.default_rng(4), (300, 300), 60, octaves=1)
    detailed = fractal_noise(np.random.default_rng(4), (300, 300), 60, octaves=5)
    assert detailed.std() == pytest.approx(1, abs=0.35)
    assert np.abs(np.diff(detailed)).mean() > 1.5 * np.abs(np.diff(coarse)).mean()


def test_smooth_step_rises_from_0_to_1() -> None:
    values = smooth_step(np.array([[-5, 1, 2, 3, 9]], dtype=np.float32), 1, 3)
    assert values.tolist() == [[0, 0, 0.5, 1, 1]]


def test_wide_blur_equals_a_gaussian() -> None:
    values = np.zeros((120, 160), dtype=np.float32)
    values[40:80, 50:110] = 1
    assert np.abs(blur(values, 9) - cv2.GaussianBlur(values, (0, 0), 9)).max() < 0.03


def test_distance_inside_is_0_outside_and_large_without_an_outline() -> None:
    inside = np.zeros((9, 9), dtype=bool)
    inside[2:7, 2:7] = True
    distance = distance_inside(inside)
    assert distance[4, 4] == pytest.approx(3, abs=0.3)
    assert distance[0, 0] == 0
    assert distance_inside(np.ones((4, 4), dtype=bool)).min() > 1000


@pytest.mark.parametrize("kind", list(FREQUENCIES))
def test_outlines_divide_the_image_except_the_whole_frame(kind: str) -> None:
    shares = [
        float((draw_outline(np.random.default_rng(seed), (120, 180), kinds={kind: 1}).distance > 0).mean())
        for seed in range(40)
    ]
    if kind == "frame":
        assert min(shares) == 1
        return
    assert sum(0.005 < share < 0.97 for share in shares) >= 32
    assert max(shares) - min(shares) > 0.2


def test_the_distance_of_a_band_is_in_pixels() -> None:
    for seed in range(20):
        distance = draw_outline(np.random.default_rng(seed), (200, 300), kinds={"band": 1}).distance
        inside = distance > 0
        true = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        middle = true > 3
        middle[:20], middle[-20:], middle[:, :20], middle[:, -20:] = False, False, False, False
        if middle.sum() > 200:
            assert np.median(distance[middle] / true[middle]) == pytest.approx(1, abs=0.3)


def test_outlines_are_reproducible_and_vary() -> None:
    first, second, other = (draw_outline(np.random.default_rng(seed), (60, 80)) for seed in (1, 1, 2))
    assert np.array_equal(first.distance, second.distance)
    assert not np.array_equal(first.distance, other.distance)
