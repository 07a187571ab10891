"""Predictions are compared with the true mask of the same stem; all problems are listed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DatasetError
from droneseg.core.masks import encode_mask
from droneseg.evaluation.evaluate import constant_miou, evaluate_folder
from support.images import png

LIMIT = 1000


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("predictions", "truth"):
        (tmp_path / name).mkdir()
    truths = {"a": [[5, 5, 1, 1]], "b": [[3, 3, 3, 3]], "unused": [[2, 2, 2, 2]]}
    for stem, ids in truths.items():
        (tmp_path / "truth" / f"{stem}.png").write_bytes(png(DEFAULT_CLASSES.colours()[np.array(ids)]))
    for stem, ids in {"a": [[5, 5, 5, 1]], "b": [[3, 3, 3, 3]]}.items():
        (tmp_path / "predictions" / f"{stem}.png").write_bytes(encode_mask(np.array(ids, np.uint8), DEFAULT_CLASSES))
    (tmp_path / "predictions" / "a_overlay.png").write_bytes(b"an overlay, not a mask")
    return tmp_path / "predictions", tmp_path / "truth"


def test_masks_are_paired_by_stem(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate_folder(*folders, DEFAULT_CLASSES, max_pixels=LIMIT)
    assert evaluation.scores.images == 2
    assert evaluation.scores.per_class_iou["landing-zones"] == pytest.approx(2 / 3)
    assert evaluation.scores.miou == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert {image.stem: image.miou for image in evaluation.images} == {
        "a": pytest.approx((2 / 3 + 1 / 2) / 2),
        "b": 1.0,
    }
    assert evaluation.without_prediction == ("unused",)


def test_true_masks_may_hold_ids(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    for stem, ids in {"a": [[5, 5, 1, 1]], "b": [[3, 3, 3, 3]]}.items():
        (truth / f"{stem}.png").write_bytes(png(np.array(ids, np.uint8)))
    evaluation = evaluate_folder(predictions, truth, DEFAULT_CLASSES, truth_kind="ids", max_pixels=LIMIT)
    assert evaluation.scores.miou == pytest.approx(13 / 18)


def test_true_pixels_without_a_label_are_not_evaluated(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    for stem, ids in {"a": [[5, 5, 6, 1]], "b": [[3, 3, 3, 6]]}.items():
        (truth / f"{stem}.png").write_bytes(png(np.array(ids, np.uint8)))
    evaluation = evaluate_folder(predictions, truth, DEFAULT_CLASSES, truth_kind="labels", max_pixels=LIMIT)
    assert evaluation.scores.pixel_accuracy == 1
    assert np.array(evaluation.scores.confusion).sum() == 6


def test_all_problems_are_listed(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    (predictions / "extra.png").write_bytes(encode_mask(np.zeros((1, 4), np.uint8), DEFAULT_CLASSES))
    (predictions / "a.png").write_bytes(encode_mask(np.zeros((2, 2), np.uint8), DEFAULT_CLASSES))
    (truth / "b.png").write_bytes(png(np.array([[1, 2, 3, 4]], np.uint8)))
    with pytest.raises(DatasetError) as caught:
        evaluate_folder(predictions, truth, DEFAULT_CLASSES, max_pixels=LIMIT)
    for part in (
        "extra.png: no ground truth mask",
        "a: Ground truth mask is 4x1, predicted mask is 2x2",
        "b.png: Mask has mode 'L'",
    ):
        assert part in str(caught.value)


def test_a_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no mask"):
        evaluate_folder(tmp_path / "empty", tmp_path / "empty", DEFAULT_CLASSES, max_pixels=LIMIT)
    with pytest.raises(DatasetError, match="does not exist"):
        evaluate_folder(tmp_path / "absent", tmp_path / "empty", DEFAULT_CLASSES, max_pixels=LIMIT)


def test_constant_baseline_is_the_best_single_class() -> None:
    # all landing: IoU 3/4 there and 0 for water, so a mean of 3/8; all water: 1/4 and 0
    assert constant_miou([np.array([[5, 5, 5, 2]], np.uint8)], DEFAULT_CLASSES) == pytest.approx(3 / 8)


def test_masks_of_nnunet_are_paired_by_case(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    (predictions / "a.png").rename(predictions / "a_0000.png")
    (truth / "b.png").rename(truth / "b_0000.png")
    evaluation = evaluate_folder(predictions, truth, DEFAULT_CLASSES, max_pixels=LIMIT)
    assert [image.stem for image in evaluation.images] == ["a", "b_0000"]
    assert evaluation.scores.miou == pytest.approx(13 / 18)


def test_two_predictions_of_one_image_are_refused(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    (predictions / "a_0000.png").write_bytes((predictions / "a.png").read_bytes())
    with pytest.raises(DatasetError, match=r"a_0000.png: a.png is a mask of the same image; keep one"):
        evaluate_folder(predictions, truth, DEFAULT_CLASSES, max_pixels=LIMIT)
    (predictions / "a.tif").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"several masks of the same image(.|\n)*a.png and a.tif"):
        evaluate_folder(predictions, truth, DEFAULT_CLASSES, max_pixels=LIMIT)


def test_tiff_masks_of_nnunet_are_evaluated(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    for stem in ("a", "b"):
        ids = Image.open(predictions / f"{stem}.png")
        for folder in (predictions, truth):
            (folder / f"{stem}.png").unlink()
            Image.fromarray(np.asarray(ids)).save(folder / f"{stem}.tif")
    evaluation = evaluate_folder(predictions, truth, DEFAULT_CLASSES, truth_kind="labels", max_pixels=LIMIT)
    assert (evaluation.scores.images, evaluation.scores.miou) == (2, 1.0)
