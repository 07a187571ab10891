"""Each metric is checked on an example small enough to compute by hand."""

import numpy as np
import pytest

from droneseg.core.errors import InvalidIdsError, ShapeMismatchError
from droneseg.core.metrics import compute_metrics, confusion

# truth:      5 5 5 5     prediction:  5 5 5 1
#             1 1 2 3                  1 5 2 0
TRUTH = np.array([[5, 5, 5, 5], [1, 1, 2, 3]], np.uint8)
PREDICTION = np.array([[5, 5, 5, 1], [1, 5, 2, 0]], np.uint8)


def test_confusion_has_true_classes_in_rows() -> None:
    counts = confusion(TRUTH, PREDICTION)
    assert counts[5].tolist() == [0, 1, 0, 0, 0, 3]
    assert counts[1].tolist() == [0, 1, 0, 0, 0, 1]
    assert counts[3].tolist() == [1, 0, 0, 0, 0, 0]
    assert counts.sum() == 8


def test_confusion_refuses_different_shapes_and_unknown_ids() -> None:
    with pytest.raises(ShapeMismatchError, match="4x2, predicted mask is 4x1"):
        confusion(TRUTH, PREDICTION[:1])
    with pytest.raises(InvalidIdsError, match="7"):
        confusion(TRUTH, np.full_like(TRUTH, 7))


def test_metrics_equal_values_computed_by_hand() -> None:
    scores = compute_metrics([confusion(TRUTH, PREDICTION)])
    # obstacles 1/3, water 1/1, soft 0/1 (predicted 0 is its error, class 0 adds none), landing 3/5, moving absent
    assert scores.per_class_iou == {
        "obstacles": pytest.approx(1 / 3),
        "water": 1.0,
        "soft-surfaces": 0.0,
        "moving-objects": None,
        "landing-zones": pytest.approx(3 / 5),
    }
    assert scores.miou == pytest.approx((1 / 3 + 1 + 0 + 3 / 5) / 4)
    assert scores.per_class_dice["landing-zones"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores.unsafe_landing_rate == pytest.approx(1 / 4)
    assert scores.landing_recall == pytest.approx(3 / 4)
    assert scores.pixel_accuracy == pytest.approx(5 / 8)


def test_miou_uses_one_matrix_and_image_wise_miou_one_per_image() -> None:
    first = confusion(np.array([[5, 5]], np.uint8), np.array([[5, 5]], np.uint8))
    second = confusion(np.array([[5, 1, 1, 1]], np.uint8), np.array([[1, 1, 1, 1]], np.uint8))
    scores = compute_metrics([first, second])
    assert scores.miou == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert scores.image_wise_miou == pytest.approx((1 + (0 + 3 / 4) / 2) / 2)


def test_undefined_metrics_are_none() -> None:
    nothing = np.zeros((2, 2), np.uint8)
    scores = compute_metrics([confusion(nothing, nothing)])
    assert scores.miou is None
    assert scores.image_wise_miou is None
    assert scores.unsafe_landing_rate is None
    assert scores.landing_recall is None


def test_compute_metrics_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="No confusion matrices"):
        compute_metrics([])
