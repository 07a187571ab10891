"""Boxes around objects of an image, such as people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from droneseg.core.errors import DatasetError

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
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}. Pass an existing file of boxes.") from error
    except ValueError as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}. {expected}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} is not a JSON object. {expected}")
    problems = [
        f"{stem}: {box!r} is {'a box, but not in a list: use [[x0, y0, x1, y1]]' if _is_box(box) else 'not a box'}"
        for stem, boxes in content.items()
        for box in (boxes if isinstance(boxes, list) and not _is_box(boxes) else [boxes])
        if box is boxes or not _is_box(box)
    ]
    if problems:
        raise DatasetError(f"{file} has invalid boxes. {expected}", problems)
    if not any(content.values()):
        raise DatasetError(f"{file} has no boxes. {expected}")
    return {stem: tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes) for stem, boxes in content.items()}


def _is_box(box: object) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    numbers = [edge for edge in box if isinstance(edge, int | float) and not isinstance(edge, bool)]
    return len(numbers) == 4 and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]
