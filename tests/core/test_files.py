"""Nothing half-written is ever seen, and nothing that was there is lost."""

from pathlib import Path

import pytest

from droneseg.core.errors import OutputExistsError
from droneseg.core.files import new_folder, write_bytes


def test_a_failing_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failing_block_leaves_the_older_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", replace=True):
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_an_existing_folder_is_not_touched_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(OutputExistsError, match="--force"), new_folder(tmp_path / "out"):
        pytest.fail("must not get here")
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_a_folder_is_replaced_on_request(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with new_folder(tmp_path / "out", replace=True) as aside:
        (aside / "new").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


def test_write_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "file", b"1")
    write_bytes(tmp_path / "a" / "file", b"2")
    assert [path.read_bytes() for path in (tmp_path / "a").iterdir()] == [b"2"]


def test_a_swap_that_fails_gives_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.txt").write_text("precious")
    real = os.replace

    def fail_once(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", replace=True):
        pass
    assert (tmp_path / "out/old.txt").read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputExistsError, match="is a file"), new_folder(tmp_path / "out", replace=True):
        pass
    assert (tmp_path / "out").read_text() == "precious"
