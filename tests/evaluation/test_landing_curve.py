"""Unsafe landing rates at a landing recall are those of a threshold on the exact probabilities."""

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ShapeMismatchError
from droneseg.evaluation.landing_curve import LandingCurve

LANDING, WATER, SOFT = 5, 2, 3


def drawn(seed: int, shape: tuple[int, int] = (80, 90)) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and probabilities that are higher for landing zones; many are near 1."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, shape).astype(np.uint8)
    log_odds = rng.normal(np.where(truth == LANDING, 7, 3), 4)
    return truth, (1 / (1 + np.exp(-log_odds))).astype(np.float32)


def by_threshold(truth: np.ndarray, landing: np.ndarray, recall: float) -> float:
    """Sort the probabilities of the landing zones, and count the pixels above the threshold."""
    ordered = np.sort(landing[truth == LANDING])[::-1]
    chosen = landing >= ordered[int(np.ceil(recall * len(ordered))) - 1]
    return float(np.isin(truth[chosen], (1, 2, 4)).mean())


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 1.0])
def test_rates_are_those_of_a_threshold_over_all_images(recall: float) -> None:
    curve = LandingCurve(DEFAULT_CLASSES)
    images = [drawn(seed) for seed in range(3)]
    for truth, landing in images:
        curve.add(truth, landing)
    truth, landing = (np.concatenate(parts) for parts in zip(*images, strict=True))
    assert curve.unsafe_rate(recall) == pytest.approx(by_threshold(truth, landing, recall), abs=0.003)


def test_probabilities_near_1_are_distinguished() -> None:
    truth = np.array([[LANDING, LANDING, WATER, SOFT]], np.uint8)
    curve = LandingCurve(DEFAULT_CLASSES)
    curve.add(truth, np.array([[1 - 1e-6, 0.999, 1 - 1e-4, 0.2]], np.float32))
    assert curve.unsafe_rate(0.5) == 0
    assert curve.unsafe_rate(1.0) == pytest.approx(1 / 3)


def test_ignored_pixels_are_not_counted() -> None:
    truth = np.array([[LANDING, 0, 0, WATER]], np.uint8)
    landing = np.array([[0.9, 0.95, 0.95, 0.95]], np.float32)
    for ignore, expected in ((None, 1 / 4), (0, 1 / 2)):
        curve = LandingCurve(DEFAULT_CLASSES)
        curve.add(truth, landing, ignore=ignore)
        assert curve.unsafe_rate(1.0) == expected


def test_pixels_without_a_label_are_never_counted() -> None:
    curve = LandingCurve(DEFAULT_CLASSES)
    curve.add(np.array([[LANDING, 6, 6, WATER]], np.uint8), np.array([[0.9, 0.95, 0.95, 0.95]], np.float32))
    assert curve.unsafe_rate(1.0) == 1 / 2


def test_without_landing_zones_there_is_no_rate() -> None:
    curve = LandingCurve(DEFAULT_CLASSES)
    curve.add(np.full((2, 2), WATER, np.uint8), np.ones((2, 2), np.float32))
    assert curve.unsafe_rate(0.9) is None


def test_arrays_of_different_shapes_are_an_error() -> None:
    with pytest.raises(ShapeMismatchError, match=r"\(2, 2\), the probabilities \(2, 3\)"):
        LandingCurve(DEFAULT_CLASSES).add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.float32))
