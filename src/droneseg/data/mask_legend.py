"""Legend of masks: the CSV table that gives the class of every mask colour or id."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.class_files import DESCRIPTION_NAME, find_classes
from droneseg.core.classes import BACKGROUND_ID, IGNORE, ClassTable
from droneseg.core.errors import ConfigurationError, DatasetError, DronesegError, OutputExistsError
from droneseg.core.files import read_json, write_text
from droneseg.core.images import open_image
from droneseg.core.masks import Colour, count_colours
from droneseg.data.dataset import Pair, Progress, parallel_map
from droneseg.data.fine_classes import FineClass

_RGB, _INDEX, _CLASS, _NAME = ("r", "g", "b"), "index", "class", "name"
_MAX_COLOURS = 1000
_MAX_ENTRIES = 255  # entries are numbered in 8 bits, and one number means unknown


@dataclass(frozen=True)
class MaskLegend:
    """Meaning of the pixel values of masks. Every combination of a class and a fine class is an entry.

    Attributes:
        colours: Index of the entry by colour; empty if the table has no colours.
        indices: Index of the entry by value v of grey masks, as the colour (v, v, v); empty if the table has no
            column index.
        class_ids: Class id of each entry, shape (N,), dtype uint8.
        fine_ids: Id of the fine class of each entry, 0 if it has none, shape (N,), dtype uint8.
        fine_classes: Fine classes in the order of their ids.
        ignores: Whether training ignores background pixels, because `ignore` is a class: pixels without a label become
            background.
        classes: Class table.
        ignored: Colour, in the written masks, of entries with the ignore label; None if there is no such entry.
    """

    colours: Mapping[Colour, int]
    indices: Mapping[Colour, int]
    class_ids: NDArray[np.uint8]
    fine_ids: NDArray[np.uint8]
    fine_classes: tuple[FineClass, ...]
    ignores: bool
    classes: ClassTable
    ignored: Colour | None = None


@dataclass(frozen=True)
class _Row:
    """A valid line of the table; `values` has the keys `colour` and `index` if the table has these columns."""

    line: int
    values: Mapping[str, Colour]
    class_name: str
    name: str

    @property
    def entry(self) -> tuple[str, str]:
        """Class and fine class."""
        return self.class_name, self.name


def read_legend(file: Path, classes: ClassTable) -> MaskLegend:
    """Read the legend of masks from a CSV file.

    The table needs the column `class`, and `index` or `r`, `g` and `b` or all four of them, in any order. The optional
    column `name` has the fine class. Other columns and empty lines are ignored; columns may also be separated by
    semicolons or tabs.

    Args:
        file: CSV file.
        classes: Class table that the legend refers to.

    Raises:
        ConfigurationError: If the file is not such a table; all invalid lines are listed.
    """
    table = _open_table(file)
    rows, problems = list[_Row](), list[str]()
    for line, cells in _cells(file, table):
        row = _parse(line, cells, classes.names)
        if isinstance(row, _Row):
            rows.append(row)
        else:
            problems.append(f"line {line}: {row}")
    problems += _contradictions(rows, classes.names[BACKGROUND_ID])
    if problems:
        raise ConfigurationError(
            "\n".join([f"{file} is not a valid colour table:", *(f"  - {problem}" for problem in problems)])
        )
    return _legend(rows, classes)


def _open_table(file: Path) -> "csv.DictReader[str]":
    text = _read_text(file)
    # spreadsheets separate columns by semicolons where the comma is the decimal sign
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    return csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text. Save it as CSV in UTF-8.") from error


def _cells(file: Path, table: "csv.DictReader[str]") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the cells, by known column, of every line that is not empty.

    Raises:
        ConfigurationError: If a required column is missing.
    """
    names = {(name or "").strip().lower(): name for name in table.fieldnames or ()}
    known = {column: names[column] for column in (*_RGB, _INDEX, _CLASS, _NAME) if column in names}
    required = (_CLASS,) if _INDEX in known and not known.keys() & set(_RGB) else (*_RGB, _CLASS)
    if missing := [column for column in required if column not in known]:
        raise ConfigurationError(
            f"{file} has no column {', '.join(missing)}. Its first line must be r,g,b,class or, for grey masks of ids, "
            "index,class; a column name is optional."
        )
    for row in table:
        cells = {column: (row[name] or "").strip() for column, name in known.items()}
        if any(cells.values()):
            yield table.line_num, cells


def _parse(line: int, cells: Mapping[str, str], names: Sequence[str]) -> _Row | str:
    """Return the row, or a description of its problem."""
    values = {}
    for kind, columns in (("colour", _RGB), (_INDEX, (_INDEX,) * 3)):
        if columns[0] in cells:
            red, green, blue = parts = [cells[column] for column in columns]
            if not all(part.isdecimal() and int(part) < 256 for part in parts):
                shown = f"{cells[_INDEX]!r} is not an id" if kind == _INDEX else f"{', '.join(parts)} is not a colour"
                return f"{shown}; use {'a number' if kind == _INDEX else 'three numbers'} from 0 to 255"
            values[kind] = (int(red), int(green), int(blue))
    # in the default table, names have hyphens, but are often written otherwise
    class_name = cells[_CLASS] if cells[_CLASS] in names else cells[_CLASS].lower().replace(" ", "-")
    if class_name not in (*names, IGNORE):
        return f"{cells[_CLASS]!r} is not a class; use one of {', '.join((*names, IGNORE))}"
    # pixels that are ignored have no fine class
    return _Row(line, values, class_name, "" if class_name == IGNORE else cells.get(_NAME, ""))


def _contradictions(rows: Sequence[_Row], background: str) -> list[str]:
    problems = []
    seen: dict[tuple[str, object], object] = {}
    for row in rows:
        for kind, value in row.values.items():
            if seen.setdefault((kind, value), row.entry) != row.entry:
                shown = str(value[0]) if kind == _INDEX else ", ".join(map(str, value))
                problems.append(f"line {row.line}: {shown} has a different class or name in an earlier line")
        if row.name and seen.setdefault((_NAME, row.name), row.class_name) != row.class_name:
            problems.append(f"line {row.line}: {row.name!r} has a different class in an earlier line")
    if {IGNORE, background} <= {row.class_name for row in rows}:
        problems.append(f"{IGNORE} and {background} are both background in the masks; use only one of them")
    if (number := len({row.entry for row in rows})) > _MAX_ENTRIES:
        problems.append(f"{number} different combinations of class and name; the limit is {_MAX_ENTRIES}")
    return problems


def _legend(rows: Sequence[_Row], classes: ClassTable) -> MaskLegend:
    entries = {entry: number for number, entry in enumerate(dict.fromkeys(row.entry for row in rows))}
    fine = [entry for entry in entries if entry[1]]
    numbers = {entry: number for number, entry in enumerate(fine, start=1)}
    ids = [BACKGROUND_ID if class_name == IGNORE else classes.id_of(class_name) for class_name, _ in entries]
    return MaskLegend(
        colours={row.values["colour"]: entries[row.entry] for row in rows if "colour" in row.values},
        indices={row.values[_INDEX]: entries[row.entry] for row in rows if _INDEX in row.values},
        class_ids=np.array(ids, np.uint8),
        fine_ids=np.array([numbers.get(entry, 0) for entry in entries], np.uint8),
        fine_classes=tuple(FineClass(name, class_name) for class_name, name in fine),
        ignores=any(row.class_name == IGNORE for row in rows),
        classes=classes,
    )


def legend_of_labels(root: Path) -> MaskLegend:
    """Return the legend of nnU-Net's labels: every class keeps its id, and the ignore label stands for no label.

    Args:
        root: Folder of the raw dataset, with `dataset.json` and, for colours and roles, possibly `classes.csv`.

    Raises:
        ConfigurationError: If the classes are not valid.
    """
    classes = find_classes(root).classes
    description = read_json(root / DESCRIPTION_NAME, expected="Expected nnU-Net's description of a dataset.")
    ignores = IGNORE in description.get("labels", {})
    ids = range(len(classes) + ignores)
    return MaskLegend(
        colours={},
        indices={(value, value, value): value for value in ids},
        class_ids=np.arange(len(ids), dtype=np.uint8),
        fine_ids=np.zeros(len(ids), np.uint8),
        fine_classes=(),
        ignores=False,
        classes=classes,
        ignored=_free_colour(classes) if ignores else None,
    )


def _free_colour(classes: ClassTable) -> Colour:
    """Return the brightest grey that is not the colour of a class."""
    used = {entry.colour for entry in classes}
    return next((value, value, value) for value in range(255, -1, -1) if (value, value, value) not in used)


def write_legend(
    file: Path, pairs: Sequence[Pair], classes: ClassTable, *, max_pixels: int, progress: Progress | None = None
) -> tuple[int, int]:
    """Write a table with all colours of the masks, most frequent first; grey g counts as colour (g, g, g).

    The class is filled in for colours of the class table and left empty for others, and the name is left empty.

    Args:
        file: CSV file to write.
        pairs: Pairs whose masks are read.
        classes: Class table whose colours are recognised.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback.

    Returns:
        The number of colours, and the number of those without a class.

    Raises:
        DatasetError: If a mask cannot be read, or the masks have more than 1000 colours.
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
    known = {entry.colour: entry.name for entry in classes}
    rows = [(*colour, known.get(colour, ""), pixels, "") for colour, pixels in counts.most_common()]
    lines = [",".join(map(str, row)) for row in ((*_RGB, _CLASS, "pixels", _NAME), *rows)]
    write_text(file, "\n".join(lines) + "\n")
    return len(counts), len(counts.keys() - known.keys())


def is_grey(data: bytes, *, max_pixels: int) -> bool:
    """Return whether an image file is 8-bit grey, so that its values can be ids; no pixel is decoded.

    Raises:
        ImageError: If the header cannot be decoded.
    """
    return open_image(data, max_pixels=max_pixels).mode == "L"
