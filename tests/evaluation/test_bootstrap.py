"""Intervals have the stated coverage, and paired differences use the same images."""

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.metrics import mean_iou
from droneseg.evaluation.bootstrap import bootstrap_intervals, mean_interval, paired_differences

PIXELS = 4000


def images(rng: np.random.Generator, count: int, skill: float = 0.8) -> np.ndarray:
    """Return confusion matrices of images that differ in difficulty and content, shape (count, 6, 6)."""
    pixels = (rng.dirichlet((4, 2, 6, 2, 8), count) * PIXELS).astype(int)
    right = np.clip(rng.normal(skill, 0.08, count), 0.05, 0.98)[:, None, None]
    odds = np.where(np.eye(5, dtype=bool), right, (1 - right) / 4)
    matrices = np.zeros((count, 6, 6), np.int64)
    matrices[:, 1:, 1:] = rng.multinomial(pixels, odds)
    return matrices


def test_the_95_percent_interval_contains_the_true_miou_in_93_to_97_percent_of_1000_repetitions() -> None:
    rng = np.random.default_rng(2026)
    # so many images that the error of this value is far below the width of an interval
    true_miou = float(mean_iou(images(rng, 40_000).sum(axis=0)))
    covered = 0
    for repetition in range(1000):
        interval = bootstrap_intervals(images(rng, 80), DEFAULT_CLASSES, resamples=250, seed=repetition)["miou"]
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= true_miou <= interval.high
    assert 930 <= covered <= 970


def test_values_are_computed_on_all_images() -> None:
    matrices = np.zeros((2, 6, 6), np.int64)
    matrices[0, 5, 5], matrices[0, 1, 5], matrices[0, 1, 1] = 6, 2, 2  # landing 6/8, obstacles 2/4
    matrices[1, 5, 5], matrices[1, 2, 5] = 2, 8  # landing 2/10, water 0/8
    intervals = bootstrap_intervals(matrices, DEFAULT_CLASSES, resamples=50)
    assert intervals["iou/landing-zones"].value == pytest.approx(8 / 18)
    assert intervals["iou/obstacles"].value == pytest.approx(2 / 4)
    assert intervals["iou/water"].value == 0
    assert intervals["iou/moving-objects"].value is None
    assert intervals["dice/landing-zones"].value == pytest.approx(16 / 26)
    assert intervals["miou"].value == pytest.approx((8 / 18 + 1 / 2 + 0) / 3)
    assert intervals["image_wise_miou"].value == pytest.approx(((6 / 8 + 2 / 4) / 2 + (2 / 10 + 0) / 2) / 2)
    assert intervals["pixel_accuracy"].value == pytest.approx(10 / 20)
    assert intervals["unsafe_landing_rate"].value == pytest.approx(10 / 18)
    assert intervals["landing_recall"].value == 1


def test_one_image_has_no_interval() -> None:
    interval = bootstrap_intervals(images(np.random.default_rng(0), 1), DEFAULT_CLASSES, resamples=20)["miou"]
    assert interval.value is not None
    assert (interval.low, interval.high) == (None, None)


def test_a_class_in_few_images_gets_no_interval() -> None:
    matrices = np.zeros((30, 6, 6), np.int64)
    matrices[:, 5, 5] = 9
    matrices[0, 2, 2] = 9
    intervals = bootstrap_intervals(matrices, DEFAULT_CLASSES)
    assert intervals["iou/water"].value == 1
    # a third of the resamples contain no water, and the others contain more than its share
    assert (intervals["iou/water"].low, intervals["iou/water"].high) == (None, None)
    rare = bootstrap_intervals(np.concatenate([matrices, matrices[1:]]), DEFAULT_CLASSES)["iou/landing-zones"]
    assert (rare.low, rare.high) == (1, 1)


def test_pairing_finds_a_difference_that_two_overlapping_intervals_hide() -> None:
    rng = np.random.default_rng(5)
    first = images(rng, 60, skill=0.7)
    second = first.copy()
    for matrix in second:  # correct a tenth of the errors of class 1 in every image
        corrected = matrix[1, 2:] // 10
        matrix[1, 2:] -= corrected
        matrix[1, 1] += corrected.sum()
    difference = paired_differences(first, second, DEFAULT_CLASSES)["iou/obstacles"]
    assert difference.low is not None
    assert difference.low > 0
    separate = [bootstrap_intervals(matrices, DEFAULT_CLASSES)["iou/obstacles"] for matrices in (first, second)]
    assert separate[0].high is not None
    assert separate[1].low is not None
    assert separate[0].high > separate[1].low
    same = paired_differences(first, first, DEFAULT_CLASSES)["miou"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_different_numbers_of_images_cannot_be_paired() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="have 3 and 4 images"):
        paired_differences(images(rng, 3), images(rng, 4), DEFAULT_CLASSES)


def test_mean_interval_ignores_nan() -> None:
    interval = mean_interval(np.array([1.0, np.nan, 3.0]))
    assert interval.value == 2
    assert interval.low is not None
    assert interval.low >= 1
    assert mean_interval(np.array([np.nan])).value is None
