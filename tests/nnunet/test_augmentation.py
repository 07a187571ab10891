"""Oversampling of images with rare classes."""

from collections import Counter

from droneseg.nnunet.augmentation import repeat_rare


def test_image_is_repeated_by_its_rarest_class() -> None:
    classes = {f"plain{index}": {3, 5} for index in range(7)} | {"pond": {2, 5}, "pool": {2, 3}, "car": {4, 5}}
    # of ten images, class 3 is in eight, 5 in nine, 2 in two (five times, limited to four) and 4 in one
    assert Counter(repeat_rare(classes)) == {f"plain{index}": 1 for index in range(7)} | {
        "pond": 4,
        "pool": 4,
        "car": 4,
    }


def test_class_in_every_third_image_is_repeated_three_times() -> None:
    classes = {"a": {1, 2}, "b": {1}, "c": {1}}
    assert Counter(repeat_rare(classes)) == {"a": 3, "b": 1, "c": 1}


def test_image_without_classes_is_not_repeated() -> None:
    assert repeat_rare({"a": set(), "b": {1}}) == ["a", "b", "b"]
