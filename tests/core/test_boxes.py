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


@pytest.mark.parametrize("content", ["[]", "{", '{"a": [[1, 2, 3]], "b": [[3, 0, 1, 1]], "c": [[0, 0, 1, 1]]}'])
def test_malformed_boxes_are_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "people.json"
    file.write_text(content)
    with pytest.raises(DatasetError) as raised:
        read_boxes(file)
    assert str(file) in str(raised.value)
    problems = str(raised.value).splitlines()[1:]
    assert [line.strip(" -").partition(":")[0] for line in problems] == (["a", "b"] if '"a"' in content else [])
