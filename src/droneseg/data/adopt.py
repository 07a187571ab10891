"""Somebody's own folders and colours into the Kaggle layout and our colours."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import CLASSES, NAMES, class_id
from droneseg.core.errors import ConfigurationError, DatasetError, DronesegError, OutputExistsError
from droneseg.core.files import new_folder, require_free, write_text
from droneseg.core.images import SUFFIXES, load, open_image
from droneseg.core.masks import Mask, encode_mask
from droneseg.data.inspect import Progress, on_all_cores
from droneseg.data.layouts import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.data.pairs import Pair

ColourTable: TypeAlias = Mapping[int, int]
"""Class id by packed colour, r + 256 g + 65536 b."""

MARKER = "adopted.json"
_COLUMNS = ("r", "g", "b", "class")
_MOST_COLOURS = 1000


@dataclass(frozen=True)
class Adopted:
    """What was made of somebody's folders.

    Attributes:
        folder: The dataset.
        pairs: How many.
        pixels: By class name.
    """

    folder: Path
    pairs: int
    pixels: dict[str, int]


def pair_up(images: Path, masks: Path, mask_suffix: str = "") -> list[Pair]:
    """Pair the photographs and masks of two folders by stem; a mask's stem may have something more at its end.

    Raises:
        DatasetError: If a file has no partner, or several have one stem.
    """
    photographs, drawn = _by_stem(images, ""), _by_stem(masks, mask_suffix)
    problems = [
        f"{files[0].parent}: {', '.join(file.name for file in files)} have one stem"
        for found in (photographs, drawn)
        for files in found.values()
        if len(files) > 1
    ]
    problems += [f"{photographs[stem][0]}: has no mask" for stem in sorted(photographs.keys() - drawn.keys())]
    problems += [f"{drawn[stem][0]}: has no photograph" for stem in sorted(drawn.keys() - photographs.keys())]
    if not photographs and not drawn:
        problems = [f"{images} and {masks} hold no images with names that fit"]
    if problems:
        raise DatasetError("The two folders do not fit:", problems)
    return [Pair(stem, photographs[stem][0], drawn[stem][0]) for stem in sorted(photographs)]


def read_colours(file: Path) -> dict[int, int]:
    """Read which colour is which class: CSV with the columns r, g, b and class, in any order; others are ignored.

    Raises:
        ConfigurationError: If it is no such file; all wrong lines are listed.
    """
    rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")), skipinitialspace=True)
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if absent := [column for column in _COLUMNS if column not in names]:
        raise ConfigurationError(f"{file} lacks the columns {', '.join(absent)}; its first line is r,g,b,class.")
    table, problems = dict[int, int](), []
    for row in rows:
        *rgb, name = ((row[names[column]] or "").strip() for column in _COLUMNS)
        if not all(part.isdecimal() and int(part) < 256 for part in rgb):
            problems.append(f"line {rows.line_num}: {', '.join(rgb)} is no colour: three numbers of 0 to 255")
        elif name not in NAMES:
            problems.append(f"line {rows.line_num}: {name!r} is no class: {', '.join(NAMES)}")
        elif table.setdefault(_packed(rgb), class_id(name)) != class_id(name):
            problems.append(f"line {rows.line_num}: {', '.join(rgb)} has another class above")
    if problems:
        raise ConfigurationError("\n".join([f"{file} is wrong:", *(f"  - {problem}" for problem in problems)]))
    return table


def write_colours(file: Path, pairs: Sequence[Pair], *, max_pixels: int, progress: Progress | None = None) -> int:
    """Write a table of all colours of the masks, the most frequent first; only of our own colours it says the class.

    Returns:
        How many colours.

    Raises:
        DatasetError: If a mask cannot be read, or they hold too many colours to be classes.
        OutputExistsError: If the file is there.
    """
    if file.exists():
        raise OutputExistsError(f"{file} is already there.")
    counts: Counter[int] = Counter()
    problems = []

    def look(pair: Pair) -> tuple[Counter[int], str]:
        try:
            colours, pixels = np.unique(_colours_of(pair.mask, max_pixels), return_counts=True)
        except (DronesegError, OSError) as error:
            return Counter(), f"{pair.mask}: {error}"
        return Counter(dict(zip(colours.tolist(), pixels.tolist(), strict=True))), ""

    for found, problem in on_all_cores(look, list(pairs), progress):
        counts += found
        problems += [problem] if problem else []
    if len(counts) > _MOST_COLOURS:
        problems.append(f"{len(counts):,} colours are no classes. Were the masks saved as JPEG, or scaled smoothly?")
    if problems:
        raise DatasetError("No table of colours was written:", problems)
    ours = {_packed(entry.colour): entry.name for entry in CLASSES}
    lines = [f"{c & 255},{c >> 8 & 255},{c >> 16},{ours.get(c, '')},{n}" for c, n in counts.most_common()]
    write_text(file, "\n".join([",".join((*_COLUMNS, "pixels")), *lines]) + "\n")
    return len(counts)


def adopt(
    pairs: Sequence[Pair],
    colours: ColourTable,
    out: Path,
    *,
    replace: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> Adopted:
    """Write photographs as they are and masks in our colours, in the Kaggle layout; nothing, if anything is wrong.

    Args:
        pairs: Photographs and masks.
        colours: Which colour is which class.
        out: Folder to make.
        replace: Whether a dataset that was made so before may be replaced.
        max_pixels: Largest image accepted.
        progress: Called with (done, total) after each pair.

    Raises:
        DatasetError: If a file cannot be used, or a colour has no class; all are listed.
        OutputExistsError: If something else is in the way.
    """
    require_free(out, marker=MARKER, replace=replace)
    known = np.array(sorted(colours), dtype=np.uint32)
    ids = np.array([colours[int(colour)] for colour in known], dtype=np.uint8)
    total, problems = np.zeros(len(CLASSES), dtype=np.int64), []
    with new_folder(out, marker=MARKER, replace=replace) as aside:
        for name in (IMAGES_FOLDER, MASKS_FOLDER):
            (aside / KAGGLE_FOLDER / name).mkdir(parents=True)

        def write(pair: Pair) -> tuple[Mask | None, str]:
            try:
                mask = _translate(_colours_of(pair.mask, max_pixels), known, ids)
                data = pair.image.read_bytes()
                load(open_image(data, max_pixels=max_pixels))
            except (DronesegError, OSError) as error:
                return None, f"{pair.stem}: {error}"
            (aside / KAGGLE_FOLDER / IMAGES_FOLDER / f"{pair.stem}{pair.image.suffix.lower()}").write_bytes(data)
            (aside / KAGGLE_FOLDER / MASKS_FOLDER / f"{pair.stem}.png").write_bytes(encode_mask(mask))
            return mask, ""

        for mask, problem in on_all_cores(write, list(pairs), progress):
            problems += [problem] if problem else []
            if mask is not None:
                total += np.bincount(mask.ravel(), minlength=len(CLASSES))
        if problems:
            raise DatasetError("Nothing was written:", problems)
        write_text(aside / MARKER, "{}\n")
    return Adopted(out, len(pairs), dict(zip(NAMES, total.tolist(), strict=True)))


def _by_stem(folder: Path, suffix: str) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder.")
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.stem.endswith(suffix):
            found.setdefault(file.stem.removesuffix(suffix), []).append(file)
    return found


def _packed(rgb: Sequence[int | str]) -> int:
    red, green, blue = (int(part) for part in rgb)
    return red | green << 8 | blue << 16


def _colours_of(file: Path, max_pixels: int) -> NDArray[np.uint32]:
    """Return the packed colour of each pixel, shape (H, W); grey counts as a colour with three equal parts."""
    opened = open_image(file.read_bytes(), max_pixels=max_pixels)
    load(opened)
    rgb = np.asarray(opened.convert("RGB")).astype(np.uint32)
    return (rgb @ np.array([1, 1 << 8, 1 << 16], dtype=np.uint32)).astype(np.uint32)


def _translate(packed: NDArray[np.uint32], known: NDArray[np.uint32], ids: NDArray[np.uint8]) -> Mask:
    """Return class ids, shape (H, W).

    Raises:
        DatasetError: If a colour has no class.
    """
    places = np.searchsorted(known, packed).clip(max=max(0, len(known) - 1))
    strange = packed[known[places] != packed] if len(known) else packed.ravel()
    if strange.size:
        colours, pixels = np.unique(strange, return_counts=True)
        shown = "; ".join(
            f"({c & 255}, {c >> 8 & 255}, {c >> 16}) on {n:,} pixels"
            for c, n in sorted(zip(colours.tolist(), pixels.tolist(), strict=True), key=lambda each: -each[1])[:5]
        )
        raise DatasetError(f"mask has {len(colours):,} colours that are not in the table: {shown}")
    mask: Mask = ids[places]
    return mask
