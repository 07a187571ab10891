"""Folders with other colours are imported as a dataset, or all problems are listed."""

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ConfigurationError
from droneseg.core.masks import class_colours, decode_colours, encode_mask
from droneseg.data.dataset import (
    PLAIN,
    DatasetInfo,
    inspect_dataset,
    list_pairs,
    read_info,
    read_pair_image,
    read_true_mask,
)
from droneseg.data.fine_classes import FineClass, read_fine_classes
from droneseg.data.importer import import_dataset as run_import
from droneseg.data.importer import require_pairs
from droneseg.data.mask_legend import read_legend, write_legend
from support.images import png
from support.raw_datasets import LABELS, make_raw_dataset
from support.workspace import COMMAND

GRASS, ROAD, CAR = (0, 102, 0), (128, 64, 128), (9, 143, 150)
TABLE = {GRASS: "soft-surfaces", ROAD: "landing-zones", CAR: "moving-objects"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a folder with two JPEG images, and masks with other colours and a suffix."""
    for name in ("photos", "drawn"):
        (tmp_path / name).mkdir()
    for index in range(2):
        rng = np.random.default_rng(index)
        photograph = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        photograph.save(tmp_path / "photos" / f"{index}.JPG", format="JPEG")
        colours = np.zeros((30, 40, 3), np.uint8)
        colours[:20], colours[20:], colours[index, :3] = GRASS, ROAD, CAR
        (tmp_path / "drawn" / f"{index}_mask.png").write_bytes(png(colours))
    return tmp_path


def import_dataset(folder: Path, *options: str, masks: str = "drawn") -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "data", "import", "photos", masks, "--mask-suffix", "_mask", "--out", "mine", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def fill_in(file: Path, table: dict[tuple[int, int, int], str]) -> None:
    lines = [",".join(map(str, (*colour, name))) for colour, name in table.items()]
    file.write_text("\n".join(["r,g,b,class", *lines]))


def test_first_run_writes_the_colour_table_and_second_run_imports(own: Path) -> None:
    first = import_dataset(own)
    assert first.returncode == 1
    assert "with the 3 colours of the masks. Fill in the column class" in " ".join(first.stderr.split())
    rows = list(csv.DictReader((own / "colours.csv").read_text().splitlines()))
    assert [(int(row["r"]), int(row["g"]), int(row["b"])) for row in rows] == [GRASS, ROAD, CAR]
    assert [int(row["pixels"]) for row in rows] == [2 * 800 - 6, 2 * 400, 6]
    assert "'' is not a class" in import_dataset(own).stderr
    fill_in(own / "colours.csv", TABLE)
    assert import_dataset(own).returncode == 0
    found = inspect_dataset(own / "mine", max_pixels=10**6)
    assert (len(found.facts), found.problems) == (2, ())
    root = own / "mine"
    mask, _ = decode_colours((PLAIN.masks_in(root) / "1.png").read_bytes(), class_colours(DEFAULT_CLASSES))
    expected = np.full((30, 40), 3, np.uint8)
    expected[20:], expected[1, :3] = 5, 4
    assert (mask == expected).all()
    assert (PLAIN.images_in(root) / "1.jpg").read_bytes() == (own / "photos" / "1.JPG").read_bytes()


def test_all_problems_are_listed_and_nothing_is_written(own: Path) -> None:
    fill_in(own / "colours.csv", {GRASS: "soft-surfaces", ROAD: "landing-zones"})
    (own / "photos" / "0.JPG").write_bytes(b"no image")
    stderr = import_dataset(own).stderr
    assert "0_mask.png: Mask has 1 unknown colours: (9, 143, 150) on 3 pixels, first at x=0 y=0" in stderr
    assert "0.JPG: Unknown image format" in stderr
    assert not (own / "mine").exists()
    fill_in(own / "colours.csv", {GRASS: "grass", (0, 0, 256): "water"})
    stderr = import_dataset(own).stderr
    assert "'grass' is not a class; use one of background, obstacles" in stderr
    assert "0, 0, 256 is not a colour" in stderr
    (own / "colours.csv").write_text("red,green,blue\n1,2,3\n")
    assert "has no column r, g, b, class" in import_dataset(own).stderr
    (own / "drawn" / "7_mask.png").write_bytes(b"")
    assert "7_mask.png: has no image in photos" in import_dataset(own).stderr


def test_masks_with_too_many_colours_are_rejected(own: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (own / "drawn" / "0_mask.png").write_bytes(png(noise))
    assert "colours, too many for classes" in import_dataset(own).stderr
    assert not (own / "colours.csv").exists()


def test_existing_folder_is_not_overwritten(own: Path) -> None:
    fill_in(own / "colours.csv", TABLE)
    (own / "mine").mkdir()
    (own / "mine" / "flight.txt").write_text("mine")
    assert import_dataset(own, "--force").returncode == 1
    assert [file.name for file in (own / "mine").iterdir()] == ["flight.txt"]
    (own / "mine" / "flight.txt").unlink()
    assert import_dataset(own).returncode == 0
    assert import_dataset(own).returncode == 1
    assert import_dataset(own, "--force").returncode == 0


def test_grey_and_palette_masks_are_imported_and_sizes_are_compared(own: Path) -> None:
    grey = np.full((30, 40), 7, np.uint8)
    grey[:5] = 9
    (own / "drawn" / "0_mask.png").write_bytes(png(grey))
    palette = Image.fromarray(np.full((30, 40), 1, np.uint8))
    palette.putpalette([0, 0, 0, *CAR])
    palette.save(own / "drawn" / "1_mask.png")
    fill_in(own / "colours.csv", {(7, 7, 7): "water", (9, 9, 9): "background", CAR: "obstacles"})
    assert import_dataset(own).returncode == 0
    masks = PLAIN.masks_in(own / "mine")
    first, second = (
        decode_colours((masks / f"{index}.png").read_bytes(), class_colours(DEFAULT_CLASSES))[0] for index in range(2)
    )
    assert (first[:5] == 0).all()
    assert (first[5:] == 2).all()
    assert (second == 1).all()
    (own / "drawn" / "1_mask.png").write_bytes(png(np.full((10, 10), 7, np.uint8)))
    assert "1.JPG: image is 40x30, but its mask is 10x10" in import_dataset(own, "--force").stderr
    assert len(list(masks.iterdir())) == 2, "the older one stays"


def test_images_and_masks_in_one_folder_are_paired(own: Path) -> None:
    fill_in(own / "colours.csv", TABLE)
    for mask in (own / "drawn").iterdir():
        mask.rename(own / "photos" / mask.name)
    assert import_dataset(own, masks="photos").returncode == 0, "two pairs"
    assert len(inspect_dataset(own / "mine", max_pixels=10**6).facts) == 2


def test_hard_cases_are_imported_in_one_run(own: Path) -> None:
    for index in range(2):
        (own / "photos" / f"{index}.mask.png").write_bytes(
            encode_mask(np.full((30, 40), 2 + index, np.uint8), DEFAULT_CLASSES)
        )
    done = import_dataset(own, "--mask-suffix", ".mask", masks="photos")
    assert done.returncode == 0, done.stderr
    assert len(inspect_dataset(own / "mine", max_pixels=10**6).facts) == 2


def legend_problems(tmp_path: Path, text: str) -> str:
    (tmp_path / "legend.csv").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_legend(tmp_path / "legend.csv", DEFAULT_CLASSES)
    return str(caught.value)


def write_grey(own: Path) -> np.ndarray:
    """Replace the masks by grey ids and return those of the first one."""
    ids = np.full((30, 40), 3, np.uint8)
    ids[:10], ids[10:15], ids[15:18], ids[18:20] = 0, 1, 2, 9
    for index in range(2):
        (own / "drawn" / f"{index}_mask.png").write_bytes(png(ids))
    return ids


GREY = """index,name,class
0,unlabeled,ignore
1,roof,obstacles
2,wall,obstacles
3,grass,soft-surfaces
9,car,moving-objects
"""


def test_names_are_kept_as_fine_classes_and_ignored_pixels_become_background(own: Path) -> None:
    ids = write_grey(own)
    (own / "colours.csv").write_text(GREY)
    done = import_dataset(own, "--gsd", "0.02")
    assert done.returncode == 0, done.stderr
    assert "4 fine classes" in done.stdout
    assert "training ignores background pixels" in done.stdout
    mask, _ = decode_colours((own / "mine" / "masks" / "0.png").read_bytes(), class_colours(DEFAULT_CLASSES))
    assert (mask == np.array([0, 1, 1, 3, 0, 0, 0, 0, 0, 4])[ids]).all()
    fine = Image.open(own / "mine" / "fine_masks" / "0.png")
    assert fine.mode == "L"
    assert (np.asarray(fine) == np.array([0, 1, 2, 3, 0, 0, 0, 0, 0, 4])[ids]).all()
    assert read_fine_classes(own / "mine" / "fine_classes.csv", DEFAULT_CLASSES.names) == (
        FineClass("roof", "obstacles"), FineClass("wall", "obstacles"),
        FineClass("grass", "soft-surfaces"), FineClass("car", "moving-objects"),
    )  # fmt: skip
    assert read_info(own / "mine") == DatasetInfo(2, ignore_background=True, gsd_m=0.02)


def test_dataset_without_names_has_no_fine_masks(own: Path) -> None:
    fill_in(own / "colours.csv", TABLE)
    assert import_dataset(own).returncode == 0
    assert sorted(file.name for file in (own / "mine").iterdir()) == ["adopted.json", "images", "masks"]
    assert read_info(own / "mine") == DatasetInfo(2)


def test_grey_masks_use_the_index_and_colour_masks_the_colour_of_one_table(own: Path) -> None:
    (own / "drawn" / "0_mask.png").write_bytes(png(np.full((30, 40), 9, np.uint8)))
    lines = ["7,0,102,0,soft-surfaces", "8,128,64,128,landing-zones", "9,9,143,150,moving-objects", "1,9,9,9,water"]
    (own / "colours.csv").write_text("\n".join(["index,r,g,b,class", *lines]))
    done = import_dataset(own)
    assert done.returncode == 0, done.stderr
    first, second = (
        decode_colours((own / "mine/masks" / f"{n}.png").read_bytes(), class_colours(DEFAULT_CLASSES))[0]
        for n in range(2)
    )
    assert (first == 4).all(), "the value 9 is the index, not the colour 9, 9, 9"
    assert second[0, 10] == 3


def test_colour_masks_need_the_columns_of_colours(own: Path) -> None:
    (own / "colours.csv").write_text("index,class\n1,water\n")
    assert "0_mask.png: the mask is not grey; add the columns r, g and b" in " ".join(
        import_dataset(own).stderr.split()
    )


def test_template_has_empty_classes_and_names(own: Path) -> None:
    write_grey(own)
    pairs = require_pairs(own / "photos", own / "drawn", "_mask")
    assert write_legend(own / "colours.csv", pairs, DEFAULT_CLASSES, max_pixels=10**6) == (5, 4)
    lines = (own / "colours.csv").read_text().splitlines()
    assert lines[0] == "r,g,b,class,pixels,name"
    assert set(lines[1:]) == {
        "3,3,3,,800,", "0,0,0,background,800,", "1,1,1,,400,", "2,2,2,,240,", "9,9,9,,160,",
    }  # fmt: skip


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    (tmp_path / "legend.csv").write_text("\ufeffR;G;B;Class;Name\r\n1;2;3;Water;pool\r\n;;;;\r\n", encoding="utf-8")
    legend = read_legend(tmp_path / "legend.csv", DEFAULT_CLASSES)
    assert legend.colours == {(1, 2, 3): 0}
    assert legend.class_ids.tolist() == [2]
    assert legend.fine_classes == (FineClass("pool", "water"),)


def test_all_contradictions_of_a_table_are_listed(tmp_path: Path) -> None:
    rows = ["1,tree,obstacles", "1,bush,obstacles", "2,tree,soft-surfaces", "3,a,ignore", "4,b,background", "x,c,water"]
    message = legend_problems(tmp_path, "\n".join(["index,name,class", *rows]))
    assert "line 3: 1 has a different class or name in an earlier line" in message
    assert "line 4: 'tree' has a different class in an earlier line" in message
    assert "ignore and background are both background in the masks" in message
    assert "line 7: 'x' is not an id; use a number from 0 to 255" in message
    assert "has no column g, b" in legend_problems(tmp_path, "r,index,class\n1,2,water\n")


def test_invalid_ground_resolution_is_rejected(own: Path) -> None:
    fill_in(own / "colours.csv", TABLE)
    legend = read_legend(own / "colours.csv", DEFAULT_CLASSES)
    pairs = require_pairs(own / "photos", own / "drawn", "_mask")
    with pytest.raises(ConfigurationError, match="metres per pixel"):
        run_import(pairs, legend, own / "mine", gsd_m=0.0, max_pixels=10**6)


@pytest.mark.parametrize("options", [{}, {"ignore": True}, {"channels": "BGR", "suffix": ".tif", "ignore": True}])
def test_raw_dataset_is_imported_with_its_classes(tmp_path: Path, options: dict[str, str]) -> None:
    raw = make_raw_dataset(tmp_path / "Dataset205_Own", **options)  # type: ignore[arg-type]  # a table of options
    command = [*COMMAND, "data", "import", str(raw / "imagesTr"), str(raw / "labelsTr"), "--out", "mine", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "colours.csv").exists()
    inspection = inspect_dataset(tmp_path / "mine", max_pixels=10_000)
    assert inspection.problems == ()
    assert inspection.classes.names == tuple(LABELS)
    pixels = json.loads(done.stdout)["pixels"]
    for pair, original in zip(list_pairs(tmp_path / "mine").pairs, list_pairs(raw).pairs, strict=True):
        assert pair.stem == original.stem
        assert (read_pair_image(pair) == read_pair_image(original)).all()
        mask, true = read_true_mask(pair), read_true_mask(original)
        assert (mask == true).all()
        assert (mask == 6).any() == options.get("ignore", False)
        pixels = {name: number - int((true == LABELS[name]).sum()) for name, number in pixels.items()}
    assert set(pixels.values()) == {0}


def test_labels_are_imported_with_a_table_that_is_given(tmp_path: Path) -> None:
    raw = make_raw_dataset(tmp_path / "Dataset205_Own")
    (tmp_path / "own.csv").write_text(
        "index,class\n" + "".join(f"{index},{'water' if index == 2 else 'background'}\n" for index in range(6))
    )
    folders = [str(raw / "imagesTr"), str(raw / "labelsTr")]
    command = [*COMMAND, "data", "import", *folders, "--out", "mine", "--colours", "own.csv"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert inspect_dataset(tmp_path / "mine", max_pixels=10_000).classes == DEFAULT_CLASSES
