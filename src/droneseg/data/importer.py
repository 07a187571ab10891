"""Import images and masks whose colours differ from those of the class table."""

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

IMPORT_MARKER = "adopted.json"  # the name that earlier versions used
_COLUMNS = ("r", "g", "b", "class")
_MAX_COLOURS = 1000


@dataclass(frozen=True)
class ImportedDataset:
    """Result of an import.

    Attributes:
        folder: Folder of the written dataset.
        pairs: Number of pairs.
        pixels: Number of pixels by class name.
    """

    folder: Path
    pairs: int
    pixels: dict[str, int]


def require_pairs(images: Path, masks: Path, mask_suffix: str = "") -> tuple[Pair, ...]:
    """Pair the images and masks of two folders with `pair_folders`, and raise an error if there is any problem.

    Raises:
        DatasetError: If a file has no counterpart, or several files share a stem; all problems are listed.
    """
    pairs, problems, _ = pair_folders(images, masks, mask_suffix=mask_suffix)
    if problems:
        raise DatasetError(f"Images in {images} and masks in {masks} do not match:", problems)
    return pairs


def read_colours(file: Path) -> dict[Colour, int]:
    """Read a colour table from a CSV file with the columns r, g, b and class in any order; others are ignored.

    Returns:
        Class id by colour.

    Raises:
        ConfigurationError: If the file is not such a table; all invalid lines are listed.
    """
    rows = csv.DictReader(io.StringIO(_read_text(file)), skipinitialspace=True)
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if missing := [column for column in _COLUMNS if column not in names]:
        raise ConfigurationError(f"{file} has no column {', '.join(missing)}. Its first line must be r,g,b,class.")
    ids, problems = dict[Colour, int](), []
    for row in rows:
        *rgb, name = ((row[names[column]] or "").strip() for column in _COLUMNS)
        shown = ", ".join(rgb)
        if not all(part.isdecimal() and int(part) < 256 for part in rgb):
            problems.append(f"line {rows.line_num}: {shown} is not a colour; use three numbers from 0 to 255")
        elif name not in NAMES:
            problems.append(f"line {rows.line_num}: {name!r} is not a class; use one of {', '.join(NAMES)}")
        elif ids.setdefault((int(rgb[0]), int(rgb[1]), int(rgb[2])), class_id(name)) != class_id(name):
            problems.append(f"line {rows.line_num}: {shown} has a different class in an earlier line")
    if problems:
        raise ConfigurationError(
            "\n".join([f"{file} is not a valid colour table:", *(f"  - {problem}" for problem in problems)])
        )
    return ids


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text. Save it as CSV in UTF-8.") from error


def write_colours(
    file: Path, pairs: Sequence[Pair], *, max_pixels: int, progress: Progress | None = None
) -> tuple[int, int]:
    """Write a colour table with all colours of the masks, most frequent first.

    The class is filled in for colours of the class table and left empty for others.

    Args:
        file: CSV file to write.
        pairs: Pairs whose masks are read.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback.

    Returns:
        The number of colours, and the number of those without a class.

    Raises:
        DatasetError: If a mask cannot be read, or there are too many colours to be classes.
        OutputExistsError: If the file exists.
    """
    if file.exists():
        raise OutputExistsError(f"{file} already exists and was not changed. Choose another file, or delete it.")
    counts: Counter[Colour] = Counter()
    problems = []

    def count(pair: Pair) -> tuple[Counter[Colour], str]:
        try:
            return count_colours(pair.mask.read_bytes(), max_pixels=max_pixels), ""
        except (DronesegError, OSError) as error:
            return Counter(), f"{pair.mask}: {error}"

    for mask_counts, problem in parallel_map(count, list(pairs), progress):
        counts += mask_counts
        problems += [problem] if problem else []
    if len(counts) > _MAX_COLOURS:
        problems.append(
            f"The masks have {len(counts):,} colours, too many for classes. "
            "Save them as PNG and resize without smoothing."
        )
    if problems:
        raise DatasetError("The colour table was not written:", problems)
    known = {entry.colour: entry.name for entry in CLASSES}
    lines = [",".join(map(str, (*colour, known.get(colour, ""), pixels))) for colour, pixels in counts.most_common()]
    write_text(file, "\n".join([",".join((*_COLUMNS, "pixels")), *lines]) + "\n")
    return len(counts), len(counts.keys() - known.keys())


def import_dataset(
    pairs: Sequence[Pair],
    ids: Mapping[Colour, int],
    out: Path,
    *,
    replace: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> ImportedDataset:
    """Copy images and recolour masks into a dataset of the Kaggle layout. Nothing is written if there is a problem.

    Args:
        pairs: Images and masks.
        ids: Class id by colour of the masks.
        out: Folder to write.
        replace: Whether an earlier import in `out` may be replaced.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback.

    Raises:
        DatasetError: If a file cannot be read, a colour has no class, or image and mask differ in size; all problems
            are listed.
        OutputExistsError: If `out` contains files of another origin, or an import while `replace` is False.
    """
    table, problems = colour_table(ids), list[str]()
    total = np.zeros(len(CLASSES), dtype=np.int64)
    with atomic_directory(out, marker=IMPORT_MARKER, replace=replace) as staging_dir:
        root = staging_dir / KAGGLE.inside
        for folder in (KAGGLE.images_in(root), KAGGLE.masks_in(root)):
            folder.mkdir(parents=True)

        def write(pair: Pair) -> tuple[Mask | None, list[str]]:
            loaded, pair_problems = load_pair(pair, unknown="fail", max_pixels=max_pixels, table=table)
            if loaded is None:
                return None, pair_problems
            (KAGGLE.images_in(root) / f"{pair.stem}{pair.image.suffix.lower()}").write_bytes(loaded.data)
            (KAGGLE.masks_in(root) / f"{pair.stem}.png").write_bytes(encode_mask(loaded.mask))
            return loaded.mask, []

        for mask, pair_problems in parallel_map(write, list(pairs), progress):
            problems += pair_problems
            if mask is not None:
                total += np.bincount(mask.ravel(), minlength=len(CLASSES))
        if problems:
            raise DatasetError("The dataset was not imported. Fix these problems:", problems)
        write_text(staging_dir / IMPORT_MARKER, json.dumps({"pairs": len(pairs)}) + "\n")
    return ImportedDataset(out, len(pairs), dict(zip(NAMES, total.tolist(), strict=True)))
