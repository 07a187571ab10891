"""Fine classes: subdivisions of the classes of the class table, such as roof and lawn, and their CSV table."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_text

FINE_MASKS_FOLDER = "fine_masks"
FINE_CLASSES_NAME = "fine_classes.csv"
MAX_FINE_CLASSES = 255
"""Largest id of a fine class; ids are stored in 8 bits, and 0 means unknown."""

_COLUMNS = ("id", "name", "class")


@dataclass(frozen=True)
class FineClass:
    """A fine class. Its id is its position in the table, counted from 1.

    Attributes:
        name: Name of the fine class, such as "roof".
        class_name: Name of the class that contains it, such as "obstacles".
    """

    name: str
    class_name: str


def write_fine_classes(file: Path, classes: Sequence[FineClass]) -> None:
    """Write a table of fine classes as CSV with the columns id, name and class."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((number, entry.name, entry.class_name) for number, entry in enumerate(classes, start=1))
    write_text(file, buffer.getvalue())


def read_fine_classes(file: Path, names: Sequence[str]) -> tuple[FineClass, ...]:
    """Read a table of fine classes.

    Args:
        file: CSV file.
        names: Names of the classes that contain them.

    Returns:
        The fine classes in the order of their ids.

    Raises:
        ConfigurationError: If the file cannot be read or is not such a table; all problems are listed.
    """
    try:
        rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")), skipinitialspace=True)
        found = [[(row.get(column) or "").strip() for column in _COLUMNS] for row in rows]
        columns = [(name or "").strip() for name in rows.fieldnames or ()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}. Save it as CSV in UTF-8.") from error
    if missing := [column for column in _COLUMNS if column not in columns]:
        raise ConfigurationError(f"{file} has no column {', '.join(missing)}. Its first line must be id,name,class.")
    problems = [f"{name!r}: {class_name!r} is not a class" for _, name, class_name in found if class_name not in names]
    ids = sorted(int(number) if number.isdecimal() else 0 for number, _, _ in found)
    if ids != list(range(1, len(ids) + 1)) or len(ids) > MAX_FINE_CLASSES:
        problems.append(f"the ids must be the numbers from 1 to the number of fine classes, at most {MAX_FINE_CLASSES}")
    if problems:
        raise ConfigurationError("\n".join([f"{file} is not a valid table:", *(f"  - {line}" for line in problems)]))
    return tuple(FineClass(name, class_name) for _, name, class_name in sorted(found, key=lambda row: int(row[0])))
