"""Import image and mask folders with other colours."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from droneseg.core.classes import CLASSES, NAMES, class_id
from droneseg.core.errors import ConfigurationError, DatasetError, DronesegError, OutputExistsError
from droneseg.core.files import atomic_directory, write_text
from droneseg.core.masks import Colour, Mask, colour_table, count_colours, encode_mask
from droneseg.data.dataset import KAGGLE, Pair, Progress, load_pair, pair_folders, parallel_map

MARKER = "adopted.json"
_COLUMNS = ("r", "g", "b", "class")
_MOST_COLOURS = 1000


@dataclass(frozen=True)
class ImportedDataset:
    """What was made of somebody's folders.

    Attributes:
        folder: The dataset.
        pairs: How many.
        pixels: By class name.
    """

    folder: Path
    pairs: int
    pixels: dict[str, int]


def pair_up(images: Path, masks: Path, mask_suffix: str = "") -> tuple[Pair, ...]:
    """Pair the photographs and masks of two folders; see `pair_folders`.

    Raises:
        DatasetError: If a file has no partner, or several have one stem.
    """
    pairs, problems, _ = pair_folders(images, masks, mask_suffix=mask_suffix)
    if problems:
        raise DatasetError("The two folders do not fit:", problems)
    return pairs


def read_colours(file: Path) -> dict[Colour, int]:
    """Read which colour is which class: CSV with the columns r, g, b and class, in any order; others are ignored.

    Returns:
        Class id by colour.

    Raises:
        ConfigurationError: If it is no such file; all wrong lines are listed.
    """
    rows = csv.DictReader(io.StringIO(_text(file)), skipinitialspace=True)
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if absent := [column for column in _COLUMNS if column not in names]:
        raise ConfigurationError(f"{file} lacks the columns {', '.join(absent)}; its first line is r,g,b,class.")
    ids, problems = dict[Colour, int](), []
    for row in rows:
        *rgb, name = ((row[names[column]] or "").strip() for column in _COLUMNS)
        shown = ", ".join(rgb)
        if not all(part.isdecimal() and int(part) < 256 for part in rgb):
            problems.append(f"line {rows.line_num}: {shown} is no colour: three numbers of 0 to 255")
        elif name not in NAMES:
            problems.append(f"line {rows.line_num}: {name!r} is no class: {', '.join(NAMES)}")
        elif ids.setdefault((int(rgb[0]), int(rgb[1]), int(rgb[2])), class_id(name)) != class_id(name):
            problems.append(f"line {rows.line_num}: {shown} has another class above")
    if problems:
        raise ConfigurationError("\n".join([f"{file} is wrong:", *(f"  - {problem}" for problem in problems)]))
    return ids


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is no UTF-8 text. Save it as CSV in UTF-8.") from error


def write_colours(
    file: Path, pairs: Sequence[Pair], *, max_pixels: int, progress: Progress | None = None
) -> tuple[int, int]:
    """Write a table of all colours of the masks, the most frequent first; only of our own colours it says the class.

    Returns:
        How many colours, and how many of them are no class's.

    Raises:
        DatasetError: If a mask cannot be read, or they hold too many colours to be classes.
        OutputExistsError: If the file is there.
    """
    if file.exists():
        raise OutputExistsError(f"{file} is already there.")
    counts: Counter[Colour] = Counter()
    problems = []

    def look(pair: Pair) -> tuple[Counter[Colour], str]:
        try:
            return count_colours(pair.mask.read_bytes(), max_pixels=max_pixels), ""
        except (DronesegError, OSError) as error:
            return Counter(), f"{pair.mask}: {error}"

    for found, problem in parallel_map(look, list(pairs), progress):
        counts += found
        problems += [problem] if problem else []
    if len(counts) > _MOST_COLOURS:
        problems.append(f"{len(counts):,} colours are no classes. Were the masks saved as JPEG, or scaled smoothly?")
    if problems:
        raise DatasetError("No table of colours was written:", problems)
    ours = {entry.colour: entry.name for entry in CLASSES}
    lines = [",".join(map(str, (*colour, ours.get(colour, ""), pixels))) for colour, pixels in counts.most_common()]
    write_text(file, "\n".join([",".join((*_COLUMNS, "pixels")), *lines]) + "\n")
    return len(counts), len(counts.keys() - ours.keys())


def import_dataset(
    pairs: Sequence[Pair],
    ids: Mapping[Colour, int],
    out: Path,
    *,
    replace: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> ImportedDataset:
    """Write photographs as they are and masks in our colours, in the Kaggle layout; nothing, if anything is wrong.

    Args:
        pairs: Photographs and masks.
        ids: Class id by colour.
        out: Folder to make.
        replace: Whether a dataset that was made so before may be replaced.
        max_pixels: Largest image accepted.
        progress: Called with (done, total) after each pair.

    Raises:
        DatasetError: If a file cannot be used, a colour has no class, or a photograph and its mask differ in size; all
            are listed.
        OutputExistsError: If something else is in the way.
    """
    table, problems = colour_table(ids), list[str]()
    total = np.zeros(len(CLASSES), dtype=np.int64)
    with atomic_directory(out, marker=MARKER, replace=replace) as aside:
        root = aside / KAGGLE.inside
        for folder in (KAGGLE.images_in(root), KAGGLE.masks_in(root)):
            folder.mkdir(parents=True)

        def write(pair: Pair) -> tuple[Mask | None, list[str]]:
            loaded, wrong = load_pair(pair, unknown="fail", max_pixels=max_pixels, table=table)
            if loaded is None:
                return None, wrong
            (KAGGLE.images_in(root) / f"{pair.stem}{pair.image.suffix.lower()}").write_bytes(loaded.data)
            (KAGGLE.masks_in(root) / f"{pair.stem}.png").write_bytes(encode_mask(loaded.mask))
            return loaded.mask, []

        for mask, wrong in parallel_map(write, list(pairs), progress):
            problems += wrong
            if mask is not None:
                total += np.bincount(mask.ravel(), minlength=len(CLASSES))
        if problems:
            raise DatasetError("Nothing was written:", problems)
        write_text(aside / MARKER, json.dumps({"pairs": len(pairs)}) + "\n")
    return ImportedDataset(out, len(pairs), dict(zip(NAMES, total.tolist(), strict=True)))
