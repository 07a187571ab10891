"""nnU-Net's raw datasets are read as they are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.data.dataset import RAW_TEST, find_dataset, inspect_dataset, list_pairs, read_pair_image, read_true_mask
from droneseg.data.synthetic import generate_scene
from support.raw_datasets import LABELS, SIZE, make_raw_dataset, write_case

LIMIT = 10_000
FORMS: dict[str, dict[str, object]] = {
    "RGB files": {},
    "TIFF with spacings": {"suffix": ".tif"},
    "files of channels": {"channels": "RGB"},
    "channels in another order": {"channels": "BGR", "suffix": ".tif"},
    "ignore label": {"ignore": True},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_raw_dataset_of_any_form_is_valid_with_its_test_part(tmp_path: Path, form: str) -> None:
    root = make_raw_dataset(tmp_path / "Dataset205_Own", **FORMS[form])  # type: ignore[arg-type]  # a table of options
    inspection = inspect_dataset(root, max_pixels=LIMIT)
    assert (inspection.problems, inspection.notes) == ((), ())
    assert [facts.stem for facts in inspection.facts] == ["tr0", "tr1", "ts0", "ts1"]
    assert inspection.classes.names == tuple(LABELS)
    for index, pair in enumerate(list_pairs(root).pairs):
        image, mask = generate_scene(10 * index + 4, *SIZE)
        assert (read_pair_image(pair) == image).all()
        if form == "ignore label":
            mask[:8] = 6
        assert (read_true_mask(pair) == mask).all()


def test_test_part_is_found_by_its_folders(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path / "nnUNet_raw/Dataset205_Own")
    for folder in ("imagesTs", "labelsTs"):
        location = find_dataset(root / folder)
        assert (location.layout, location.notes) == (RAW_TEST, ())
        assert [pair.stem for pair in list_pairs(root / folder).pairs] == ["ts0", "ts1"]
    assert find_dataset(tmp_path / "nnUNet_raw").root == root


def test_all_problems_of_a_raw_dataset_are_listed(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path, train=3)
    image = generate_scene(0, *SIZE)[0]
    (root / "labelsTr/tr0.png").unlink()
    (root / "imagesTr/tr1_0000.png").unlink()
    Image.fromarray(image).save(root / "imagesTr/photo.jpg")
    write_case(root / "imagesTr", "tr2", image, "RGB", ".tif")
    Image.fromarray(image[..., 0]).save(root / "imagesTr/new_0000.png")
    Image.fromarray(np.zeros(SIZE[::-1], np.uint8)).save(root / "labelsTr/new.png")
    (root / "labelsTs/ts0.png").unlink()
    inspection = inspect_dataset(root, max_pixels=LIMIT)
    for words in (
        "imagesTr/photo.jpg: nnU-Net's images end in one of _0000.png",
        "imagesTr/new: has new_0000.png",
        "imagesTr: 2 images with the stem 'tr2'",
        "imagesTr/tr0: has no label in labelsTr",
        "labelsTr/tr1.png: has no image in imagesTr",
        "imagesTs/ts0: has no label in labelsTs",
    ):
        assert sum(words in problem for problem in inspection.problems) == 1, words
    assert len(inspection.problems) == 6


def test_other_folders_may_have_the_names_of_nnunet(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image, mask = generate_scene(3, *SIZE)
    write_case(tmp_path / "images", "single", image)
    write_case(tmp_path / "images", "apart", image, "RGB")
    write_case(tmp_path / "images", "own", image)
    colours = np.zeros((*mask.shape, 3), np.uint8)
    for stem in ("single", "apart", "own_0000", "lost"):
        Image.fromarray(colours).save(tmp_path / f"masks/{stem}.png")
    Image.fromarray(image[..., 0]).save(tmp_path / "images/lost_0000.png")
    listing = list_pairs(tmp_path)
    assert [pair.stem for pair in listing.pairs] == ["apart", "own_0000", "single"]
    for pair in listing.pairs:
        assert (read_pair_image(pair) == image).all()
    assert any(problem.startswith("images/lost: has lost_0000.png: grey files") for problem in listing.problems)
