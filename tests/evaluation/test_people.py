"""Figures of people count only pixels in their boxes whose true class is moving objects."""

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.class_files import MaskColours, write_classes
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.masks import encode_mask
from droneseg.evaluation.people import PersonShares, person_shares, scale_boxes, summarise_people

MOVING, LANDING, SOFT = 4, 5, 3


def test_shares_count_only_pixels_of_the_person() -> None:
    truth = np.full((10, 10), LANDING, np.uint8)
    truth[2:4, 2:6] = MOVING
    prediction = np.full((10, 10), LANDING, np.uint8)
    prediction[2, 2:6] = MOVING
    prediction[3, 2:4] = SOFT
    assert person_shares(truth, prediction, [(1, 1, 8, 8), (2, 2, 4, 3)], DEFAULT_CLASSES) == [
        PersonShares(landing=0.25, moving=0.5),
        PersonShares(landing=0, moving=1),
    ]


def test_boxes_without_a_person_and_outside_the_image_are_not_counted() -> None:
    truth = np.full((10, 10), LANDING, np.uint8)
    truth[0, 0] = MOVING
    assert person_shares(truth, truth, [(5, 5, 8, 8), (20, 20, 30, 30), (-5, -5, 1, 1)], DEFAULT_CLASSES) == [
        None,
        None,
        PersonShares(landing=0, moving=1),
    ]


def test_a_person_counts_at_half_landing_zone_and_below_a_tenth_moving_object() -> None:
    shares = [PersonShares(0.5, 0.5), PersonShares(0.49, 0.1), PersonShares(0, 0.09), PersonShares(0, 1), None]
    figures = summarise_people(shares)
    assert (figures.people, figures.without_truth) == (4, 1)
    assert figures.much_landing == 0.25
    assert figures.little_moving == 0.25
    assert summarise_people([None]).much_landing is None


def test_boxes_are_scaled_separately_along_both_axes() -> None:
    assert scale_boxes([(150, 100, 300, 500)], (1000, 1500), (500, 300)) == [(30, 50, 60, 250)]


def test_evaluate_reports_people(tmp_path: Path) -> None:
    truth = np.full((20, 30), LANDING, np.uint8)
    truth[5:9, 5:9] = MOVING
    prediction = np.full((20, 30), LANDING, np.uint8)
    for name, mask in (("truth", truth), ("masks", prediction)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode_mask(mask, DEFAULT_CLASSES))
    boxes = tmp_path / "people.json"
    boxes.write_text(json.dumps({"a": [[4, 4, 10, 10]], "not evaluated": [[0, 0, 5, 5]]}))
    words = ["evaluate", str(tmp_path / "masks"), str(tmp_path / "truth"), "--boxes", str(boxes)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "1 people   at least half landing zone 100.0%   less than a tenth moving object 100.0%" in shown.output
    figures = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["people"]
    assert figures == {"people": 1, "much_landing": 1.0, "little_moving": 1.0, "without_truth": 0}


def test_figures_of_people_depend_on_roles(tmp_path: Path) -> None:
    for role in (Role.MOVING, None):
        entries = (SegmentationClass(0, "void", (0, 0, 0)), SegmentationClass(1, "person", (9, 0, 0), role))
        table = ClassTable((*entries, SegmentationClass(2, "road", (0, 9, 0))))
        for name in ("truth", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "a.png").write_bytes(encode_mask(np.ones((9, 9), np.uint8), table))
        write_classes(tmp_path / "classes.csv", MaskColours(table))
        (tmp_path / "people.json").write_text(json.dumps({"a": [[1, 1, 5, 5]]}))
        paths = ["masks", "truth", "--classes", "classes.csv", "--boxes", "people.json"]
        words = ["evaluate", *(word if word.startswith("--") else str(tmp_path / word) for word in paths)]
        shown = CliRunner().invoke(app, words)
        assert f"{int(role == Role.MOVING)} people   at least half landing zone -" in shown.output
        assert ("no class has the role moving" in shown.output) == (role is None)
