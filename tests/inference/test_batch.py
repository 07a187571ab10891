"""Batch prediction: finished files are skipped, and broken files do not affect the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.errors import DronesegError, OutputExistsError
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.inference.batch import FileResult, find_inputs, predict_files, require_output
from support.images import png
from support.segmenters import BrightIsLanding


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, grey in enumerate((10, 200, 90)):
        (folder / f"p{index}.png").write_bytes(png(np.full((6, 8, 3), grey, np.uint8)))
    return folder


def run(segmenter: BrightIsLanding, photos: Path, out: Path, **options: bool) -> list[FileResult]:
    sources = find_inputs([str(photos)])
    return list(predict_files(segmenter, sources, out, max_pixels=DEFAULT_MAX_PIXELS, **options))


def test_predict_writes_one_mask_per_image(photos: Path, tmp_path: Path) -> None:
    results = run(BrightIsLanding(), photos, tmp_path / "out", overlay=True)
    assert [r.status for r in results] == ["predicted"] * 3
    values = [int(np.asarray(Image.open(tmp_path / "out" / f"p{i}.png"))[0, 0]) for i in range(3)]
    assert values == [2, 5, 2]
    assert (tmp_path / "out" / "p1_overlay.png").is_file()


def test_broken_file_does_not_stop_the_others(photos: Path, tmp_path: Path) -> None:
    (photos / "p1.png").write_bytes(b"junk")
    results = run(BrightIsLanding(), photos, tmp_path / "out")
    assert [r.status for r in results] == ["predicted", "failed", "predicted"]
    assert "Unknown image format" in str(results[1].error)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["p0.png", "p2.png", "predictions.jsonl"]


def test_skips_only_masks_of_the_same_model_and_image_bytes(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(BrightIsLanding(), photos, out)
    again = BrightIsLanding()
    assert [r.status for r in run(again, photos, out)] == ["skipped"] * 3
    assert again.calls == 0
    (photos / "p0.png").write_bytes(png(np.full((6, 8, 3), 250, np.uint8)))
    (out / "p1.png").write_bytes(b"changed by hand")
    assert [r.status for r in run(again, photos, out)] == ["predicted", "predicted", "skipped"]
    assert [r.status for r in run(BrightIsLanding("bbb"), photos, out)] == ["predicted"] * 3
    assert [r.status for r in run(BrightIsLanding("bbb"), photos, out, force=True)] == ["predicted"] * 3


def test_truncated_log_is_tolerated(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(BrightIsLanding(), photos, out)
    log = out / "predictions.jsonl"
    log.write_text(log.read_text()[:-40])
    assert [r.status for r in run(BrightIsLanding(), photos, out)] == ["skipped", "skipped", "predicted"]
    assert json.loads(log.read_text().splitlines()[0])["model_id"] == "aaa"


def test_find_inputs_expands_files_folders_and_globs_without_duplicates(photos: Path) -> None:
    found = find_inputs([str(photos / "p2.png"), str(photos), str(photos / "*.png")])
    assert [f.name for f in found] == ["p2.png", "p0.png", "p1.png"]


def test_find_inputs_lists_all_missing_and_colliding_inputs(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "p0.jpg").write_bytes(b"")
    with pytest.raises(DronesegError) as caught:
        find_inputs([str(photos), str(tmp_path / "p0.jpg"), str(tmp_path / "none*.png")])
    assert "would both be written to p0.png" in str(caught.value)
    assert "none*.png: no image file found" in str(caught.value)


def test_inputs_and_foreign_files_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    sources = find_inputs([str(photos)])
    with pytest.raises(OutputExistsError, match=r"p0.png is an input image(.|\n)*p2.png is an input"):
        require_output(sources, photos, overlay=False, force=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "p1.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"p1.png was not written by `droneseg predict`"):
        require_output(sources, out, overlay=False, force=False)
    require_output(sources, out, overlay=False, force=True)
    (out / "p1.png").unlink()
    (out / "p2_overlay.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"p2_overlay.png was not written"):
        require_output(sources, out, overlay=True, force=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="is a file"):
        require_output(sources, tmp_path / "file", overlay=False, force=False)


def test_mask_and_overlay_with_the_same_name_are_refused(photos: Path, tmp_path: Path) -> None:
    (photos / "p0.png").rename(photos / "p1_overlay.png")
    sources = find_inputs([str(photos)])
    require_output(sources, tmp_path / "out", overlay=False, force=False)
    with pytest.raises(OutputExistsError, match=r"p1_overlay.png would be both a mask and an overlay"):
        require_output(sources, tmp_path / "out", overlay=True, force=False)


def test_unwritable_mask_does_not_stop_the_others(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "p1.png").mkdir(parents=True)
    results = run(BrightIsLanding(), photos, tmp_path / "out")
    assert [result.status for result in results] == ["predicted", "failed", "predicted"]
    assert "p1.png cannot be written" in str(results[1].error)


def test_manually_edited_mask_is_kept(photos: Path, tmp_path: Path) -> None:
    sources, out = find_inputs([str(photos)]), tmp_path / "out"
    run(BrightIsLanding("aaa"), photos, out, overlay=True)
    run(BrightIsLanding("bbb"), photos, out, overlay=True)
    require_output(sources, out, overlay=True, force=False)
    (out / "p1.png").write_bytes(png(np.full((6, 8), 3, np.uint8)))
    with pytest.raises(OutputExistsError, match=r"p1.png was not written by `droneseg predict`, or was changed since"):
        require_output(sources, out, overlay=True, force=False)


def test_log_entry_is_written_before_the_mask(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "p1.png").mkdir(parents=True)
    run(BrightIsLanding(), photos, out)
    (out / "p1.png").rmdir()
    stems = [json.loads(line)["stem"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert stems == ["p0", "p1", "p2"]
    assert [result.status for result in run(BrightIsLanding(), photos, out)] == ["skipped", "predicted", "skipped"]


def test_error_names_subfolders_with_images(tmp_path: Path) -> None:
    (tmp_path / "flight" / "photos").mkdir(parents=True)
    (tmp_path / "flight" / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(DronesegError, match=r"no image file found; there are images in .*photos"):
        find_inputs([str(tmp_path / "flight")])
