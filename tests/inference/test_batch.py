"""Batch prediction: finished files are skipped, and broken files do not affect the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.camera import UNKNOWN_GROUND, Ground, PredictionWarning, WarningCode
from droneseg.core.errors import ConfigurationError, DronesegError, OutputExistsError
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.masks import MaskFormat
from droneseg.core.prediction import Prediction
from droneseg.inference.batch import DEFAULT_VIEW, FileResult, ViewOptions, find_inputs, predict_files, require_output
from support.images import png
from support.raw_datasets import write_case
from support.segmenters import BrightIsLanding


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, grey in enumerate((10, 200, 90)):
        (folder / f"p{index}.png").write_bytes(png(np.full((6, 8, 3), grey, np.uint8)))
    return folder


class Warns(BrightIsLanding):
    """Segmenter that warns about images of unknown ground resolution."""

    def segment(
        self, image: np.ndarray, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False, landing: bool = False
    ) -> Prediction:
        """Segment by brightness."""
        if ground.gsd_m is None:
            ground = ground.model_copy(update={"warnings": (WarningCode.UNKNOWN_SCALE,)})
        return super().segment(image, ground, plain=plain)


def run(
    segmenter: BrightIsLanding, photos: Path, out: Path, view: ViewOptions = DEFAULT_VIEW, **options: bool
) -> list[FileResult]:
    sources = find_inputs([str(photos)])
    return list(predict_files(segmenter, sources, out, view=view, max_pixels=DEFAULT_MAX_PIXELS, **options))


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
    assert [images.file.name for images in found] == ["p2.png", "p0.png", "p1.png"]


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


def test_another_view_of_the_images_is_predicted_again(photos: Path, tmp_path: Path) -> None:
    out, segmenter = tmp_path / "out", BrightIsLanding()
    views = [DEFAULT_VIEW, ViewOptions(gsd_m=0.02), ViewOptions(gsd_m=0.03), ViewOptions(height_m=40)]
    for view in [*views, ViewOptions(plain=True)]:
        assert [r.status for r in run(segmenter, photos, out, view)] == ["predicted"] * 3
        assert [r.status for r in run(segmenter, photos, out, view)] == ["skipped"] * 3
    assert segmenter.plain == [False] * 12 + [True] * 3


def test_a_log_of_an_earlier_version_counts_as_made_without_options(photos: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "out/predictions.jsonl"
    run(BrightIsLanding(), photos, out)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    for entry in entries:
        assert entry.pop("view") == {"gsd_m": None, "height_m": None, "plain": False}
        assert entry["prediction"].pop("warnings") == []
        assert entry["prediction"].pop("ground")["source"] == "unknown"
    log.write_text("\n".join(map(json.dumps, entries)) + "\n")
    again = run(BrightIsLanding(), photos, out)
    assert [(r.status, r.ground, r.confidence) for r in again] == [("skipped", None, 0.9)] * 3
    assert [r.status for r in run(BrightIsLanding(), photos, out, ViewOptions(plain=True))] == ["predicted"] * 3


def test_ground_and_warnings_are_logged_and_kept_for_skipped_images(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, again = run(Warns(), photos, out), run(Warns(), photos, out)
    assert [r.status for r in again] == ["skipped"] * 3
    for result in (*first, *again):
        assert result.ground == Ground(warnings=(WarningCode.UNKNOWN_SCALE,))
        assert [warning.code for warning in result.warnings] == ["unknown_scale"]
        assert "ground resolution of the image or of the model is unknown" in result.warnings[0].message
    logged = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])["prediction"]
    assert [PredictionWarning(**warning) for warning in logged["warnings"]] == list(first[0].warnings)
    assert logged["ground"]["warnings"] == ["unknown_scale"]


def test_the_given_ground_resolution_reaches_the_model(photos: Path, tmp_path: Path) -> None:
    results = run(Warns(), photos, tmp_path / "out", ViewOptions(gsd_m=0.02))
    grounds = [(r.ground.gsd_m, r.ground.source) for r in results if r.ground]
    assert grounds == [(0.02, "argument")] * 3
    assert not any(r.warnings for r in results)


@pytest.mark.parametrize("wrong", [{"gsd_m": 0.0}, {"height_m": -1.0}, {"gsd_m": 0.02, "height_m": 40.0}])
def test_view_options_refuse_wrong_values(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        ViewOptions(**wrong)


def test_files_of_channels_are_one_image_with_one_mask(tmp_path: Path) -> None:
    folder, out = tmp_path / "imagesTs", tmp_path / "out"
    folder.mkdir()
    write_case(folder, "apart", np.full((6, 8, 3), 200, np.uint8), "RGB")
    write_case(folder, "single", np.full((6, 8, 3), 10, np.uint8))
    results = run(BrightIsLanding(), folder, out, overlay=True)
    assert [(Path(r.source).name, Path(str(r.mask)).name) for r in results] == [
        ("apart_0000.png", "apart.png"),
        ("single_0000.png", "single.png"),
    ]
    names = {"apart.png", "apart_overlay.png", "single.png", "single_overlay.png", "predictions.jsonl"}
    assert {file.name for file in out.iterdir()} == names
    assert np.asarray(Image.open(out / "apart.png"))[0, 0] == 5
    assert [r.status for r in run(BrightIsLanding(), folder, out, overlay=True)] == ["skipped"] * 2
    Image.fromarray(np.full((6, 8), 3, np.uint8)).save(folder / "apart_0002.png")
    assert [r.status for r in run(BrightIsLanding(), folder, out)] == ["predicted", "skipped"]


def test_find_inputs_lists_problems_with_channels_among_the_others(tmp_path: Path) -> None:
    write_case(tmp_path, "x", np.zeros((6, 8, 3), np.uint8), "RGB")
    (tmp_path / "x_0002.png").unlink()
    with pytest.raises(DronesegError, match=r"none.png: no image(.|\n)*x: has x_0000.png, x_0001.png: grey files"):
        find_inputs([str(tmp_path), str(tmp_path / "none.png")])


def test_channels_are_not_overwritten(tmp_path: Path) -> None:
    write_case(tmp_path, "x", np.zeros((6, 8, 3), np.uint8), "RGB")
    (tmp_path / "x_0001.png").rename(tmp_path / "x.png")
    source = ImageFiles("x", tmp_path / "x_0000.png", tuple(tmp_path / f"x{n}.png" for n in ("_0000", "", "_0002")))
    with pytest.raises(OutputExistsError, match=r"x.png is an input image"):
        require_output([source], tmp_path, overlay=False, force=True)


def test_masks_of_ids_are_grey_and_colours_are_predicted_again(photos: Path, tmp_path: Path) -> None:
    sources, out = find_inputs([str(photos)]), tmp_path / "out"

    def predict(mask_format: MaskFormat) -> list[str]:
        results = predict_files(BrightIsLanding(), sources, out, mask_format=mask_format, max_pixels=DEFAULT_MAX_PIXELS)
        return [result.status for result in results]

    assert predict("colours") == ["predicted"] * 3
    assert predict("ids") == ["predicted"] * 3
    require_output(sources, out, overlay=False, force=False)
    opened = [Image.open(out / f"p{index}.png") for index in range(3)]
    assert [(image.mode, image.getpixel((0, 0))) for image in opened] == [("L", 2), ("L", 5), ("L", 2)]
    assert predict("ids") == ["skipped"] * 3


def test_ids_of_images_of_nnunet_have_the_file_ending_of_the_dataset(tmp_path: Path) -> None:
    folder, out = tmp_path / "imagesTs", tmp_path / "out"
    folder.mkdir()
    bright = np.full((6, 8, 3), 200, np.uint8)
    for case, channels, suffix in (("a", "", ".tif"), ("b", "RGB", ".tiff"), ("c", "", ".bmp"), ("d", "", ".png")):
        write_case(folder, case, bright, channels, suffix)
    Image.fromarray(bright).save(folder / "photograph.tif")  # no case of nnU-Net
    sources = find_inputs([str(folder)])

    def predict() -> list[str]:
        require_output(sources, out, mask_format="ids", overlay=False, force=False)
        results = predict_files(BrightIsLanding(), sources, out, mask_format="ids", max_pixels=DEFAULT_MAX_PIXELS)
        return [result.status for result in results]

    assert predict() == ["predicted"] * 5
    masks = {file.name for file in out.iterdir()} - {"predictions.jsonl"}
    assert masks == {"a.tif", "b.tiff", "c.bmp", "d.png", "photograph.png"}
    for name in masks:
        with Image.open(out / name) as mask:
            assert (mask.mode, np.unique(np.asarray(mask)).tolist()) == ("L", [5])
    assert predict() == ["skipped"] * 5
    (out / "a.tif").write_bytes(b"another file")
    with pytest.raises(OutputExistsError, match=r"a\.tif was not written by `droneseg predict`"):
        predict()
