"""Finds the photographs and masks of a folder and pairs them by stem."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import DatasetError
from droneseg.core.images import SUFFIXES
from droneseg.data.layouts import LAYOUTS, Layout

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


@dataclass(frozen=True)
class Found:
    """Where the photographs and masks of a dataset are.

    Attributes:
        root: The folder that holds both folders.
        layout: How it is laid out.
        notes: Where it was found, if not where expected.
    """

    root: Path
    layout: Layout
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> Path:
        """Folder of the photographs."""
        return self.layout.images_in(self.root)

    @property
    def masks(self) -> Path:
        """Folder of the masks."""
        return self.layout.masks_in(self.root)


def find_dataset(source: Path) -> Found:
    """Find the folders of photographs and masks in, above or below `source`, in any layout that is known.

    Raises:
        DatasetError: If there are none, or several.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder.")
    for layout in LAYOUTS:
        for expected in (source / layout.inside, source):
            if layout.is_in(expected):
                return Found(expected, layout)
    parent = source.resolve().parent
    for layout in LAYOUTS:
        if source.resolve().name in (layout.images, layout.masks) and layout.is_in(parent):
            return Found(parent, layout, (f"{source} is one level too deep; using {parent}.",))
    candidates = [(folder, layout) for folder in _below(source) for layout in LAYOUTS if layout.is_in(folder)]
    if len(candidates) == 1:
        root, layout = candidates[0]
        return Found(root, layout, (f"{source} does not hold the data itself; found it in {root}.",))
    if candidates:
        raise DatasetError(f"{source} holds several datasets. Name one of them:", [str(root) for root, _ in candidates])
    raise DatasetError(_why_nothing(source))


def list_pairs(source: Path) -> Listing:
    """List the pairs of a dataset folder and everything that is wrong with its file names.

    Raises:
        DatasetError: If the two folders cannot be found.
    """
    found = find_dataset(source)
    pairs, problems, notes = pair_folders(found.images, found.masks)
    return Listing(found.root, pairs, problems, (*found.notes, *notes))


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


def _why_nothing(source: Path) -> str:
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
