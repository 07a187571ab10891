"""Files of channels are grouped by nnU-Net's names, or refused with the case and a way out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.errors import BrokenImageError, ShapeMismatchError
from droneseg.core.image_files import ImageFiles, group_channels
from droneseg.core.images import decode_image
from support.raw_datasets import write_case

SCENE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def grey(file: Path, size: tuple[int, int] = (8, 6)) -> None:
    Image.new("L", size, 90).save(file)


def rgb(file: Path, size: tuple[int, int] = (8, 6)) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(file)


def group(folder: Path) -> tuple[list[str], list[str]]:
    images, problems = group_channels(sorted(file for file in folder.iterdir() if file.suffix != ".json"))
    return [image.stem for image in images], problems


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_three_grey_files_are_one_image(tmp_path: Path, suffix: str) -> None:
    write_case(tmp_path, "a_b", SCENE, "RGB", suffix)
    (image,) = group_channels(sorted(tmp_path.iterdir()))[0]
    assert (image.stem, image.file.name, len(image.all_files)) == ("a_b", f"a_b_0000{suffix}", 3)
    assert (decode_image(image.read()) == SCENE).all()


def test_dataset_json_beside_the_folder_names_the_colours_of_the_channels(tmp_path: Path) -> None:
    for folder in ("own", "raw"):
        (tmp_path / folder / "imagesTs").mkdir(parents=True)
        write_case(tmp_path / folder / "imagesTs", "a", SCENE, "GBR")
    (tmp_path / "raw/dataset.json").write_text(json.dumps({"channel_names": {"0": "G", "1": "B", "2": "R"}}))
    files = sorted(tmp_path.rglob("*.png"))
    for order, found in (((1, 2, 0), (True, True)), ((0, 1, 2), (False, True))):
        images, problems = group_channels(files, order=order)
        assert problems == []
        assert tuple(bool((decode_image(image.read()) == SCENE).all()) for image in images) == found


def test_single_rgb_file_is_named_by_its_case(tmp_path: Path) -> None:
    for name in ("a_0000.png", "DJI_0007.png", "plain.png"):
        rgb(tmp_path / name)
    assert group(tmp_path) == (["DJI_0007", "a", "plain"], [])


@pytest.mark.parametrize("numbers", [range(4), range(1, 3), range(7, 12)])
def test_numbered_rgb_images_are_images_of_their_own(tmp_path: Path, numbers: range) -> None:
    for number in numbers:
        rgb(tmp_path / f"frame_{number:04d}.png")
    assert group(tmp_path) == ([f"frame_{number:04d}" for number in numbers], [])


def test_jpeg_files_are_never_channels(tmp_path: Path) -> None:
    for number in range(2):
        grey(tmp_path / f"DJI_{number:04d}.jpg")
    assert group(tmp_path) == (["DJI_0000", "DJI_0001"], [])


def write_rgb_in_raw_dataset(folder: Path) -> None:
    (folder.parent / "dataset.json").write_text("{}")
    for number in range(2):
        rgb(folder / f"x_{number:04d}.png")


def write_pages(folder: Path) -> None:
    pages = [Image.new("L", (8, 6))] * 2
    for number in range(3):
        pages[0].save(folder / f"x_{number:04d}.tif", save_all=True, append_images=pages[1:])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a single channel": (lambda folder: grey(folder / "x_0000.png"), "has x_0000.png: grey files with such names"),
    "without the first": (
        lambda folder: [grey(folder / f"x_{n:04d}.png") for n in (1, 2)],
        "the channels 0000, 0001 and 0002. Add the missing ones",
    ),
    "four channels": (
        lambda folder: [grey(folder / f"x_{n:04d}.png") for n in range(4)],
        "x_0000.png, x_0001.png, x_0002.png, x_0003.png",
    ),
    "sizes": (
        lambda folder: [grey(folder / f"x_{n:04d}.png", (8 + n // 2, 6)) for n in range(3)],
        "its channels have the sizes 8x6 and 9x6",
    ),
    "grey and RGB": (
        lambda folder: [(grey, rgb)[n % 2](folder / f"x_{n:04d}.png") for n in range(3)],
        "x_0000.png, x_0002.png is grey, but x_0001.png is not. Use one RGB file",
    ),
    "several RGB files in a raw dataset": (write_rgb_in_raw_dataset, "an RGB image is one file with the number 0000"),
    "volumes": (write_pages, "has several pages"),
    "broken": (
        lambda folder: [grey(folder / "x_0000.png"), (folder / "x_0001.png").write_bytes(b"no image")],
        "x_0001.png: Unknown image format",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_files_that_are_not_one_image_are_refused(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    write, words = REFUSED[case]
    write(folder)
    rgb(folder / "other_0000.png")
    stems, (problem,) = group(folder)
    assert stems == ["other"]
    assert problem.startswith(f"{folder / 'x'}: ")
    assert words in problem


def test_problems_of_channels_are_errors_when_they_are_read(tmp_path: Path) -> None:
    for number in range(3):
        grey(tmp_path / f"{number}.png", (8, 6 + number // 2))
    image = ImageFiles("x", tmp_path / "0.png", tuple(tmp_path / f"{number}.png" for number in range(3)))
    with pytest.raises(ShapeMismatchError, match="sizes 8x6, 8x6, 8x7"):
        image.read()
    (tmp_path / "2.png").unlink()
    with pytest.raises(BrokenImageError, match=r"2.png: cannot be read"):
        image.read()
