"""Files of images: one file per image, or one per channel, as nnU-Net reads them (`NAME_0000.png`, ...)."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from droneseg.core.class_files import DESCRIPTION_NAME, channel_order
from droneseg.core.errors import ImageError, ShapeMismatchError
from droneseg.core.files import read_json
from droneseg.core.images import (
    DEFAULT_MAX_PIXELS,
    Image,
    ImageHeader,
    decode_image,
    encode_png,
    read_bytes,
    read_header,
)

ChannelOrder: TypeAlias = tuple[int, int, int]
"""Index of the colour (red, green, blue) of each channel."""
RGB_ORDER: ChannelOrder = (0, 1, 2)
CASE_NAME = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""Stem of a file in nnU-Net's raw format."""
CASE_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
"""Suffixes of 2D images that nnU-Net reads."""

_CHANNELS = (0, 1, 2)
_SHOWN = 4


@dataclass(frozen=True)
class ImageFiles:
    """The file of an image, or its three files of one channel each.

    Attributes:
        stem: Name of the image in results: the stem of its file, or the name of nnU-Net's case.
        file: The file, or that of the first channel.
        channels: Grey files of red, green and blue; empty if the image is a single file.
    """

    stem: str
    file: Path
    channels: tuple[Path, ...] = ()

    @classmethod
    def single(cls, file: Path) -> "ImageFiles":
        """Return an image in a single file, named after its stem."""
        return cls(file.stem, file)

    @property
    def all_files(self) -> tuple[Path, ...]:
        """The file, or the files of all channels."""
        return self.channels or (self.file,)

    def __str__(self) -> str:
        """Return the path of the file, or of the first channel."""
        return str(self.file)

    def read(self, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
        """Return the content of the file; that of an equal RGB PNG file if each channel is a file of its own.

        Raises:
            ImageError: If a file cannot be read, or a file of a channel cannot be decoded.
            ShapeMismatchError: If the channels differ in size.
        """
        return merge_channels(self.channels, max_pixels=max_pixels) if self.channels else read_bytes(self.file)

    def decode(self, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
        """Return the image, RGB, shape (H, W, 3), dtype uint8; see `read`."""
        return decode_image(self.read(max_pixels=max_pixels), max_pixels=max_pixels)

    @property
    def is_case(self) -> bool:
        """Whether the file has a name of nnU-Net's raw format, such as `NAME_0000.png`, in which NAME is the case."""
        match = CASE_NAME.fullmatch(self.file.stem)
        return self.file.suffix.lower() in CASE_SUFFIXES and match is not None and match["case"] == self.stem


def list_cases(folder: Path) -> list[ImageFiles]:
    """Return the images in a folder of nnU-Net's raw format, sorted by name; cases with a problem are left out.

    Raises:
        ConfigurationError: If the `dataset.json` beside the folder cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in CASE_SUFFIXES)
    return group_channels(files)[0]


def merge_channels(channels: Sequence[Path], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Return the content of an RGB PNG file with these grey files as red, green and blue.

    Raises:
        ImageError: If a file cannot be read or decoded.
        ShapeMismatchError: If the channels differ in size.
    """
    planes = []
    for file in channels:
        try:
            planes.append(decode_image(read_bytes(file), max_pixels=max_pixels)[..., 0])
        except ImageError as error:
            raise type(error)(f"{file.name}: {str(error).removeprefix(f'{file}: ')}") from error
    if len({plane.shape for plane in planes}) > 1:
        sizes = ", ".join(f"{plane.shape[1]}x{plane.shape[0]}" for plane in planes)
        raise ShapeMismatchError(f"The channels have the sizes {sizes}. Save all channels of an image in one size.")
    return encode_png(np.stack(planes, axis=-1), compress_level=1)


def group_channels(files: Iterable[Path], *, order: ChannelOrder = RGB_ORDER) -> tuple[list[ImageFiles], list[str]]:
    """Group the files of channels into images, by nnU-Net's names; every other file is an image of its own.

    Three grey files `NAME_0000`, `NAME_0001` and `NAME_0002` are the image NAME. A single RGB file `NAME_0000` is also
    the image NAME. RGB files with further numbers, such as frames of a video, are images of their own, except in a raw
    dataset of nnU-Net, where the folder of images is beside a `dataset.json`. JPEG files are never channels, because
    nnU-Net does not read them.

    Args:
        files: Image files.
        order: Colours of the channels in folders without a `dataset.json` beside them.

    Returns:
        Images, in the order of their first files, and a problem for each case whose files are not one image.

    Raises:
        ConfigurationError: If a `dataset.json` cannot be read.
    """
    cases: dict[tuple[Path, str, str], dict[int, Path]] = defaultdict(dict)
    entries: dict[Path | tuple[Path, str, str], None] = {}
    for file in files:
        match = CASE_NAME.fullmatch(file.stem) if file.suffix.lower() in CASE_SUFFIXES else None
        entry = (file.parent, match["case"], file.suffix) if match else file
        entries[entry] = None
        if match and isinstance(entry, tuple):
            cases[entry][int(match["channel"])] = file
    images, problems = list[ImageFiles](), list[str]()
    order_of = cache(lambda folder: _channel_order(folder, order))
    for entry in entries:
        if isinstance(entry, Path):
            images.append(ImageFiles.single(entry))
            continue
        folder, case, _ = entry
        found = _images_of(case, cases[entry], order_of(folder), raw=_is_raw(folder))
        if isinstance(found, str):
            problems.append(f"{folder / case}: {found}")
        else:
            images += found
    return images, problems


def _is_raw(folder: Path) -> bool:
    return _description_beside(folder).is_file()


def _description_beside(folder: Path) -> Path:
    return folder.resolve().parent / DESCRIPTION_NAME


def _channel_order(folder: Path, default: ChannelOrder) -> ChannelOrder:
    """Return the colours of the channels in a folder of images, as the `dataset.json` beside it names them."""
    if not _is_raw(folder):
        return default
    description = read_json(_description_beside(folder), expected="Expected nnU-Net's description of a dataset.")
    return channel_order(description) if isinstance(description, Mapping) else default


def _images_of(case: str, files: Mapping[int, Path], order: ChannelOrder, *, raw: bool) -> list[ImageFiles] | str:
    """Return the images in the files of a case, by channel, or a description of the problem with them."""
    singles = [ImageFiles.single(file) for file in files.values()]
    if not raw and 0 not in files and not files.keys() <= set(_CHANNELS):
        return singles  # numbered images, not channels
    headers, broken = _read_headers(file for number, file in files.items() if raw or number in _CHANNELS)
    if not any(header.grey for header in headers.values()):
        if files.keys() == {0}:
            return [ImageFiles(case, files[0])]
        return _several_rgb(files) if raw else singles
    if problem := broken or _problem_of_channels(files, headers):
        return problem
    red, green, blue = (files[order.index(colour)] for colour in _CHANNELS)
    return [ImageFiles(case, files[0], (red, green, blue))]


def _read_headers(files: Iterable[Path]) -> tuple[dict[Path, ImageHeader], str]:
    """Return the headers of the files that can be read, and the problems with the others."""
    headers, problems = {}, []
    for file in files:
        try:
            headers[file] = read_header(file)
        except ImageError as error:
            problems.append(f"{file.name}: {error}")
    return headers, " ".join(problems)


def _several_rgb(files: Mapping[int, Path]) -> str:
    return (
        f"has the files {_names(files.values())}. In nnU-Net's format, an RGB image is one file with the number 0000. "
        "Give every image a name of its own."
    )


def _problem_of_channels(files: Mapping[int, Path], headers: Mapping[Path, ImageHeader]) -> str | None:
    """Return why the files of a case, of which at least one is grey, are not the three channels of an image."""
    if coloured := [file for file, header in headers.items() if not header.grey]:
        return (
            f"{_names(headers.keys() - coloured)} is grey, but {_names(coloured)} is not. Use one RGB file with the "
            "number 0000, or one grey file for each of red, green and blue."
        )
    if files.keys() != set(_CHANNELS):
        return (
            f"has {_names(files.values())}: grey files with such names are channels in nnU-Net's format, and an image "
            "has the channels 0000, 0001 and 0002. Add the missing ones, use one RGB file, or rename grey images."
        )
    if pages := [file for file, header in headers.items() if header.pages > 1]:
        return f"{_names(pages)} has several pages. Use one 2D image for each channel."
    if len(sizes := {header.size for header in headers.values()}) > 1:
        shown = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        return f"its channels have the sizes {shown}. Save all channels of an image in one size."
    return None


def _names(files: Iterable[Path]) -> str:
    names = sorted(file.name for file in files)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
