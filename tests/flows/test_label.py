"""Labels have large weights where the views of a photograph agree, and weight 0 where they do not."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.camera import UNKNOWN_GROUND, given_ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ConfigurationError, OutputExistsError
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import encode_png, read_image
from droneseg.core.masks import read_mask
from droneseg.data.dataset import list_pairs
from droneseg.data.synthetic import generate_scene
from droneseg.flows.label import (
    INDEX_NAME,
    Label,
    LabelOptions,
    change_exposure,
    draw_label,
    label_image,
    label_photographs,
    pixel_weights,
)
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import Bundle
from support.bundles import TRAINED_AT, VIEWS, make_bundle

OPTIONS = LabelOptions(max_pixels=100_000, overlay=True)
GREEN, BLUE = (0, 250, 0), (0, 0, 250)
SOFT, WATER = 3, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return make_bundle(folder, patch=(32, 48), ground=TRAINED_AT, context=VIEWS)


def photographs(folder: Path, count: int = 3) -> list[ImageFiles]:
    folder.mkdir()
    for seed in range(count):
        (folder / f"{seed}.png").write_bytes(encode_png(generate_scene(seed, 96, 64)[0]))
    return [ImageFiles.single(file) for file in sorted(folder.iterdir())]


def test_weights_grow_from_the_limits_to_full_agreement() -> None:
    options = LabelOptions(max_pixels=1, min_agreement=0.5, min_confidence=0.6)
    mask = np.array([[SOFT, SOFT, SOFT, SOFT, 0]], np.uint8)
    agreement = np.array([[1, 0.75, 0.5, 1, 1]], np.float32)
    confidence = np.array([[1, 0.8, 1, 0.6, 1]], np.float32)
    assert pixel_weights(mask, agreement, confidence, options).tolist() == [[100, 25, 0, 0, 0]]


def test_views_agree_on_plain_areas_and_not_on_fine_patterns(bundle: Bundle) -> None:
    image = np.full((64, 96, 3), GREEN, np.uint8)
    # stripes of one pixel are green and blue at full size, and neither if the photograph is reduced
    image[:, 48::2] = BLUE
    label = label_image(BundleSegmenter(bundle), bundle.manifest, image, UNKNOWN_GROUND, OPTIONS)
    assert label.mask.shape == label.weights.shape == (64, 96)
    assert (label.mask[:, :44] == SOFT).all()
    assert label.weights[:, :40].mean() > label.weights[:, 52:].mean() + 30
    assert label.weights.max() <= 100


def test_labels_have_the_size_of_the_larger_view(bundle: Bundle) -> None:
    image = generate_scene(0, 240, 160)[0]
    segmenter = BundleSegmenter(bundle)
    for ground, size, gsd_m in (
        (UNKNOWN_GROUND, (64, 96), None),  # twice a tile
        (given_ground(0.01), (64, 96), 0.025),  # resampled to the model's 0.025 m
        (given_ground(0.05), (160, 240), 0.05),  # never enlarged
    ):
        label = label_image(segmenter, bundle.manifest, image, ground, OPTIONS)
        assert label.mask.shape == label.image.shape[:2] == size
        assert label.gsd_m == gsd_m


def test_exposure_changes_the_median_without_clipping() -> None:
    image = generate_scene(1, 96, 64)[0]
    medians = [np.median(change_exposure(image, factor)) for factor in (0.6, 1, 1.6)]
    assert medians[0] == pytest.approx(0.6 * medians[1], rel=0.1)
    assert medians[2] == pytest.approx(1.6 * medians[1], rel=0.15)
    white = np.full((4, 4, 3), 200, np.uint8)
    assert change_exposure(white, 1.6).max() < 255


def test_overlay_is_grey_where_the_weight_is_0() -> None:
    image = np.full((1, 3, 3), (200, 100, 0), np.uint8)
    label = Label(image, np.array([[SOFT, SOFT, 5]], np.uint8), np.array([[0, 100, 100]], np.uint8), None)
    drawn = draw_label(label, DEFAULT_CLASSES)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[0, 1].tolist() == [int(0.4 * 200 + 0.6 * 124), int(0.4 * 100 + 0.6 * 252), 0]
    assert np.ptp(drawn[0, 2]) > 100  # landing zones are not grey


def test_labels_are_a_dataset_with_weights(bundle: Bundle, tmp_path: Path) -> None:
    sources = photographs(tmp_path / "in")
    segmenter = BundleSegmenter(bundle)
    results = list(label_photographs(segmenter, bundle.manifest, sources, tmp_path / "out", OPTIONS))
    listing = list_pairs(tmp_path / "out")
    assert (len(listing.pairs), listing.problems) == (3, ())
    for pair, result in zip(listing.pairs, results, strict=True):
        mask = read_mask(pair.mask, "colours", DEFAULT_CLASSES)
        weights = np.asarray(pillow.open(tmp_path / "out/weights" / f"{pair.stem}.png"))
        assert mask.shape == weights.shape == read_image(pair.image).shape[:2]
        assert weights.dtype == np.uint8
        assert weights.max() <= 100
        assert result.record is not None
        assert result.record.mean_weight == pytest.approx(weights.mean() / 100, abs=1e-3)
        assert (tmp_path / "out/overlays" / f"{pair.stem}.png").is_file()
    assert set(json.loads((tmp_path / "out" / INDEX_NAME).read_text())["photographs"]) == {"0", "1", "2"}


def test_up_to_date_labels_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    sources, out = photographs(tmp_path / "in"), tmp_path / "out"
    segmenter = BundleSegmenter(bundle)

    def label(options: LabelOptions = OPTIONS) -> list[str]:
        results = label_photographs(segmenter, bundle.manifest, sources, out, options)
        return [result.source.stem for result in results if not result.skipped]

    assert label() == ["0", "1", "2"]
    (out / "weights/1.png").unlink()
    assert label() == ["1"]
    assert label(LabelOptions(max_pixels=100_000, min_agreement=0.9)) == ["0", "1", "2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/note.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=INDEX_NAME):
        next(label_photographs(segmenter, bundle.manifest, sources, tmp_path / "mine", OPTIONS))


@pytest.mark.parametrize("changes", [{"exposures": (0.6,)}, {"exposures": (1, 9)}, {"min_agreement": 1.0}])
def test_invalid_options_are_an_error(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        LabelOptions(max_pixels=1, **changes)


def test_command_labels_the_other_files_if_one_is_damaged(bundle: Bundle, tmp_path: Path) -> None:
    photographs(tmp_path / "in", 2)
    (tmp_path / "in/broken.png").write_bytes(b"broken")
    words = ["label", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--model", str(bundle.folder)]
    done = CliRunner().invoke(app, [*words, "--exposures", "1", "--no-mirrored", "--overlay"])
    assert done.exit_code == 1
    assert "2 labelled, 1 failed" in done.output
    assert len(list((tmp_path / "out/masks").iterdir())) == 2
    assert CliRunner().invoke(app, [*words, "--exposures", "0.6"]).exit_code == 2
