"""`droneseg evaluate` agrees with nnU-Net's own evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.class_files import find_classes
from droneseg.core.masks import encode_grey_ids
from support.bundles import make_bundle
from support.images import png
from support.raw_datasets import LABELS, SIZE, make_raw_dataset

EVALUATE = "from nnunetv2.evaluation.evaluate_predictions import evaluate_folder_entry_point as run; run()"
"""Code of the command `nnUNetv2_evaluate_folder`."""


def droneseg(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def predict(raw: Path, out: Path, *options: str) -> None:
    bundle = make_bundle(out.parent / "bundle", patch=SIZE[::-1], classes=find_classes(raw).classes)
    droneseg("predict", raw / "imagesTs", "--out", out, "--model", bundle.folder, *options)


def nnunet_summary(raw: Path, masks: Path) -> dict[str, dict[str, dict[str, float]]]:
    plans = masks.parent / "plans.json"
    plans.write_text("{}")
    files = ["-djfile", raw / "dataset.json", "-pfile", plans]
    command = [sys.executable, "-W", "ignore", "-c", EVALUATE, raw / "labelsTs", masks, *files, "-np", "1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((masks / "summary.json").read_text())  # type: ignore[no-any-return]  # as written by nnU-Net


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_dice_equals_that_of_nnunet(tmp_path: Path, suffix: str) -> None:
    raw = make_raw_dataset(tmp_path / "Dataset205_Own", test=3, channels="BGR", ignore=True, suffix=suffix)
    masks = tmp_path / "masks"
    predict(raw, masks, "--format", "ids")
    assert {file.suffix for file in masks.iterdir()} == {suffix, ".jsonl"}
    mean = nnunet_summary(raw, masks)["mean"]
    for truth in (raw / "labelsTs", raw):
        dice = json.loads(droneseg("evaluate", masks, truth, "--json"))["scores"]["image_wise_dice"]
        assert set(dice) == set(LABELS) - {"background"}
        assert dice == pytest.approx({name: mean[str(LABELS[name])]["Dice"] for name in dice}, abs=1e-12)
        assert len({round(value, 4) for value in dice.values()}) > 2


def test_masks_of_a_raw_dataset_are_shown_over_their_images(tmp_path: Path) -> None:
    raw = make_raw_dataset(tmp_path / "Dataset205_Own", channels="RGB")
    predict(raw, tmp_path / "masks")
    shown = droneseg("evaluate", tmp_path / "masks", raw, "--report", tmp_path / "report")
    assert "meadow" in shown
    with Image.open(tmp_path / "report/pictures/best_1.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 500, "the photograph is not in the picture"


TABLE = """id,name,r,g,b,role
0,background,0,0,0,
1,path,200,180,90,landing
2,cart,20,60,200,moving
255,,9,9,9,ignore
"""
COLOURS = np.array([(0, 0, 0), (200, 180, 90), (20, 60, 200), (9, 9, 9)], np.uint8)


@pytest.mark.parametrize("kind", ["colours", "ids"])
def test_true_pixels_that_the_class_table_ignores_are_left_out(tmp_path: Path, kind: str) -> None:
    truth = np.full((20, 30), 1, np.uint8)
    truth[4:8, 4:8], truth[:, 15:] = 2, 3
    prediction = np.where(truth == 3, 2, truth).astype(np.uint8)  # only wrong where there is no label
    for name in ("images", "masks", "predictions"):
        (tmp_path / name).mkdir()
    for stem in "ab":
        (tmp_path / "images" / f"{stem}.png").write_bytes(png(COLOURS[truth]))
        ids = np.where(truth == 3, 255, truth).astype(np.uint8)
        (tmp_path / "masks" / f"{stem}.png").write_bytes(png(ids if kind == "ids" else COLOURS[truth]))
        (tmp_path / "predictions" / f"{stem}.png").write_bytes(encode_grey_ids(prediction))
    (tmp_path / "classes.csv").write_text(TABLE)
    boxes = tmp_path / "people.json"
    boxes.write_text(json.dumps({"a": [[3, 3, 9, 9], [16, 0, 29, 19]]}))
    report = tmp_path / "report"
    options = ("--truth", kind, "--report", report, "--boxes", boxes, "--json")
    found = json.loads(droneseg("evaluate", tmp_path / "predictions", tmp_path, *options))
    assert found["scores"]["confusion"] == [[0, 0, 0], [0, 2 * (20 * 15 - 16), 0], [0, 0, 2 * 16]]
    assert (found["scores"]["miou"], found["scores"]["pixel_accuracy"]) == (1, 1)
    assert (found["people"]["people"], found["people"]["without_truth"]) == (1, 1)
    written = json.loads((report / "report.json").read_text())
    assert {image["boundary_error_px"] for image in written["per_image"].values()} == {0}
    assert (report / "pictures/best_1.png").is_file()


def test_an_imported_background_that_training_ignores_is_left_out(tmp_path: Path) -> None:
    mask = np.array([[0, 0, 5, 5], [0, 1, 1, 5]], np.uint8)
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "photos/a.png").write_bytes(png(np.zeros((2, 4, 3), np.uint8)))
    (tmp_path / "labels/a.png").write_bytes(png(mask))
    legend = tmp_path / "legend.csv"
    legend.write_text("index,class\n0,ignore\n1,obstacles\n5,landing-zones\n")
    folders = (tmp_path / "photos", tmp_path / "labels")
    droneseg("data", "import", *folders, "--out", tmp_path / "mine", "--colours", legend)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/a.png").write_bytes(encode_grey_ids(np.where(mask == 0, 2, mask).astype(np.uint8)))
    found = json.loads(droneseg("evaluate", tmp_path / "predictions", tmp_path / "mine", "--json"))
    assert found["scores"]["miou"] == 1
    assert np.array(found["scores"]["confusion"]).sum() == 5
