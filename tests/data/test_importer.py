"""Folders with other colours are imported as a dataset, or all problems are listed."""

import csv
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.masks import decode_colours, encode_mask
from droneseg.data.dataset import KAGGLE, inspect_dataset
from support.images import png
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
    root = own / "mine" / KAGGLE.inside
    mask, _ = decode_colours((KAGGLE.masks_in(root) / "1.png").read_bytes())
    expected = np.full((30, 40), 3, np.uint8)
    expected[20:], expected[1, :3] = 5, 4
    assert (mask == expected).all()
    assert (KAGGLE.images_in(root) / "1.jpg").read_bytes() == (own / "photos" / "1.JPG").read_bytes()


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
    masks = KAGGLE.masks_in(own / "mine" / KAGGLE.inside)
    first, second = (decode_colours((masks / f"{index}.png").read_bytes())[0] for index in range(2))
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
        (own / "photos" / f"{index}.mask.png").write_bytes(encode_mask(np.full((30, 40), 2 + index, np.uint8)))
    done = import_dataset(own, "--mask-suffix", ".mask", masks="photos")
    assert done.returncode == 0, done.stderr
    assert len(inspect_dataset(own / "mine", max_pixels=10**6).facts) == 2
