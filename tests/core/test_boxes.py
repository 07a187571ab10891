"""Boxes are read by stem, and malformed ones are listed."""

import json
from pathlib import Path

import pytest

from droneseg.core.boxes import read_boxes
from droneseg.core.errors import DatasetError


def test_boxes_are_read_by_stem(tmp_path: Path) -> None:
    file = tmp_path / "people.json"
    file.write_text(json.dumps({"a": [[1, 2, 3, 4.5]], "b": []}))
    assert read_boxes(file) == {"a": ((1, 2, 3, 4.5),), "b": ()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "people.json cannot be read: No such file or directory. Pass an existing file"),
        ("{}", "people.json has no boxes. Expected an object"),
        ('{"a": []}', "people.json has no boxes."),
        ('{"a": [0, 0, 5, 5]}', "a: [0, 0, 5, 5] is a box, but not in a list: use [[x0, y0, x1, y1]]"),
    ],
)
def test_missing_boxes_are_an_error(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "people.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DatasetError) as raised:
        read_boxes(file)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2


@pytest.mark.parametrize("content", ["[]", "{", '{"a": [[1, 2, 3]], "b": [[3, 0, 1, 1]], "c": [[0, 0, 1, 1]]}'])
def test_malformed_boxes_are_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "people.json"
    file.write_text(content)
    with pytest.raises(DatasetError) as raised:
        read_boxes(file)
    assert str(file) in str(raised.value)
    problems = str(raised.value).splitlines()[1:]
    assert [line.strip(" -").partition(":")[0] for line in problems] == (["a", "b"] if '"a"' in content else [])
