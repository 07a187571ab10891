"""Photographs with rare classes are drawn more often."""

from collections import Counter

from droneseg.nnunet.augmentation import repeat_rare


def test_a_photograph_is_repeated_by_its_rarest_class() -> None:
    classes = {f"plain{index}": {3, 5} for index in range(7)} | {"pond": {2, 5}, "pool": {2, 3}, "car": {4, 5}}
    # of ten: 3 in eight, 5 in nine, 2 in two (five times, at most four), 4 in one
    assert Counter(repeat_rare(classes)) == {f"plain{index}": 1 for index in range(7)} | {
        "pond": 4,
        "pool": 4,
        "car": 4,
    }


def test_a_class_every_third_photograph_has_is_drawn_three_times() -> None:
    classes = {"a": {1, 2}, "b": {1}, "c": {1}}
    assert Counter(repeat_rare(classes)) == {"a": 3, "b": 1, "c": 1}


def test_photographs_without_classes_are_drawn_once() -> None:
    assert repeat_rare({"a": set(), "b": {1}}) == ["a", "b", "b"]
