"""Each metric is checked on an example small enough to compute by hand."""

from dataclasses import replace

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.errors import InvalidIdsError, ShapeMismatchError
from droneseg.core.metrics import compute_metrics, confusion

# truth:      5 5 5 5     prediction:  5 5 5 1
#             1 1 2 3                  1 5 2 0
TRUTH = np.array([[5, 5, 5, 5], [1, 1, 2, 3]], np.uint8)
PREDICTION = np.array([[5, 5, 5, 1], [1, 5, 2, 0]], np.uint8)


def test_confusion_has_true_classes_in_rows() -> None:
    counts = confusion(TRUTH, PREDICTION, 6)
    assert counts[5].tolist() == [0, 1, 0, 0, 0, 3]
    assert counts[1].tolist() == [0, 1, 0, 0, 0, 1]
    assert counts[3].tolist() == [1, 0, 0, 0, 0, 0]
    assert counts.sum() == 8


def test_confusion_refuses_different_shapes_and_unknown_ids() -> None:
    with pytest.raises(ShapeMismatchError, match="4x2, predicted mask is 4x1"):
        confusion(TRUTH, PREDICTION[:1], 6)
    with pytest.raises(InvalidIdsError, match="7"):
        confusion(TRUTH, np.full_like(TRUTH, 7), 6)
    with pytest.raises(InvalidIdsError, match="contains 6"):
        confusion(TRUTH, np.full_like(TRUTH, 6), 6)
    with pytest.raises(InvalidIdsError, match="contains 7; the largest class id is 5"):
        confusion(np.full_like(TRUTH, 7), PREDICTION, 6)


def test_pixels_without_a_label_are_left_out() -> None:
    truth = TRUTH.copy()
    truth[1, 1] = 6
    expected = confusion(TRUTH, PREDICTION, 6)
    expected[1, 5] -= 1
    assert np.array_equal(confusion(truth, PREDICTION, 6), expected)


def test_metrics_equal_values_computed_by_hand() -> None:
    scores = compute_metrics([confusion(TRUTH, PREDICTION, 6)], DEFAULT_CLASSES)
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
    first = confusion(np.array([[5, 5]], np.uint8), np.array([[5, 5]], np.uint8), 6)
    second = confusion(np.array([[5, 1, 1, 1]], np.uint8), np.array([[1, 1, 1, 1]], np.uint8), 6)
    scores = compute_metrics([first, second], DEFAULT_CLASSES)
    assert scores.miou == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert scores.image_wise_miou == pytest.approx((1 + (0 + 3 / 4) / 2) / 2)


def test_undefined_metrics_are_none() -> None:
    nothing = np.zeros((2, 2), np.uint8)
    scores = compute_metrics([confusion(nothing, nothing, 6)], DEFAULT_CLASSES)
    assert scores.miou is None
    assert scores.image_wise_miou is None
    assert scores.unsafe_landing_rate is None
    assert scores.landing_recall is None


def test_landing_metrics_follow_the_roles_of_the_classes() -> None:
    classes = ClassTable(
        (
            SegmentationClass(0, "other", (0, 0, 0)),
            SegmentationClass(1, "grass", (0, 255, 0), Role.LANDING),
            SegmentationClass(2, "asphalt", (128, 128, 128), Role.LANDING),
            SegmentationClass(3, "river", (0, 0, 255), Role.WATER),
        )
    )
    truth = np.array([[1, 1, 2, 3, 3, 0]], np.uint8)
    prediction = np.array([[2, 0, 2, 1, 3, 1]], np.uint8)
    scores = compute_metrics([confusion(truth, prediction, 4)], classes)
    assert scores.unsafe_landing_rate == pytest.approx(1 / 4)
    assert scores.landing_recall == pytest.approx(2 / 3)
    without_roles = ClassTable(tuple(replace(entry, role=None) for entry in classes))
    scores = compute_metrics([confusion(truth, prediction, 4)], without_roles)
    assert (scores.unsafe_landing_rate, scores.landing_recall) == (None, None)
    assert scores.pixel_accuracy == pytest.approx(1 / 3)


def test_compute_metrics_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="No confusion matrices"):
        compute_metrics([], DEFAULT_CLASSES)


def test_image_wise_dice_is_the_mean_over_images_with_the_class() -> None:
    first, second = np.zeros((6, 6), np.int64), np.zeros((6, 6), np.int64)
    first[1, 1], first[1, 2], first[2, 2] = 3, 1, 1
    second[1, 1], second[1, 0], second[0, 0] = 1, 2, 5
    dice = compute_metrics([first, second], DEFAULT_CLASSES).image_wise_dice
    assert dice["obstacles"] == pytest.approx((6 / 7 + 2 / 4) / 2)
    assert dice["water"] == pytest.approx(2 / 3)  # the second image has none
    assert dice["landing-zones"] is None
