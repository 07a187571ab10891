"""Names, colours and roles for the classes of a network, and the folding of its classes."""

import numpy as np
import pytest

from droneseg.core.class_map import fold_classes, name_classes
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.errors import ConfigurationError

OWN = ClassTable(
    tuple(
        SegmentationClass(number, name, (number, 0, 0))
        for number, name in enumerate(("background", "road", "car", "water", "roof"))
    )
)


def problems(error: pytest.ExceptionInfo[ConfigurationError]) -> list[str]:
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]


def test_names_and_ids_of_a_class_table_have_to_match_the_model() -> None:
    given = ClassTable(
        (
            SegmentationClass(0, "background", (0, 0, 0)),
            SegmentationClass(1, "car", (9, 0, 0), Role.MOVING),
            SegmentationClass(2, "road", (0, 9, 0), Role.LANDING),
            SegmentationClass(3, "tree", (0, 0, 9)),
        )
    )
    with pytest.raises(ConfigurationError, match="does not match the labels in the model") as error:
        name_classes(OWN, given)
    assert problems(error) == [
        "water is missing; its id is 3",
        "roof is missing; its id is 4",
        "tree is not a class of the model",
        "road has the id 2; in the model it is 1",
        "car has the id 1; in the model it is 2",
    ]


def test_a_matching_class_table_changes_no_id() -> None:
    roles = [None, *[Role.SOFT] * 4]
    given = ClassTable(
        tuple(
            # nnU-Net requires the name background, but the user's table may have another one
            SegmentationClass(entry.id, entry.name if entry.id else "void", (0, entry.id, 0), role)
            for entry, role in zip(OWN, roles, strict=True)
        )
    )
    named = name_classes(OWN, given)
    assert (named.target, named.folds_classes) == (given, False)
    assert named.lookup()[:6].tolist() == [0, 1, 2, 3, 4, 5]


def test_folded_classes_get_the_ids_of_those_that_are_left() -> None:
    pairs = [("road", "landing-zones"), ("car", "obstacles"), ("roof", "obstacles")]
    folded = fold_classes(OWN, DEFAULT_CLASSES, pairs)
    assert folded.target.names == ("background", "obstacles", "water", "landing-zones")
    assert [entry.role for entry in folded.target] == [None, Role.OBSTACLE, Role.WATER, Role.LANDING]
    assert folded.ids == (0, 3, 1, 2, 1)
    mask = np.array([[0, 1, 2, 3, 4, OWN.ignore_label]], np.uint8)
    assert folded.lookup()[mask].tolist() == [[0, 3, 1, 2, 1, folded.target.ignore_label]]


def test_all_problems_of_a_mapping_are_listed_at_once() -> None:
    pairs = [
        ("rode", "landing-zones"),
        ("car", "soft-surfaces"),
        ("car", "water"),
        ("background", "water"),
        ("roof", "x"),
    ]
    with pytest.raises(ConfigurationError, match="cannot be mapped") as error:
        fold_classes(OWN, DEFAULT_CLASSES, pairs)
    names = ", ".join(DEFAULT_CLASSES.names)
    assert problems(error) == [
        "rode is not a class of the model; its classes are background, road, car, water, roof",
        "car is mapped 2 times",
        f"x is not a class to map to; choose from {names}",
        f"road is not mapped, and there is no class of this name to keep; choose from {names}",
        "background is the background; it can only become background",
    ]


def test_a_mapping_leaves_at_least_two_classes() -> None:
    pairs = [(name, "background") for name in OWN.names[1:]]
    with pytest.raises(ConfigurationError) as error:
        fold_classes(OWN, DEFAULT_CLASSES, pairs)
    assert problems(error) == ["only background is left; at least two classes are needed"]
