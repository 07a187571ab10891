"""Boxes around objects of an image, such as people."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from droneseg.core.errors import DatasetError
from droneseg.core.files import read_json

Box: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels; the right and the lower edge are exclusive."""

Boxes: TypeAlias = Mapping[str, tuple[Box, ...]]
"""Boxes by the stem of their image."""


def read_boxes(file: Path) -> Boxes:
    """Read boxes from a JSON object, `{stem: [[x0, y0, x1, y1], ...]}`.

    Raises:
        DatasetError: If the file cannot be read or has no boxes, or a box is not four numbers from 0 with x0 < x1 and
            y0 < y1; the error lists all such boxes.
    """
    expected = "Expected an object of boxes by image, {stem: [[x0, y0, x1, y1], ...]}, with x0 < x1 and y0 < y1."
    content = read_json(file, expected=expected)
    if not isinstance(content, dict):
        raise DatasetError(f"{file} is not a JSON object. {expected}")
    problems = [f"{stem}: {problem}" for stem, boxes in content.items() for problem in _problems(boxes)]
    if problems:
        raise DatasetError(f"{file} has invalid boxes. {expected}", problems)
    if not any(content.values()):
        raise DatasetError(f"{file} has no boxes. {expected}")
    return {stem: tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes) for stem, boxes in content.items()}


def _problems(boxes: object) -> list[str]:
    """Return what is wrong with the boxes of an image."""
    if _is_box(boxes):
        return [f"{boxes!r} is a box, but not in a list: use [[x0, y0, x1, y1]]"]
    return [f"{box!r} is not a box" for box in (boxes if isinstance(boxes, list) else [boxes]) if not _is_box(box)]


def _is_box(box: object) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    numbers = [edge for edge in box if isinstance(edge, int | float) and not isinstance(edge, bool)]
    return len(numbers) == 4 and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]
