"""The metrics of a report equal values computed by hand or by brute force."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, SegmentationClass
from droneseg.core.errors import DatasetError, OutputExistsError
from droneseg.core.masks import encode_mask
from droneseg.evaluation.evaluate import Evaluation, boundary_error, calibrate, evaluate_folder
from droneseg.evaluation.report import write_report
from support.images import png
from support.workspace import COMMAND

LIMIT = 10_000
TRUTH = {
    "a": [[5, 5, 5, 5], [5, 5, 1, 1]],
    "b": [[3, 3, 3, 3], [2, 2, 2, 2]],
    "c": [[5, 5, 4, 4], [5, 5, 4, 4]],
    "d": [[5, 5, 5, 5], [5, 5, 5, 5]],
}
PREDICTED = {
    "a": [[5, 5, 5, 5], [5, 5, 5, 1]],
    "b": [[3, 3, 3, 3], [5, 5, 2, 2]],
    "c": [[5, 4, 4, 4], [5, 4, 4, 4]],
    "d": [[5, 5, 5, 5], [5, 5, 5, 0]],
}
CONFIDENCE = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.95}


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    for name in ("predictions", "truth"):
        (tmp_path / name).mkdir()
    log = []
    for stem, ids in TRUTH.items():
        (tmp_path / "truth" / f"{stem}.png").write_bytes(png(DEFAULT_CLASSES.colours()[np.array(ids)]))
        mask = encode_mask(np.array(PREDICTED[stem], np.uint8), DEFAULT_CLASSES)
        (tmp_path / "predictions" / f"{stem}.png").write_bytes(mask)
        entry = {
            "stem": stem,
            "model_id": "aaa",
            "profile": "fast",
            "source_sha256": "0" * 64,
            "mask_sha256": hashlib.sha256(mask).hexdigest(),
            "prediction": {"source": f"{stem}.jpg", "status": "predicted", "confidence": CONFIDENCE[stem]},
        }
        log.append(json.dumps(entry))
    (tmp_path / "predictions/predictions.jsonl").write_text("\n".join(log))
    return evaluate_folder(tmp_path / "predictions", tmp_path / "truth", DEFAULT_CLASSES, max_pixels=LIMIT)


def write(evaluation: Evaluation, out: Path) -> dict:
    write_report(evaluation, out, title="Test", truth_kind="colours", max_pixels=LIMIT, find_image=lambda _: None)
    return json.loads((out / "report.json").read_text())


def test_metrics_equal_counts_by_hand(evaluation: Evaluation, tmp_path: Path) -> None:
    report = write(evaluation, tmp_path / "report")
    value = {name: interval["value"] for name, interval in report["figures"].items()}
    # landing: truth a 6, c 4, d 8 = 18; predicted a 7, b 2, c 2, d 7 = 18; correct 6 + 2 + 7 = 15
    # obstacles: 2 true, 1 predicted, 1 correct; water: 4, 2, 2; soft: 4, 4, 4; moving: 4 true, 6 predicted, 4 correct
    ious = {
        "landing-zones": 15 / 21, "obstacles": 1 / 2, "water": 2 / 4, "soft-surfaces": 1.0, "moving-objects": 4 / 6,
    }  # fmt: skip
    dices = {
        "landing-zones": 30 / 36, "obstacles": 2 / 3, "water": 4 / 6, "soft-surfaces": 1.0, "moving-objects": 8 / 10,
    }  # fmt: skip
    for name in ious:
        assert value[f"iou/{name}"] == pytest.approx(ious[name])
        assert value[f"dice/{name}"] == pytest.approx(dices[name])
    assert value["miou"] == pytest.approx(sum(ious.values()) / 5)
    own = {"a": (6 / 7 + 1 / 2) / 2, "b": (1 + 2 / 4 + 0) / 3, "c": (2 / 4 + 4 / 6) / 2, "d": 7 / 8}
    assert {stem: image["miou"] for stem, image in report["per_image"].items()} == pytest.approx(own)
    assert value["image_wise_miou"] == pytest.approx(sum(own.values()) / 4)
    assert value["pixel_accuracy"] == pytest.approx((7 + 6 + 6 + 7) / 32)
    # predicted as landing zone, but obstacle (1 in a) or water (2 in b), of 18 predicted
    assert value["unsafe_landing_rate"] == pytest.approx(3 / 18)
    assert value["landing_recall"] == pytest.approx(15 / 18)
    assert report["confusion"][5] == [1, 0, 0, 0, 2, 15]
    assert report["images"] == 4


def test_boundary_error_equals_brute_force(evaluation: Evaluation, tmp_path: Path) -> None:
    report = write(evaluation, tmp_path / "report")
    by_hand = {stem: brute_force(np.array(TRUTH[stem]), np.array(PREDICTED[stem])) for stem in TRUTH}
    assert {s: i["boundary_error_px"] for s, i in report["per_image"].items()} == pytest.approx(by_hand, rel=1e-5)
    # two straight borders three pixels apart
    left, right = np.ones((5, 9), np.uint8), np.ones((5, 9), np.uint8)
    left[:, 3:], right[:, 6:] = 2, 2
    assert boundary_error(left, right, DEFAULT_CLASSES) == pytest.approx(3)
    assert boundary_error(left, left, DEFAULT_CLASSES) == 0
    assert boundary_error(left, np.ones((5, 9), np.uint8), DEFAULT_CLASSES) == pytest.approx(np.hypot(5, 9))


@pytest.mark.usefixtures("evaluation")
def test_an_image_without_any_label_has_no_metrics(tmp_path: Path) -> None:
    unlabelled = np.full((2, 4), len(DEFAULT_CLASSES), np.uint8)
    for stem in TRUTH:
        ids = unlabelled if stem == "a" else np.array(TRUTH[stem], np.uint8)
        (tmp_path / "truth" / f"{stem}.png").write_bytes(png(ids))
    folders = tmp_path / "predictions", tmp_path / "truth"
    partly = evaluate_folder(*folders, DEFAULT_CLASSES, truth_kind="labels", max_pixels=LIMIT)
    write_report(
        partly, tmp_path / "out", title="Test", truth_kind="labels", max_pixels=LIMIT, find_image=lambda _: None
    )
    report = json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)
    nothing = {"miou": None, "pixel_accuracy": None, "boundary_error_px": None, "confidence": CONFIDENCE["a"]}
    assert report["per_image"]["a"] == nothing
    assert report["calibration"]["images"] == 3
    others = [report["per_image"][stem]["boundary_error_px"] for stem in "bcd"]
    assert report["figures"]["boundary_error_px"]["value"] == pytest.approx(np.mean(others))
    for stem in TRUTH:
        (tmp_path / "truth" / f"{stem}.png").write_bytes(png(unlabelled))
    with pytest.raises(DatasetError, match=r"No pixel of the masks in .* has a label"):
        evaluate_folder(*folders, DEFAULT_CLASSES, truth_kind="labels", max_pixels=LIMIT)


def test_edges_of_unlabelled_areas_are_no_borders() -> None:
    unlabelled = len(DEFAULT_CLASSES)
    truth = np.full((6, 12), 1, np.uint8)
    truth[:, 4:] = 2
    predicted = truth.copy()
    predicted[:, 9:] = 3  # a wrong border
    assert boundary_error(truth, predicted, DEFAULT_CLASSES) > 0
    truth[:, 8:] = unlabelled
    assert boundary_error(truth, predicted, DEFAULT_CLASSES) == 0
    truth[:, 3:] = unlabelled  # no border is left
    predicted[:, 3:] = 1
    assert boundary_error(truth, predicted, DEFAULT_CLASSES) == 0


def brute_force(truth: np.ndarray, predicted: np.ndarray) -> float:
    def border(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if (x + 1 < width and mask[y, x] != mask[y, x + 1]) or (y + 1 < height and mask[y, x] != mask[y + 1, x])
        ]

    predicted_border, true_border = border(predicted), border(truth)
    if not predicted_border and not true_border:
        return 0.0
    if not predicted_border or not true_border:
        return float(np.hypot(*truth.shape))
    pairs = ((predicted_border, true_border), (true_border, predicted_border))
    distances = [min(np.hypot(a - c, b - d) for c, d in other) for one, other in pairs for a, b in one]
    return float(np.mean(distances))


def test_calibration_equals_counts_by_hand(evaluation: Evaluation, tmp_path: Path) -> None:
    calibration = write(evaluation, tmp_path / "report")["calibration"]
    accuracy = {"a": 7 / 8, "b": 6 / 8, "c": 6 / 8, "d": 7 / 8}
    assert calibration["images"] == 4
    assert calibration["mean_confidence"] == pytest.approx((0.9 + 0.8 + 0.7 + 0.95) / 4)
    assert calibration["mean_accuracy"] == pytest.approx((7 + 6 + 6 + 7) / 32)
    assert calibration["overconfidence"] == pytest.approx(sum(CONFIDENCE[s] - accuracy[s] for s in accuracy) / 4)
    # bins of a tenth: 0.9 and 0.95 share one, 0.8 and 0.7 have one each
    gaps = 2 * abs((0.9 + 0.95) / 2 - 7 / 8) + abs(0.8 - 6 / 8) + abs(0.7 - 6 / 8)
    assert calibration["expected_calibration_error"] == pytest.approx(gaps / 4)
    assert calibrate(np.array([]), np.array([])) is None


def test_markdown_states_the_metrics_and_git_ignores_the_pictures(evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "report"
    report = write(evaluation, out)
    text = (out / "report.md").read_text()
    assert f"| mIoU | {report['figures']['miou']['value']:.3f} |" in text
    assert f"| water | {report['figures']['iou/water']['value']:.3f} |" in text
    for name in ("confusion.png", "classes.png", "calibration.png", "pictures/worst_1.png", "pictures/best_1.png"):
        with Image.open(out / name) as opened:
            assert opened.width > 10
        assert name in text
    assert (out / "pictures/.gitignore").read_text() == "*\n"
    with pytest.raises(OutputExistsError):
        write(evaluation, out)


def test_a_folder_that_is_not_a_report_is_not_replaced(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("report.json", "thesis.txt"):
        (folder / name).write_text("mine")
    options = {"title": "Test", "truth_kind": "colours", "max_pixels": LIMIT, "find_image": lambda _: None}
    with pytest.raises(OutputExistsError, match="was not created by this command"):
        write_report(evaluation, folder, **options, replace=True)
    assert (folder / "thesis.txt").read_text() == "mine"
    write_report(evaluation, tmp_path / "ours", **options)
    write_report(evaluation, tmp_path / "ours", **options, replace=True)


def test_report_and_command_warn_about_much_background(evaluation: Evaluation, tmp_path: Path) -> None:
    write(evaluation, tmp_path / "without")
    truth = np.array([[0, 0, 5, 5], [5, 5, 1, 1]])
    (tmp_path / "truth/a.png").write_bytes(png(DEFAULT_CLASSES.colours()[truth]))
    changed = evaluate_folder(tmp_path / "predictions", tmp_path / "truth", DEFAULT_CLASSES, max_pixels=LIMIT)
    write(changed, tmp_path / "with")
    note = "6.2% of the true pixels are background"
    assert "are background" not in (tmp_path / "without/report.md").read_text()
    assert note in (tmp_path / "with/report.md").read_text()
    done = subprocess.run(
        [*COMMAND, "evaluate", tmp_path / "predictions", tmp_path / "truth"], capture_output=True, text=True
    )
    assert f"note: {note}" in done.stderr
    assert json.loads((tmp_path / "with/report.json").read_text())["confusion"][0][5] == 2


def test_confidence_is_not_known_without_a_log(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "predictions/predictions.jsonl").unlink()
    bare = evaluate_folder(tmp_path / "predictions", tmp_path / "truth", DEFAULT_CLASSES, max_pixels=LIMIT)
    assert write(bare, tmp_path / "report")["calibration"] is None
    assert "Confidence: unknown" in (tmp_path / "report/report.md").read_text()


def test_the_confidence_of_a_changed_mask_is_ignored(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "predictions/a.png").write_bytes(encode_mask(np.full((2, 4), 5, np.uint8), DEFAULT_CLASSES))
    changed = evaluate_folder(tmp_path / "predictions", tmp_path / "truth", DEFAULT_CLASSES, max_pixels=LIMIT)
    assert [image.confidence for image in changed.images] == [None, 0.8, 0.7, 0.95]


def test_report_of_classes_without_a_landing_role_has_no_landing_figures(tmp_path: Path) -> None:
    own = ClassTable(
        tuple(
            SegmentationClass(number, name, (number, 0, 0)) for number, name in enumerate(("void", "road|path", "sea"))
        )
    )
    for folder in ("predictions", "truth"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encode_mask(np.array([[0, 1], [2, 2]], np.uint8), own))
    evaluation = evaluate_folder(tmp_path / "predictions", tmp_path / "truth", own, max_pixels=LIMIT)
    report = write(evaluation, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "**There is no landing role in this model, so it has no landing figures.**" in text
    assert "25.0% of the true pixels are void, the background. Predictions there count as wrong for IoU, so" in text
    assert "| road\\|path | 1.000 |" in text
    assert "unsafe" not in text
    assert not report["figures"].keys() & {"unsafe_landing_rate", "landing_recall"}
