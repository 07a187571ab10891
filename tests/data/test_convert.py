"""Conversion keeps the class of every pixel; on any problem it lists all problems and writes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.classes import CLASSES, DATASET_NAME, Normalisation
from droneseg.core.errors import DatasetError, OutputExistsError, SplitError
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.data.convert import Conversion, convert_dataset
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from support.images import png


def convert(source: Path, raw: Path, **options: object) -> Conversion:
    return convert_dataset(source, raw, max_pixels=DEFAULT_MAX_PIXELS, **options)  # type: ignore[arg-type]  # test


def images(source: Path) -> Path:
    return source / KAGGLE_FOLDER / IMAGES_FOLDER


def masks(source: Path) -> Path:
    return source / KAGGLE_FOLDER / MASKS_FOLDER


def refused(source: Path, tmp_path: Path, **options: object) -> str:
    """Return the message of a failing conversion, after checking that nothing was written."""
    raw = tmp_path / "raw"
    with pytest.raises(DatasetError) as caught:
        convert(source, raw, **options)
    assert not raw.exists()
    return str(caught.value)


def independent_ids(mask_file: Path) -> np.ndarray:
    """Return the class ids by comparing every pixel with every class colour."""
    rgb = np.asarray(Image.open(mask_file).convert("RGB")).astype(int)
    ids = np.full(rgb.shape[:2], 255)
    for entry in CLASSES:
        ids[(rgb == np.array(entry.colour)).all(axis=2)] = entry.id
    return ids


def test_labels_are_the_class_ids_of_the_mask_colours(dataset: Path, tmp_path: Path) -> None:
    done = convert(dataset, tmp_path, test_share=0.25)
    assert (done.train, done.test, done.copied) == (3, 1, 4)
    labels = sorted((tmp_path / DATASET_NAME).glob("labelsT?/*.png"))
    assert len(labels) == 4
    for label in labels:
        opened = Image.open(label)
        assert opened.mode == "L"
        stem = label.stem.removeprefix("drone_")
        assert np.array_equal(np.asarray(opened), independent_ids(masks(dataset) / f"{stem}.png"))


def test_rgb_png_images_are_copied_unchanged(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, tmp_path, test_share=0)
    for index in range(4):
        copied = tmp_path / DATASET_NAME / "imagesTr" / f"drone_{index:03d}_0000.png"
        assert copied.read_bytes() == (images(dataset) / f"{index:03d}.png").read_bytes()


def test_other_image_formats_are_converted_to_rgb_png(dataset: Path, tmp_path: Path) -> None:
    (images(dataset) / "000.png").unlink()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(images(dataset) / "000.jpg", quality=95)
    (images(dataset) / "001.png").write_bytes(png(np.full((30, 40), 7, np.uint8)))
    done = convert(dataset, tmp_path, test_share=0)
    assert done.copied == 2
    for index, colour in ((0, (200, 100, 50)), (1, (7, 7, 7))):
        opened = Image.open(tmp_path / DATASET_NAME / "imagesTr" / f"drone_{index:03d}_0000.png")
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        assert np.abs(np.asarray(opened).astype(int) - colour).max() <= 2


@pytest.mark.parametrize(
    ("normalisation", "channels"), [("rgb_to_0_1", ["rgb_to_0_1"] * 3), ("zscore", ["R", "G", "B"])]
)
def test_dataset_json_describes_the_dataset_for_nnunet(
    dataset: Path, tmp_path: Path, normalisation: str, channels: list[str]
) -> None:
    convert(dataset, tmp_path, test_share=0, normalisation=Normalisation(normalisation))
    description = json.loads((tmp_path / DATASET_NAME / "dataset.json").read_text())
    assert list(description["channel_names"].values()) == channels
    assert description["labels"]["landing-zones"] == 5
    assert description["numTraining"] == 4
    assert description["file_ending"] == ".png"
    assert description["overwrite_image_reader_writer"] == "NaturalImage2DIO"
    assert description["droneseg"]["normalisation"] == normalisation
    assert not (tmp_path / DATASET_NAME / "splits_final.json").exists()


def test_split_file_selects_training_and_test_cases(dataset: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["000"], "val": ["001"], "test": ["002"], "dropped": ["003"]}))
    done = convert(dataset, tmp_path, split_file=split)
    assert (done.train, done.test, done.dropped) == (2, 1, 1)
    folder = tmp_path / DATASET_NAME
    assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["drone_000"], "val": ["drone_001"]}]
    assert sorted(f.name for f in folder.glob("images*/*")) == [f"drone_00{i}_0000.png" for i in range(3)]
    assert [f.name for f in (folder / "labelsTs").iterdir()] == ["drone_002.png"]


def test_split_file_that_does_not_match_the_data_is_rejected(dataset: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["000", "nine"], "val": ["000"]}))
    with pytest.raises(SplitError) as caught:
        convert(dataset, tmp_path / "raw", split_file=split)
    for part in ("1 listed more than once: 000", "1 not in the data: nine", "3 in the data but in no list"):
        assert part in str(caught.value)
    assert not (tmp_path / "raw").exists()


def test_images_and_masks_without_counterpart_are_listed(dataset: Path, tmp_path: Path) -> None:
    (images(dataset) / "000.png").unlink()
    (masks(dataset) / "002.png").unlink()
    message = refused(dataset, tmp_path)
    assert "label_images_semantic/000.png: has no image" in message
    assert "original_images/002.png: has no mask" in message


def test_images_that_share_a_stem_are_listed(dataset: Path, tmp_path: Path) -> None:
    shutil.copy(images(dataset) / "001.png", images(dataset) / "001.bmp")
    assert "2 images with the stem '001': 001.bmp, 001.png" in refused(dataset, tmp_path)


def test_size_mismatch_is_listed(dataset: Path, tmp_path: Path) -> None:
    (images(dataset) / "001.png").write_bytes(png(np.zeros((8, 9, 3), np.uint8)))
    assert "original_images/001.png: image is 9x8, but its mask is 40x30" in refused(dataset, tmp_path)


def test_unknown_colours_are_listed_with_position_and_count(dataset: Path, tmp_path: Path) -> None:
    rgb = np.array(Image.open(masks(dataset) / "003.png"))
    rgb[4, 6] = (1, 1, 1)
    (masks(dataset) / "003.png").write_bytes(png(rgb))
    message = refused(dataset, tmp_path)
    assert (
        "label_images_semantic/003.png: Mask has 1 unknown colours: (1, 1, 1) on 1 pixels, first at x=6 y=4" in message
    )
    done = convert(dataset, tmp_path / "raw", unknown="background", test_share=0)
    assert done.replaced_pixels == 1
    assert np.asarray(Image.open(tmp_path / "raw" / DATASET_NAME / "labelsTr" / "drone_003.png"))[4, 6] == 0


def test_truncated_files_are_listed(dataset: Path, tmp_path: Path) -> None:
    for file in (images(dataset) / "000.png", masks(dataset) / "001.png"):
        file.write_bytes(file.read_bytes()[:200])
    message = refused(dataset, tmp_path)
    assert "original_images/000.png: Image data is truncated" in message
    assert "label_images_semantic/001.png: Image data is truncated" in message


def test_all_problems_are_listed_at_once(dataset: Path, tmp_path: Path) -> None:
    (masks(dataset) / "000.png").unlink()
    (images(dataset) / "001.png").write_bytes(b"")
    (masks(dataset) / "002.png").write_bytes(png(np.zeros((30, 40, 3), np.uint8) + 9))
    message = refused(dataset, tmp_path)
    assert "has 3 problem(s); nothing was written" in message
    assert "original_images/001.png: The file is empty" in message


def test_empty_folders_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "nothing is empty" in refused(tmp_path / "nothing", tmp_path)
    root = tmp_path / "empty"
    (root / IMAGES_FOLDER).mkdir(parents=True)
    (root / MASKS_FOLDER).mkdir()
    assert "both folders are empty" in refused(root, tmp_path)
    assert "not a folder" in refused(tmp_path / "absent", tmp_path)


def test_dataset_above_or_below_the_given_folder_is_found_with_a_note(dataset: Path, tmp_path: Path) -> None:
    high = convert(dataset.parent, tmp_path / "a", test_share=0)
    assert "does not contain the data itself; using" in high.notes[0]
    deep = convert(images(dataset), tmp_path / "b", test_share=0)
    assert "one level too deep" in deep.notes[0]
    assert high.train == deep.train == 4
    assert convert(dataset / "classes_dataset", tmp_path / "c", test_share=0).train == 4


def test_missing_mask_folder_is_reported(dataset: Path, tmp_path: Path) -> None:
    shutil.rmtree(masks(dataset))
    assert "contains original_images but no label_images_semantic" in refused(dataset, tmp_path)


def test_several_datasets_in_a_folder_are_rejected(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "both" / "one")
    shutil.copytree(dataset, tmp_path / "both" / "two")
    assert "contains several datasets" in refused(tmp_path / "both", tmp_path)


def test_existing_dataset_is_replaced_only_with_force(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, tmp_path, test_share=0)
    before = {f: f.read_bytes() for f in (tmp_path / DATASET_NAME).rglob("*.png")}
    with pytest.raises(OutputExistsError, match="--force"):
        convert(dataset, tmp_path, test_share=0.5)
    assert {f: f.read_bytes() for f in (tmp_path / DATASET_NAME).rglob("*.png")} == before
    assert convert(dataset, tmp_path, test_share=0.5, force=True).test == 2


def test_failed_conversion_with_force_keeps_the_existing_dataset(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, tmp_path, test_share=0)
    (images(dataset) / "000.png").write_bytes(b"junk")
    with pytest.raises(DatasetError, match="Unknown image format"):
        convert(dataset, tmp_path, test_share=0, force=True)
    assert len(list((tmp_path / DATASET_NAME / "imagesTr").iterdir())) == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_other_files_are_noted_and_hidden_files_ignored(dataset: Path, tmp_path: Path) -> None:
    (images(dataset) / "readme.txt").write_text("hello")
    (images(dataset) / "._000.png").write_text("metadata of macOS")
    assert convert(dataset, tmp_path, test_share=0).notes == ("original_images/readme.txt: not an image file, ignored",)


def test_labels_of_the_real_dataset_are_the_class_ids_of_the_mask_colours(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "tugraz_dev40"
    done = convert(source, tmp_path, test_share=0)
    assert (done.train, done.copied) == (40, 40)
    for label in sorted((tmp_path / DATASET_NAME / "labelsTr").iterdir()):
        truth = independent_ids(masks(source) / f"{label.stem.removeprefix('drone_')}.png")
        assert np.array_equal(np.asarray(Image.open(label)), truth)


def test_real_split_file_is_followed(real_data: Path, tmp_path: Path) -> None:
    stems = {f.stem for f in masks(real_data / "tugraz_tiny16_240x184").iterdir()}
    full = json.loads((real_data / "tugraz_split.json").read_text())
    mine = {name: [s for s in part if s in stems] for name, part in full.items()}
    mine["dropped"] = sorted(stems - {s for part in mine.values() for s in part}) + mine.get("dropped", [])
    (tmp_path / "split.json").write_text(json.dumps(mine))
    done = convert(real_data / "tugraz_tiny16_240x184", tmp_path / "raw", split_file=tmp_path / "split.json")
    assert done.train + done.dropped == 16


def test_broken_link_is_reported(dataset: Path, tmp_path: Path) -> None:
    (images(dataset) / "000.png").unlink()
    (images(dataset) / "000.png").symlink_to("../annex/000.png")
    assert "original_images/000.png: is a link to ../annex/000.png, which does not exist" in refused(dataset, tmp_path)


def test_error_names_the_dataset_folder_and_the_option_for_unknown_colours(dataset: Path, tmp_path: Path) -> None:
    (masks(dataset) / "000.png").write_bytes(png(np.full((30, 40, 3), 7, np.uint8)))
    message = refused(images(dataset), tmp_path)
    assert "note: " in message
    assert "one level too deep" in message
    assert "--unknown background" in message


def test_folder_with_other_files_is_never_replaced(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / DATASET_NAME).mkdir()
    (tmp_path / DATASET_NAME / "thesis.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="was not created by this command"):
        convert(dataset, tmp_path, force=True)
    assert (tmp_path / DATASET_NAME / "thesis.txt").read_text() == "precious"


def test_second_known_layout_is_found(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    images(dataset).rename(tmp_path / "flat" / "images")
    masks(dataset).rename(tmp_path / "flat" / "masks")
    assert convert(tmp_path / "flat", tmp_path, test_share=0).train == 4
    assert convert(tmp_path / "flat" / "masks", tmp_path, test_share=0, force=True).train == 4
    (tmp_path / "flat" / "masks" / "000.png").unlink()
    assert "images/000.png: has no mask in masks" in refused(tmp_path / "flat", tmp_path)
