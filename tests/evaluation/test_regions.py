"""Regions are right if the class shares within their polygon are within the limits."""

import json
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DatasetError
from droneseg.evaluation.regions import Region, evaluate_region, read_regions

LEFT_HALF = ((0.0, 0.0), (0.49, 0.0), (0.49, 1.0), (0.0, 1.0))
WATER, SOFT, LANDING = 2, 3, 5


def mask_of(*columns: int) -> np.ndarray:
    """A mask of 100 rows and 200 columns; the left half has these classes, in equal parts, from left to right."""
    mask = np.full((100, 200), LANDING, np.uint8)
    width = 100 // len(columns)
    for number, class_id in enumerate(columns):
        mask[:, number * width : (number + 1) * width] = class_id
    return mask


@pytest.mark.parametrize(
    ("truth", "columns", "right"),
    [
        ("water", (WATER,), True),
        ("water", (WATER, WATER, SOFT, SOFT), False),
        ("lawn", (SOFT,), True),
        ("lawn", (SOFT, LANDING), False),
        ("road", (LANDING, LANDING, LANDING, SOFT), True),
        ("road", (LANDING, LANDING, SOFT, SOFT), False),
        ("dry", (SOFT, LANDING), True),
        ("dry", (SOFT, WATER), False),
        ("shade", (SOFT,), True),
        ("shade", (SOFT, LANDING), False),
    ],
)
def test_shares_within_the_limits_are_right(truth: str, columns: tuple[int, ...], right: bool) -> None:
    evaluated = evaluate_region(Region("a", truth, LEFT_HALF), mask_of(*columns), DEFAULT_CLASSES)
    assert evaluated.right == right
    assert sum(evaluated.shares.values()) == pytest.approx(1)
    names = {WATER: "water", SOFT: "soft-surfaces", LANDING: "landing-zones"}
    for class_id in set(columns):
        assert evaluated.shares[names[class_id]] == pytest.approx(columns.count(class_id) / len(columns), abs=0.03)


def test_regions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "regions.json"
    file.write_text(json.dumps([{"photo": "a", "truth": "water", "polygon": [[0, 0], [0.5, 0], [0.5, 1]]}]))
    assert read_regions(file) == [Region("a", "water", ((0, 0), (0.5, 0), (0.5, 1)))]


def test_all_malformed_regions_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "regions.json"
    good = {"photo": "a", "truth": "water", "polygon": [[0, 0], [0.5, 0], [0.5, 1]]}
    file.write_text(json.dumps([good, good | {"truth": "lava"}, good, good | {"polygon": [[0, 0]]}, {}]))
    with pytest.raises(DatasetError) as raised:
        read_regions(file)
    assert [line.strip(" -").partition(":")[0] for line in str(raised.value).splitlines()[1:]] == [
        "entry 1",
        "entry 3",
        "entry 4",
    ]
