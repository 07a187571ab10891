"""Decodes every pair of a dataset once, on all cores, and lists whatever is wrong."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.classes import CLASSES
from droneseg.core.errors import DronesegError, ShapeMismatchError
from droneseg.core.images import is_plain_rgb_png, open_image
from droneseg.core.masks import ColourTable, Mask, UnknownColour, UnknownPolicy, decode_colours
from droneseg.core.system import usable_cores
from droneseg.data.pairs import Pair, list_pairs

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LoadedPair:
    """A pair, fully decoded and checked.

    Attributes:
        pair: Where it came from.
        data: The bytes of the photograph's file.
        opened: The photograph, decoded but not converted.
        plain: Whether the file is an 8-bit RGB PNG that can be copied as it is.
        mask: Class ids, shape (H, W), dtype uint8.
        replaced: Unknown colours that were made background.
    """

    pair: Pair
    data: bytes
    opened: pillow.Image
    plain: bool
    mask: Mask
    replaced: list[UnknownColour]


def load_pair(
    pair: Pair, *, unknown: UnknownPolicy, max_pixels: int, table: ColourTable | None = None
) -> tuple[LoadedPair | None, list[str]]:
    """Decode a pair fully; `table` says which colours are which class, if not the classes' own.

    Returns:
        The pair, or None, and its problems, one line each: both files are looked at even if the first is broken.
    """
    problems = []
    opened = mask = None
    data, plain = b"", False
    replaced: list[UnknownColour] = []
    try:
        data = pair.image.read_bytes()
        opened = open_image(data, max_pixels=max_pixels)
        plain = is_plain_rgb_png(opened)
    except (DronesegError, OSError) as error:
        problems.append(f"{_short(pair.image)}: {error}")
    try:
        mask, replaced = decode_colours(pair.mask.read_bytes(), unknown=unknown, max_pixels=max_pixels, table=table)
    except (DronesegError, OSError) as error:
        problems.append(f"{_short(pair.mask)}: {error}")
    if problems or opened is None or mask is None:
        return None, problems
    try:
        _require_same_size(opened, mask)
    except ShapeMismatchError as error:
        return None, [f"{_short(pair.image)}: {error}"]
    return LoadedPair(pair, data, opened, plain, mask, replaced), []


def _require_same_size(opened: pillow.Image, mask: Mask) -> None:
    width, height = opened.size
    if opened.getexif().get(0x0112, 1) >= 5:  # EXIF orientations 5-8 swap the sides
        width, height = height, width
    if (height, width) != mask.shape:
        raise ShapeMismatchError(f"image is {width}x{height}, its mask {mask.shape[1]}x{mask.shape[0]}")


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def on_all_cores(work: Callable[[_Item], _Result], items: list[_Item], progress: Progress | None) -> Iterator[_Result]:
    """Yield `work(item)` in order; decoding and encoding leave Python's lock, so threads use every core."""
    with ThreadPoolExecutor(usable_cores()) as workers:
        for done, result in enumerate(workers.map(work, items), start=1):
            if progress:
                progress(done, len(items))
            yield result


@dataclass(frozen=True)
class PairFacts:
    """What one good pair holds.

    Attributes:
        stem: The pair's stem.
        size: Width and height in pixels.
        format: File format of the photograph.
        class_pixels: Pixels by class id, shape (C,), dtype int64.
    """

    stem: str
    size: tuple[int, int]
    format: str
    class_pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Inspection:
    """The whole of a dataset folder.

    Attributes:
        root: The folder that holds the two folders of images and masks.
        facts: One entry per good pair, by stem.
        problems: Everything that is wrong, one line each.
        notes: What a person may want to know.
    """

    root: Path
    facts: tuple[PairFacts, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_dataset(source: Path, *, max_pixels: int, progress: Progress | None = None) -> Inspection:
    """Decode every pair of a dataset folder and list every problem.

    Raises:
        DatasetError: If the folder of images and the folder of masks cannot be found at all.
    """
    listing = list_pairs(source)
    problems, facts = list(listing.problems), []

    def look(pair: Pair) -> tuple[PairFacts | None, list[str]]:
        loaded, wrong = load_pair(pair, unknown="fail", max_pixels=max_pixels)
        return (_facts(loaded) if loaded else None), wrong

    for found, wrong in on_all_cores(look, list(listing.pairs), progress):
        problems.extend(wrong)
        if found:
            facts.append(found)
    return Inspection(listing.root, tuple(facts), tuple(problems), listing.notes)


def _facts(loaded: LoadedPair) -> PairFacts:
    height, width = loaded.mask.shape
    counts = np.bincount(loaded.mask.ravel(), minlength=len(CLASSES))
    return PairFacts(loaded.pair.stem, (width, height), str(loaded.opened.format), counts)
