"""Conversion keeps the class of every pixel; on any problem it lists all problems and writes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from droneseg.core.class_files import classes_of
from droneseg.core.classes import DATASET_NAME, DEFAULT_CLASSES, Normalisation
from droneseg.core.errors import ConfigurationError, DatasetError, OutputExistsError, SplitError
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.masks import encode_mask
from droneseg.data.convert import Conversion, ConversionOptions, convert_dataset
from droneseg.data.dataset import (
    IMAGES_FOLDER,
    KAGGLE_FOLDER,
    MASKS_FOLDER,
    DatasetInfo,
    list_pairs,
    read_pair_image,
    write_info,
)
from support.images import png
from support.raw_datasets import make_raw_dataset


def convert(source: Path, raw: Path, **options: object) -> Conversion:
    force = bool(options.pop("force", False))
    chosen = ConversionOptions(**options)  # type: ignore[arg-type]  # test
    return convert_dataset(source, raw, chosen, force=force, max_pixels=DEFAULT_MAX_PIXELS)


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
    for entry in DEFAULT_CLASSES:
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
    assert f"{IMAGES_FOLDER} and {MASKS_FOLDER}: both folders are empty" in refused(root, tmp_path)
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


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Six pairs of 8x6 pixels in `images` and `masks`: background, then one column of each class, then landing zone."""
    for name in ("images", "masks"):
        (tmp_path / "plain" / name).mkdir(parents=True)
    for index in range(6):
        add_pair(tmp_path / "plain", f"{index}", value=40 * index)
    return tmp_path / "plain"


IDS = np.tile(np.array([0, 1, 2, 3, 4, 5, 5, 5], np.uint8), (6, 1))


def add_pair(folder: Path, stem: str, *, value: int = 0) -> None:
    (folder / "images" / f"{stem}.png").write_bytes(png(np.full((6, 8, 3), value, np.uint8)))
    (folder / "masks" / f"{stem}.png").write_bytes(encode_mask(IDS, DEFAULT_CLASSES))


def add_grey(folder: Path, kind: str, stem: str, values: np.ndarray) -> None:
    (folder / kind).mkdir(exist_ok=True)
    (folder / kind / f"{stem}.png").write_bytes(png(values.astype(np.uint8)))


def split_file(tmp_path: Path, content: dict[str, object]) -> Path:
    (tmp_path / "split.json").write_text(json.dumps(content))
    return tmp_path / "split.json"


def description(raw: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((raw / DATASET_NAME / "dataset.json").read_text())
    return content


def block(raw: Path) -> dict[str, object]:
    content = description(raw)["droneseg"]
    assert isinstance(content, dict)
    return content


def folds(raw: Path) -> list[dict[str, list[str]]]:
    content: list[dict[str, list[str]]] = json.loads((raw / DATASET_NAME / "splits_final.json").read_text())
    return content


def target(raw: Path, case: str) -> np.ndarray:
    opened = Image.open(raw / DATASET_NAME / "targetsTr" / f"{case}.png")
    assert opened.mode == "RGB"
    return np.asarray(opened)


def label(raw: Path, case: str) -> np.ndarray:
    return np.asarray(Image.open(raw / DATASET_NAME / "labelsTr" / f"{case}.png"))


FOLDS = [{"train": ["0"], "val": ["1"], "dropped": ["2"]}, {"train": ["1", "2"], "val": ["0"]}]


def test_folds_follow_the_split_of_the_file(plain: Path, tmp_path: Path) -> None:
    parts = {"train": ["0", "1", "2"], "val": ["3"], "test": ["4"], "dropped": ["5"], "folds": FOLDS}
    done = convert(plain, tmp_path, split_file=split_file(tmp_path, parts))
    assert done.folds == 3
    assert folds(tmp_path) == [
        {"train": ["drone_0", "drone_1", "drone_2"], "val": ["drone_3"]},
        {"train": ["drone_0"], "val": ["drone_1"]},
        {"train": ["drone_1", "drone_2"], "val": ["drone_0"]},
    ]


def test_folds_of_a_split_without_val_begin_at_0(plain: Path, tmp_path: Path) -> None:
    parts = {"train": ["0", "1", "2"], "dropped": ["3", "4", "5"], "folds": FOLDS}
    convert(plain, tmp_path, split_file=split_file(tmp_path, parts))
    assert [fold["val"] for fold in folds(tmp_path)] == [["drone_1"], ["drone_0"]]


def test_generated_images_are_trained_on_only_where_their_original_is(plain: Path, tmp_path: Path) -> None:
    origins = {f"{index}__water1": f"{index}" for index in range(6)}
    for stem in origins:
        add_pair(plain, stem)
    (plain / "generated.json").write_text(json.dumps(origins))
    parts = {"train": ["0", "1", "2"], "val": ["3"], "test": ["4"], "dropped": ["5"], "folds": FOLDS}
    done = convert(plain, tmp_path, split_file=split_file(tmp_path, parts))
    assert (done.train, done.test, done.dropped, done.generated) == (7, 1, 4, 3)
    assert block(tmp_path)["generated"] == {f"drone_{n}__water1": f"drone_{n}" for n in range(3)}
    assert [sorted(fold["train"]) for fold in folds(tmp_path)] == [
        ["drone_0", "drone_0__water1", "drone_1", "drone_1__water1", "drone_2", "drone_2__water1"],
        ["drone_0", "drone_0__water1"],
        ["drone_1", "drone_1__water1", "drone_2", "drone_2__water1"],
    ]
    assert [fold["val"] for fold in folds(tmp_path)] == [["drone_3"], ["drone_1"], ["drone_0"]]


def test_generated_images_are_never_in_a_random_test_part_or_fold(plain: Path, tmp_path: Path) -> None:
    for index in range(6):
        add_pair(plain, f"{index}__water1")
    (plain / "generated.json").write_text(json.dumps({f"{n}__water1": f"{n}" for n in range(6)}))
    done = convert(plain, tmp_path, test_share=0.34)
    assert (done.train, done.test, done.dropped) == (8, 2, 2)
    assert sorted(case for fold in folds(tmp_path) for case in fold["val"]) == sorted(
        case for case in folds(tmp_path)[0]["train"] + folds(tmp_path)[0]["val"] if "__" not in case
    )
    for fold in folds(tmp_path):
        assert {case.partition("__")[0] for case in fold["train"] if "__" in case} <= set(fold["train"])


def test_split_with_generated_images_in_val_is_rejected(plain: Path, tmp_path: Path) -> None:
    add_pair(plain, "0__water1")
    (plain / "generated.json").write_text(json.dumps({"0__water1": "0"}))
    listed = split_file(tmp_path, {"train": ["0", "1", "2", "3", "4"], "val": ["5", "0__water1"]})
    with pytest.raises(SplitError, match="1 generated images in val or test, such as 0__water1"):
        convert(plain, tmp_path / "raw", split_file=listed)
    # an extended split may list them for training, or leave them out
    listed = split_file(tmp_path, {"train": ["0", "1", "2", "3", "4", "0__water1"], "val": ["5"]})
    assert convert(plain, tmp_path / "raw", split_file=listed).generated == 1
    listed = split_file(tmp_path, {"train": ["0", "1", "2", "3", "4"], "val": ["5"], "dropped": ["0__water1"]})
    assert convert(plain, tmp_path / "raw", split_file=listed, force=True).generated == 0


def test_generated_images_without_original_are_listed(plain: Path, tmp_path: Path) -> None:
    add_pair(plain, "9__water1")
    (plain / "generated.json").write_text(json.dumps({"9__water1": "9"}))
    assert "9__water1: was generated from 9, which is in no dataset" in refused(plain, tmp_path)
    (plain / "generated.json").write_text("[]")
    assert "generated.json: is not a JSON object" in refused(plain, tmp_path)


def test_given_ground_resolution_is_kept_for_every_case(plain: Path, tmp_path: Path) -> None:
    done = convert(plain, tmp_path, gsd_m=0.025, test_share=0.17)
    assert (done.known_gsd, done.test) == (6, 1)
    assert block(tmp_path)["gsd_m"] == {f"drone_{index}": 0.025 for index in range(6)}
    with pytest.raises(ConfigurationError, match="metres per pixel must be above 0"):
        convert(plain, tmp_path, gsd_m=-1.0, force=True)


def test_ground_resolution_is_read_from_the_metadata(plain: Path, tmp_path: Path) -> None:
    (plain / "images" / "2.png").unlink()
    tags = {33550: (0.03, 0.03, 0.0), 34735: (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)}
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, values in tags.items():
        info.tagtype[tag] = 12 if tag == 33550 else 3
        info[tag] = values
    Image.new("RGB", (8, 6)).save(plain / "images" / "2.tif", tiffinfo=info)
    add_pair(plain, "2__water1")
    (plain / "generated.json").write_text(json.dumps({"2__water1": "2"}))
    convert(plain, tmp_path, test_share=0)
    known = block(tmp_path)["gsd_m"]
    assert known == {"drone_2": pytest.approx(0.03), "drone_2__water1": pytest.approx(0.03)}


def test_dataset_without_additions_has_no_targets_and_no_new_entries(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path, test_share=0)
    assert not (tmp_path / DATASET_NAME / "targetsTr").exists()
    assert set(block(tmp_path)) == {
        *("version", "source", "normalisation", "unknown_colours", "split", "classes", "background_share")
    }
    assert "ignore" not in description(tmp_path)["labels"]  # type: ignore[operator]  # a dictionary


FINE = "id,name,class\n2,lawn,soft-surfaces\n1,roof,obstacles\n3,road,landing-zones\n"
FINE_IDS = np.tile(np.array([0, 1, 0, 2, 0, 3, 3, 0], np.uint8), (6, 1))


def test_fine_masks_and_weights_become_targets_of_training_cases(plain: Path, tmp_path: Path) -> None:
    (plain / "fine_classes.csv").write_text(FINE)
    add_grey(plain, "fine_masks", "0", FINE_IDS)
    add_grey(plain, "weights", "1", np.full((6, 8), 37))
    done = convert(plain, tmp_path, split_file=split_file(tmp_path, {"train": list("01234"), "test": ["5"]}))
    assert block(tmp_path)["fine_classes"] == [
        {"name": "roof", "class": "obstacles"},
        {"name": "lawn", "class": "soft-surfaces"},
        {"name": "road", "class": "landing-zones"},
    ]
    assert len(list((tmp_path / DATASET_NAME / "targetsTr").iterdir())) == 5, "none for the test case"
    first, second = target(tmp_path, "drone_0"), target(tmp_path, "drone_1")
    assert (first[..., 0] == FINE_IDS).all()
    assert (first[..., 1] == 100).all()
    assert (first[..., 2] == 0).all()
    assert (second[..., :2] == (0, 37)).all()
    assert (done.fine_cases, done.notes) == (1, ("4 training cases have no fine classes",))


def test_fine_class_that_contradicts_the_mask_is_unknown(plain: Path, tmp_path: Path) -> None:
    (plain / "fine_classes.csv").write_text(FINE)
    for index in range(6):
        add_grey(plain, "fine_masks", f"{index}", np.full((6, 8), 1))
    done = convert(plain, tmp_path, test_share=0)
    assert (target(tmp_path, "drone_3")[..., 0] == np.where(IDS == 1, 1, 0)).all()
    assert f"{6 * 6 * 7} pixels have a fine class that contradicts the class in the mask" in done.notes[0]


def test_invalid_fine_masks_and_weights_are_listed(plain: Path, tmp_path: Path) -> None:
    (plain / "fine_classes.csv").write_text(FINE)
    add_grey(plain, "fine_masks", "0", np.full((6, 8), 4))
    add_grey(plain, "fine_masks", "1", np.zeros((6, 9)))
    add_grey(plain, "weights", "2", np.zeros((6, 8, 3)))
    message = refused(plain, tmp_path)
    assert "fine_masks/0.png: the id 4 is not in fine_classes.csv" in message
    assert "fine_masks/1.png: is L and 9x6; it must be an 8-bit grey image (L) of the mask's size, 8x6" in message
    assert "weights/2.png: is RGB and 8x6" in message
    (plain / "fine_classes.csv").write_text("id,name,class\n1,roof,house\n3,road,landing-zones\n")
    message = refused(plain, tmp_path)
    assert "'roof': 'house' is not a class" in message
    assert "the ids must be the numbers from 1" in message


def test_boxes_raise_the_weight_of_moving_objects_inside(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "people.json").write_text(json.dumps({"0": [[3, 1, 6, 4]], "1": [], "77": [[0, 0, 1, 1]]}))
    done = convert(plain, tmp_path, boxes_file=tmp_path / "people.json", box_weight=2.5, test_share=0)
    expected = np.full((6, 8), 100)
    expected[1:4, 4] = 250
    assert (target(tmp_path, "drone_0")[..., 1] == expected).all()
    assert (target(tmp_path, "drone_1")[..., 1] == 100).all()
    assert done.notes == ("1 images with boxes are not in the data, such as 77",)


def test_invalid_boxes_are_rejected(plain: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "people.json"
    boxes.write_text(json.dumps({"0": [[3, 1, 9, 4]]}))
    assert "0: the box [3, 1, 9, 4] is outside the mask, which is 8x6" in refused(plain, tmp_path, boxes_file=boxes)
    boxes.write_text(json.dumps({"0": [[3, 1, 3, 4], [1, 2, 3, 4]], "1": [5]}))
    with pytest.raises(DatasetError) as caught:
        convert(plain, tmp_path, boxes_file=boxes)
    assert "0: [3, 1, 3, 4] is not a box" in str(caught.value)
    assert "1: 5 is not a box" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"at most 2\.55"):
        convert(plain, tmp_path, box_weight=3.0)


def test_ignored_background_gets_the_ignore_label(plain: Path, tmp_path: Path) -> None:
    done = convert(plain, tmp_path, ignore_background=True, test_share=0)
    assert done.ignored_pixels == 6 * 6
    assert (label(tmp_path, "drone_0") == np.where(IDS == 0, 6, IDS)).all()
    assert description(tmp_path)["labels"]["ignore"] == 6  # type: ignore[index]  # a dictionary


def add_dataset(folder: Path, stems: list[str]) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, stem in enumerate(stems):
        add_pair(folder, stem, value=250 + index)
    return folder


def test_added_datasets_are_trained_on_in_every_fold(plain: Path, tmp_path: Path) -> None:
    mine = add_dataset(tmp_path / "mine", ["0", "a"])
    other = add_dataset(tmp_path / "other", ["b", "0__water1"])
    (other / "generated.json").write_text(json.dumps({"0__water1": "0"}))
    parts = {"train": ["0", "1", "2"], "val": ["3"], "test": ["4"], "dropped": ["5"], "folds": FOLDS}
    done = convert(plain, tmp_path, split_file=split_file(tmp_path, parts), added=(mine, other))
    assert (done.train, done.generated) == (8, 1)
    everywhere = {"drone_mine_0", "drone_mine_a", "drone_b"}
    assert all(everywhere <= set(fold["train"]) and not everywhere & set(fold["val"]) for fold in folds(tmp_path))
    assert ["drone_0__water1" in fold["train"] for fold in folds(tmp_path)] == [True, True, False]
    image = Image.open(tmp_path / DATASET_NAME / "imagesTr" / "drone_mine_0_0000.png")
    assert image.getpixel((0, 0)) == (250, 250, 250)
    assert block(tmp_path)["added"] == ["mine", "other"]


def test_added_copies_of_held_out_photographs_are_listed(plain: Path, tmp_path: Path) -> None:
    mine = add_dataset(tmp_path / "mine", ["a", "b", "c", "d"])
    for stem, original in (("a", "0"), ("b", "2"), ("d", "4")):
        shutil.copy(plain / "images" / f"{original}.png", mine / "images" / f"{stem}.png")
    Image.open(plain / "images" / "3.png").save(mine / "images" / "c.bmp")  # other bytes, the same pixels
    (mine / "images" / "c.png").unlink()
    parts = {"train": ["0", "1", "2"], "val": ["3"], "test": ["4"], "dropped": ["5"], "folds": FOLDS}
    message = refused(plain, tmp_path, split_file=split_file(tmp_path, parts), added=(mine,))
    held_out = [("a.png", "0.png", "validation"), ("c.bmp", "3.png", "validation"), ("d.png", "4.png", "test")]
    for copy, original, purpose in held_out:
        line = f"{mine}/images/{copy}: is the same photograph as {plain}/images/{original}, which is for {purpose}"
        assert line in message
    assert message.count("is the same photograph") == 3  # 2 is in the training part of the only fold that uses it
    assert "Delete these copies" in message


def test_dataset_cannot_be_added_to_itself(plain: Path, tmp_path: Path) -> None:
    message = refused(plain, tmp_path, test_share=0.17, added=(plain,))
    assert message.startswith(f"{plain} has 6 problem(s)")
    assert message.count("is the same photograph") == 6


def test_labels_without_a_finished_photograph_are_recognised(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/labels.json").write_text("{}")
    assert "`droneseg label` was interrupted" in refused(plain, tmp_path, added=(tmp_path / "labels",))


def test_dataset_is_added_only_once(plain: Path, tmp_path: Path) -> None:
    mine = add_dataset(tmp_path / "mine", ["a"])
    message = refused(plain, tmp_path, added=(mine, mine / "images"))
    assert message.startswith(f"{plain}, {mine} together have 1 problem(s)")
    assert f"{mine}: is added more than once" in message


def test_added_dataset_may_have_generated_images_but_not_their_originals(plain: Path, tmp_path: Path) -> None:
    augmented = add_dataset(tmp_path / "augmented", [f"{index}__water1" for index in range(6)])
    (augmented / "generated.json").write_text(json.dumps({f"{index}__water1": f"{index}" for index in range(6)}))
    assert convert(plain, tmp_path, test_share=0, added=(augmented,)).generated == 6
    for kind in ("images", "masks"):
        shutil.copy(plain / kind / "1.png", augmented / kind)
    assert "--no-originals" in refused(plain, tmp_path, test_share=0, added=(augmented,), force=True)


def test_added_dataset_in_the_layout_of_kaggle_has_the_name_of_its_folder(
    plain: Path, dataset: Path, tmp_path: Path
) -> None:
    add_pair(plain, "000", value=5)
    convert(plain, tmp_path, test_share=0, added=(dataset,))
    assert block(tmp_path)["added"] == ["drone"]
    assert (tmp_path / DATASET_NAME / "labelsTr" / "drone_drone_000.png").is_file()


def test_added_dataset_keeps_what_its_import_recorded(plain: Path, tmp_path: Path) -> None:
    mine = add_dataset(tmp_path / "mine", ["a"])
    write_info(mine, DatasetInfo(1, ignore_background=True, gsd_m=0.01))
    convert(plain, tmp_path, test_share=0, added=(mine,), gsd_m=0.025)
    assert block(tmp_path)["gsd_m"] == {f"drone_{index}": 0.025 for index in range(6)} | {"drone_a": 0.01}
    assert (label(tmp_path, "drone_a")[:, 0] == 6).all()
    assert (label(tmp_path, "drone_0")[:, 0] == 0).all()
    (mine / "adopted.json").write_text("{")
    with pytest.raises(DatasetError, match="not a valid description"):
        convert(plain, tmp_path, test_share=0, added=(mine,), force=True)


def test_fine_masks_of_an_added_dataset_need_the_same_table(plain: Path, tmp_path: Path) -> None:
    (plain / "fine_classes.csv").write_text(FINE)
    (plain / "fine_masks").mkdir()
    same, other = (add_dataset(tmp_path / name, [name]) for name in ("same", "different"))
    for folder in (same, other):
        (folder / "fine_classes.csv").write_text(FINE if folder is same else FINE.replace("roof", "wall"))
        add_grey(folder, "fine_masks", folder.name, FINE_IDS)
    done = convert(plain, tmp_path, test_share=0, added=(same, other))
    assert (target(tmp_path, "drone_same")[..., 0] == FINE_IDS).all()
    assert (target(tmp_path, "drone_different")[..., 0] == 0).all()
    assert "different: its table of fine classes differs" in done.notes[0]


@pytest.mark.parametrize("ignore", [False, True])
def test_raw_dataset_with_another_name_of_the_background_is_converted(tmp_path: Path, *, ignore: bool) -> None:
    source = make_raw_dataset(tmp_path / "Dataset205_Own", channels="BGR", suffix=".tif", ignore=ignore)
    description = json.loads((source / "dataset.json").read_text())
    own = {"ground" if name == "background" else name: value for name, value in description["labels"].items()}
    (source / "dataset.json").write_text(json.dumps(description | {"labels": own}))
    convert(source, tmp_path / "raw", test_share=0)
    written = json.loads((tmp_path / "raw" / DATASET_NAME / "dataset.json").read_text())
    assert written["labels"] == description["labels"]
    assert classes_of(written).names[0] == "ground"
    image = np.asarray(Image.open(tmp_path / "raw" / DATASET_NAME / "imagesTr/drone_tr0_0000.png"))
    assert (image == read_pair_image(list_pairs(source).pairs[0])).all()
