"""Class tables in files: `classes.csv` of a dataset, and `dataset.json` of nnU-Net, with its order of channels."""

import colorsys
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from droneseg.core.classes import (
    BACKGROUND_ID,
    DEFAULT_CLASSES,
    IGNORE,
    ClassTable,
    Role,
    SegmentationClass,
    table_problems,
)
from droneseg.core.errors import ConfigurationError, DronesegError
from droneseg.core.files import read_json, write_text
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.masks import (
    Colour,
    ColourTable,
    Mask,
    MaskKind,
    UnknownColour,
    UnknownPolicy,
    class_colours,
    decode_colours,
    decode_ids,
    encode_palette,
)

CLASSES_NAME = "classes.csv"
"""File in a dataset's folder with its class table."""
DESCRIPTION_NAME = "dataset.json"

_RGB = (0, 1, 2)
_CHANNELS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_COLUMNS = ("id", "name", "r", "g", "b", "role")
_LITTLE_BACKGROUND = 0.001  # single pixels of unknown colour
_GOLDEN_ANGLE = 0.618034  # turns of the hue from colour to colour, which keeps all of them apart


@dataclass(frozen=True)
class MaskColours:
    """Meaning of the colours of masks.

    Attributes:
        classes: Class table.
        ignored: Colours of pixels that have no label.
        ignored_ids: Values of such pixels in masks of class ids, besides the ignore label.
    """

    classes: ClassTable = DEFAULT_CLASSES
    ignored: tuple[Colour, ...] = ()
    ignored_ids: tuple[int, ...] = ()

    @property
    def table(self) -> ColourTable:
        """Class id by packed colour; the ignore label for ignored colours."""
        table = class_colours(self.classes)
        if not self.ignored:
            return table
        table = table.copy()
        for red, green, blue in self.ignored:
            table[red | green << 8 | blue << 16] = self.classes.ignore_label
        return table

    def decode(
        self,
        data: bytes,
        kind: MaskKind,
        *,
        unknown: UnknownPolicy = "fail",
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> tuple[Mask, list[UnknownColour]]:
        """Decode the content of a mask file; see `core.masks`. Pixels without a label get the ignore label.

        Class ids may contain the ignore label if pixels without a label have a colour; nnU-Net's labels always may.
        """
        if kind == "colours":
            return decode_colours(data, self.table, unknown=unknown, max_pixels=max_pixels)
        accepts_label = kind == "labels" or bool(self.ignored)
        ignored = (*self.ignored_ids, *((self.classes.ignore_label,) if accepts_label else ()))
        return decode_ids(data, self.classes, ignored=ignored, max_pixels=max_pixels), []

    def read(self, path: Path, kind: MaskKind, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
        """Read a mask from a file; see `decode`. Error messages start with the path."""
        try:
            return self.decode(path.read_bytes(), kind, max_pixels=max_pixels)[0]
        except DronesegError as error:
            raise type(error)(f"{path}: {error}") from error


def encode_colours(mask: Mask, colours: MaskColours) -> bytes:
    """Encode class ids as a palette PNG of class colours; the ignore label gets the first of the ignored colours.

    Args:
        mask: Class ids or the ignore label, shape (H, W), dtype uint8.
        colours: Class table and ignored colours.

    Raises:
        InvalidIdsError: If a value is neither a class id nor, if there is a colour for it, the ignore label.
    """
    return encode_palette(mask, [*(entry.colour for entry in colours.classes), *colours.ignored[:1]])


def read_classes(file: Path) -> MaskColours:
    """Read a class table from a CSV file with the columns id, name, r, g, b and, optionally, role.

    The roles are landing, soft, obstacle, water and moving. A line with the role ignore is the colour of pixels that
    have no label; it has no name. Its id, if it has one, is their value in masks of class ids.

    Raises:
        ConfigurationError: If the file cannot be read or is not such a table; all problems are listed.
    """
    entries, ignored, problems = list[SegmentationClass](), list[tuple[Colour, int | None]](), list[str]()
    for line, cells in _rows(file):
        try:
            if _role(cells) == IGNORE:
                ignored.append((_colour(cells), _ignored_id(cells["id"])))
            else:
                entries.append(_entry(cells))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    entries.sort(key=lambda entry: entry.id)
    problems += _problems_of_ignored(ignored, entries)
    if problems := problems or table_problems(entries):
        raise ConfigurationError("\n".join([f"{file} is not a valid class table:", *(f"  - {p}" for p in problems)]))
    return MaskColours(
        ClassTable(tuple(entries)),
        tuple(dict.fromkeys(colour for colour, _ in ignored)),
        tuple(dict.fromkeys(value for _, value in ignored if value is not None)),
    )


def _ignored_id(value: str) -> int | None:
    if value and not (value.isdecimal() and int(value) < 256):
        raise ValueError(f"{value!r} is not an id; use a number from 0 to 255, or leave it empty")
    return int(value) if value else None


def _problems_of_ignored(
    ignored: Sequence[tuple[Colour, int | None]], entries: Sequence[SegmentationClass]
) -> list[str]:
    """Return a problem for each colour or id of pixels without a label that is also that of a class."""
    colours, values = {colour for colour, _ in ignored}, {value for _, value in ignored if value is not None}
    return [
        *(
            f"the colour {e.colour} has the role {IGNORE}, but is also that of {e.name}"
            for e in entries
            if e.colour in colours
        ),
        *(f"the id {e.id} has the role {IGNORE}, but is also that of {e.name}" for e in entries if e.id in values),
    ]


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the cells, by column, of every line of a class table that is not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}. Save it as CSV in UTF-8.") from error
    # spreadsheets separate columns by semicolons where the comma is the decimal sign
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    columns = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if missing := [name for name in _COLUMNS[:-1] if name not in columns]:
        raise ConfigurationError(f"{file} has no column {', '.join(missing)}. Its first line is {','.join(_COLUMNS)}.")
    for row in rows:
        cells = {name: (row[columns[name]] or "").strip() for name in _COLUMNS if name in columns}
        if any(cells.values()):
            yield rows.line_num, cells


def _colour(cells: Mapping[str, str]) -> Colour:
    channels = [cells[name] for name in "rgb"]
    if not all(value.isdecimal() and int(value) < 256 for value in channels):
        raise ValueError(f"{', '.join(channels)} is not a colour; use three numbers from 0 to 255")
    red, green, blue = map(int, channels)
    return red, green, blue


def _role(cells: Mapping[str, str]) -> str:
    return cells.get("role", "").lower()


def _entry(cells: Mapping[str, str]) -> SegmentationClass:
    if not cells["id"].isdecimal():
        raise ValueError(f"{cells['id']!r} is not an id; use a number from 0")
    if not cells["name"]:
        raise ValueError("the name is missing")
    role = _role(cells)
    if role and role not in set(Role):
        raise ValueError(f"{role!r} is not a role; use {', '.join((*Role, IGNORE))}, or leave it empty")
    return SegmentationClass(int(cells["id"]), cells["name"], _colour(cells), Role(role) if role else None)


def write_classes(file: Path, colours: MaskColours) -> None:
    """Write a class table as CSV, in the format that `read_classes` reads."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((entry.id, entry.name, *entry.colour, entry.role or "") for entry in colours.classes)
    # it does not matter which colour has which id
    rows = zip_longest(colours.ignored_ids, colours.ignored, fillvalue=None)
    writer.writerows(
        ("" if value is None else value, "", *(colour or colours.ignored[0]), IGNORE) for value, colour in rows
    )
    write_text(file, buffer.getvalue())


def find_classes(folder: Path) -> MaskColours:
    """Return the class table of a dataset: of `classes.csv`, else of nnU-Net's `dataset.json`, else the default one.

    Raises:
        ConfigurationError: If the file is not a valid table.
    """
    if (folder / CLASSES_NAME).is_file():
        return read_classes(folder / CLASSES_NAME)
    description = folder / DESCRIPTION_NAME
    if description.is_file():
        content = read_json(description, expected="Expected nnU-Net's description of a dataset.")
        try:
            return MaskColours(classes_of(content))
        except ConfigurationError as error:
            raise ConfigurationError(f"{description}: {error}") from error
    return MaskColours()


def classes_of(description: Mapping[str, Any]) -> ClassTable:
    """Return the class table of nnU-Net's description of a dataset.

    droneseg stores the whole table. A description of another origin has only names: classes with the names of the
    default table are that table; others get different colours, and no roles.

    Raises:
        ConfigurationError: If the labels are not classes with ids from 0, or are regions.
    """
    stored = description.get("droneseg", {}).get("classes")
    try:
        return ClassTable(tuple(map(_stored, stored))) if stored else _table_of_labels(description.get("labels", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"the classes are not valid: {error}") from error


def _table_of_labels(all_labels: Mapping[str, Any]) -> ClassTable:
    labels = {str(name): value for name, value in all_labels.items() if name != IGNORE}
    if regions := [name for name, value in labels.items() if not isinstance(value, int)]:
        raise ValueError(f"{', '.join(regions)} are regions, not classes")
    names = sorted(labels, key=lambda name: labels[name])
    if tuple(names) == DEFAULT_CLASSES.names and [labels[name] for name in names] == list(range(len(names))):
        return DEFAULT_CLASSES
    colours = distinct_colours(len(names))
    return ClassTable(
        tuple(SegmentationClass(labels[name], name, colour) for name, colour in zip(names, colours, strict=True))
    )


def has_background(description: Mapping[str, Any]) -> bool:
    """Return whether pixels of nnU-Net's dataset are labelled as background; True if the description does not say."""
    return float(description.get("droneseg", {}).get("background_share", 1.0)) >= _LITTLE_BACKGROUND


def has_labels_only(description: Mapping[str, Any]) -> bool:
    """Return whether nnU-Net's description of a dataset has names and ids of the classes, but no colours and roles."""
    return not description.get("droneseg", {}).get("classes")


def describe_classes(classes: ClassTable) -> list[dict[str, Any]]:
    """Return a class table as it is stored in nnU-Net's description of a dataset."""
    return [
        {"id": entry.id, "name": entry.name, "colour": list(entry.colour), "role": entry.role and entry.role.value}
        for entry in classes
    ]


def _stored(entry: Mapping[str, Any]) -> SegmentationClass:
    red, green, blue = (int(value) for value in entry["colour"])
    role = entry.get("role")
    return SegmentationClass(int(entry["id"]), str(entry["name"]), (red, green, blue), Role(role) if role else None)


def distinct_colours(count: int) -> Sequence[Colour]:
    """Return different colours: black for the background, then saturated ones of different hues."""
    colours: list[Colour] = [(0, 0, 0)] if count > BACKGROUND_ID else []
    for index in range(count - 1):
        brightness = 0.95 if index % 2 == 0 else 0.7
        red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_ANGLE % 1, 0.8, brightness)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def channel_order(description: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the index of the colour (red, green, blue) of each channel, by the names in nnU-Net's description.

    It only matters if each channel is a file of its own: an RGB file always has the order red, green, blue. Other names
    than those of the three colours stand for this order, too.
    """
    names = [str(name).lower() for name in description.get("channel_names", {}).values()]
    order = [_CHANNELS.get(name, -1) for name in names]
    if sorted(order) != list(_RGB):
        return _RGB
    first, second, third = order
    return first, second, third
