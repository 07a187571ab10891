"""Find, pair, decode and validate images and masks; dataset layouts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.classes import CLASSES
from droneseg.core.errors import DatasetError, DronesegError, ShapeMismatchError
from droneseg.core.images import SUFFIXES, is_plain_rgb_png, open_image
from droneseg.core.masks import ColourTable, Mask, UnknownColour, UnknownPolicy, decode_colours
from droneseg.core.system import usable_cores


@dataclass(frozen=True)
class FolderLayout:
    """A folder of photographs beside a folder of colour masks, files of the same stem.

    Attributes:
        images: Folder of the photographs.
        masks: Folder of the masks.
        inside: Where the two are in what a user names, if not directly.
    """

    images: str
    masks: str
    inside: Path = Path()

    def images_in(self, root: Path) -> Path:
        """Return the folder of photographs of a dataset."""
        return root / self.images

    def masks_in(self, root: Path) -> Path:
        """Return the folder of masks of a dataset."""
        return root / self.masks

    def is_in(self, root: Path) -> bool:
        """Say whether both folders are there."""
        return self.images_in(root).is_dir() and self.masks_in(root).is_dir()

    def __str__(self) -> str:
        """Return the layout as a path with both names."""
        return (self.inside / f"{{{self.images},{self.masks}}}").as_posix()


KAGGLE_FOLDER = Path("classes_dataset/classes_dataset")
IMAGES_FOLDER = "original_images"
MASKS_FOLDER = "label_images_semantic"

KAGGLE = FolderLayout(IMAGES_FOLDER, MASKS_FOLDER, KAGGLE_FOLDER)
LAYOUTS: tuple[FolderLayout, ...] = (KAGGLE, FolderLayout("images", "masks"))


_SEARCH_DEPTH = 4


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask.

    Attributes:
        stem: File name without suffix, the same of both.
        image: Path of the photograph.
        mask: Path of the mask.
    """

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class PairListing:
    """What a dataset folder holds.

    Attributes:
        root: The folder that holds the two folders of images and masks.
        pairs: Complete pairs, sorted by stem.
        problems: Why it cannot be used as it is, one line each.
        notes: What a person may want to know, one line each.
    """

    root: Path
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DatasetLocation:
    """Where the photographs and masks of a dataset are.

    Attributes:
        root: The folder that holds both folders.
        layout: How it is laid out.
        notes: Where it was found, if not where expected.
    """

    root: Path
    layout: FolderLayout
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> Path:
        """Folder of the photographs."""
        return self.layout.images_in(self.root)

    @property
    def masks(self) -> Path:
        """Folder of the masks."""
        return self.layout.masks_in(self.root)


def find_dataset(source: Path) -> DatasetLocation:
    """Find the folders of photographs and masks in, above or below `source`, in any layout that is known.

    Raises:
        DatasetError: If there are none, or several.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder.")
    for layout in LAYOUTS:
        for expected in (source / layout.inside, source):
            if layout.is_in(expected):
                return DatasetLocation(expected, layout)
    parent = source.resolve().parent
    for layout in LAYOUTS:
        if source.resolve().name in (layout.images, layout.masks) and layout.is_in(parent):
            return DatasetLocation(parent, layout, (f"{source} is one level too deep; using {parent}.",))
    candidates = [(folder, layout) for folder in _below(source) for layout in LAYOUTS if layout.is_in(folder)]
    if len(candidates) == 1:
        root, layout = candidates[0]
        return DatasetLocation(root, layout, (f"{source} does not hold the data itself; found it in {root}.",))
    if candidates:
        raise DatasetError(f"{source} holds several datasets. Name one of them:", [str(root) for root, _ in candidates])
    raise DatasetError(_explain_not_found(source))


def list_pairs(source: Path) -> PairListing:
    """List the pairs of a dataset folder and everything that is wrong with its file names.

    Raises:
        DatasetError: If the two folders cannot be found.
    """
    found = find_dataset(source)
    pairs, problems, notes = pair_folders(found.images, found.masks)
    return PairListing(found.root, pairs, problems, (*found.notes, *notes))


def pair_folders(
    images: Path, masks: Path, *, mask_suffix: str = ""
) -> tuple[tuple[Pair, ...], tuple[str, ...], tuple[str, ...]]:
    """Pair the files of a folder of photographs and one of masks by stem.

    Args:
        images: Folder of photographs.
        masks: Folder of masks.
        mask_suffix: What masks, and no photographs, have at the end of their stem.

    Returns:
        Complete pairs, sorted by stem; problems and notes, one line each.

    Raises:
        DatasetError: If one of the two is no folder.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder.")
    # both may lie in one folder
    photographs, image_notes = _by_stem(images, not_suffix=mask_suffix)
    drawn, mask_notes = _by_stem(masks, suffix=mask_suffix)
    problems = [*_broken_links(images), *_broken_links(masks)]
    problems += [*_duplicates("images", photographs), *_duplicates("masks", drawn)]
    for stem in sorted(photographs.keys() - drawn.keys()):
        problems.append(f"{images.name}/{photographs[stem][0].name}: has no mask in {masks.name}")
    for stem in sorted(drawn.keys() - photographs.keys()):
        problems.append(f"{masks.name}/{drawn[stem][0].name}: has no image in {images.name}")
    if not photographs and not drawn:
        problems.append(f"{images.parent}: both folders are empty")
    unique = [s for s in sorted(photographs.keys() & drawn.keys()) if len(photographs[s]) == len(drawn[s]) == 1]
    pairs = tuple(Pair(stem, photographs[stem][0], drawn[stem][0]) for stem in unique)
    return pairs, tuple(problems), (*image_notes, *mask_notes)


def _below(source: Path) -> Iterable[Path]:
    """Yield the folders below `source`, not deeper than the search goes, hidden ones left out."""
    level = [source]
    for _ in range(_SEARCH_DEPTH):
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.name.startswith(".")
        ]
        yield from level


def _explain_not_found(source: Path) -> str:
    expected = " or ".join(str(layout) for layout in LAYOUTS)
    if not any(source.iterdir()):
        return f"{source} is empty. Expected {expected} in it."
    for folder in (source, *_below(source)):
        for layout in LAYOUTS:
            for present, absent in ((layout.images, layout.masks), (layout.masks, layout.images)):
                if (folder / present).is_dir():
                    return f"{folder} holds {present} but no {absent}."
    return f"{source} does not hold a dataset. Expected {expected} in it; looked {_SEARCH_DEPTH} levels deep."


def _by_stem(folder: Path, *, suffix: str = "", not_suffix: str = "") -> tuple[dict[str, list[Path]], list[str]]:
    """Group the image files of a folder by stem; note the files that are no images.

    Args:
        folder: Where they are.
        suffix: What their stems end with, which is taken off; others are left out.
        not_suffix: What marks files to leave out, unless it is empty.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    notes = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini") or not file.exists():
            continue
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            notes.append(f"{folder.name}/{file.name}: not an image file, ignored")
        elif file.stem.endswith(suffix) and not (not_suffix and file.stem.endswith(not_suffix)):
            found[file.stem.removesuffix(suffix)].append(file)
    return found, notes


def _broken_links(folder: Path) -> list[str]:
    """Say which links lead nowhere, as those of data that was not fetched yet."""
    return [
        f"{folder.name}/{file.name}: is a link to {file.readlink()}, which is not there"
        for file in sorted(folder.iterdir())
        if file.is_symlink() and not file.exists()
    ]


def _duplicates(kind: str, files: dict[str, list[Path]]) -> list[str]:
    return [
        f"{same[0].parent.name}: {len(same)} {kind} with the stem {stem!r}: {', '.join(file.name for file in same)}"
        for stem, same in sorted(files.items())
        if len(same) > 1
    ]


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


def parallel_map(work: Callable[[_Item], _Result], items: list[_Item], progress: Progress | None) -> Iterator[_Result]:
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

    for found, wrong in parallel_map(look, list(listing.pairs), progress):
        problems.extend(wrong)
        if found:
            facts.append(found)
    return Inspection(listing.root, tuple(facts), tuple(problems), listing.notes)


def _facts(loaded: LoadedPair) -> PairFacts:
    height, width = loaded.mask.shape
    counts = np.bincount(loaded.mask.ravel(), minlength=len(CLASSES))
    return PairFacts(loaded.pair.stem, (width, height), str(loaded.opened.format), counts)
