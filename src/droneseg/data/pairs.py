"""Finds the photographs and masks of a folder in the Kaggle layout and pairs them by stem."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import DatasetError
from droneseg.core.images import SUFFIXES

KAGGLE_FOLDER = Path("classes_dataset/classes_dataset")
IMAGES_FOLDER = "original_images"
MASKS_FOLDER = "label_images_semantic"

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
class Listing:
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


def find_root(source: Path) -> tuple[Path, tuple[str, ...]]:
    """Find the folder that holds `original_images` and `label_images_semantic`, in, above or below `source`.

    Returns:
        The folder, and notes on where it was found if not where expected.

    Raises:
        DatasetError: If there is no such folder, or more than one.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder.")
    for expected in (source / KAGGLE_FOLDER, source):
        if _has_both(expected):
            return expected, ()
    if source.resolve().name in (IMAGES_FOLDER, MASKS_FOLDER) and _has_both(source.resolve().parent):
        parent = source.resolve().parent
        return parent, (f"{source} is one level too deep; using {parent}.",)
    candidates = [folder for folder in _below(source) if _has_both(folder)]
    if len(candidates) == 1:
        return candidates[0], (f"{source} does not hold the data itself; found it in {candidates[0]}.",)
    if candidates:
        raise DatasetError(f"{source} holds several datasets. Name one of them:", [str(c) for c in candidates])
    raise DatasetError(_why_nothing(source))


def list_pairs(source: Path) -> Listing:
    """List the pairs of a folder in the Kaggle layout and everything that is wrong with its file names.

    Raises:
        DatasetError: If the two folders cannot be found.
    """
    root, notes = find_root(source)
    images, image_notes = _by_stem(root / IMAGES_FOLDER)
    masks, mask_notes = _by_stem(root / MASKS_FOLDER)
    broken = [*_broken_links(root / IMAGES_FOLDER), *_broken_links(root / MASKS_FOLDER)]
    problems = [*broken, *_duplicates("images", images), *_duplicates("masks", masks)]
    for stem in sorted(images.keys() - masks.keys()):
        problems.append(f"{IMAGES_FOLDER}/{images[stem][0].name}: has no mask in {MASKS_FOLDER}")
    for stem in sorted(masks.keys() - images.keys()):
        problems.append(f"{MASKS_FOLDER}/{masks[stem][0].name}: has no image in {IMAGES_FOLDER}")
    if not images and not masks:
        problems.append(f"{root}: both folders are empty")
    unique = [s for s in sorted(images.keys() & masks.keys()) if len(images[s]) == len(masks[s]) == 1]
    pairs = tuple(Pair(stem, images[stem][0], masks[stem][0]) for stem in unique)
    return Listing(root, pairs, tuple(problems), (*notes, *image_notes, *mask_notes))


def _has_both(folder: Path) -> bool:
    return (folder / IMAGES_FOLDER).is_dir() and (folder / MASKS_FOLDER).is_dir()


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


def _why_nothing(source: Path) -> str:
    if not any(source.iterdir()):
        return f"{source} is empty. Expected {KAGGLE_FOLDER}/{{{IMAGES_FOLDER},{MASKS_FOLDER}}} in it."
    for folder in (source, *_below(source)):
        for present, absent in ((IMAGES_FOLDER, MASKS_FOLDER), (MASKS_FOLDER, IMAGES_FOLDER)):
            if (folder / present).is_dir():
                return f"{folder} holds {present} but no {absent}."
    return (
        f"{source} does not hold a dataset. Expected {KAGGLE_FOLDER}/{{{IMAGES_FOLDER},{MASKS_FOLDER}}} in it; "
        f"looked {_SEARCH_DEPTH} levels deep."
    )


def _by_stem(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Group the image files of a folder by stem; note the files that are no images."""
    found: dict[str, list[Path]] = defaultdict(list)
    notes = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini") or not file.exists():
            continue
        if file.is_file() and file.suffix.lower() in SUFFIXES:
            found[file.stem].append(file)
        else:
            notes.append(f"{folder.name}/{file.name}: not an image file, ignored")
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
