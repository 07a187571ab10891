"""Atomic writes: readers never see partial files, and existing data is never lost."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from droneseg.core.errors import OutputExistsError
from droneseg.core.files import atomic_directory, directory_lock, write_bytes
from support.waiting import HANG_S


def test_failing_block_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out", marker="kind.txt") as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_failing_block_keeps_the_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kind.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out", marker="kind.txt", replace=True):
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kind.txt"]


def test_existing_folder_is_not_replaced_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kind.txt").write_text("old")
    with pytest.raises(OutputExistsError, match="--force"), atomic_directory(tmp_path / "out", marker="kind.txt"):
        pytest.fail("must not get here")
    assert (tmp_path / "out" / "kind.txt").read_text() == "old"


def test_existing_folder_is_replaced_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kind.txt").write_text("old")
    with atomic_directory(tmp_path / "out", marker="kind.txt", replace=True) as aside:
        (aside / "new").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


def test_write_replaces_a_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "file", b"1")
    write_bytes(tmp_path / "a" / "file", b"2")
    assert [path.read_bytes() for path in (tmp_path / "a").iterdir()] == [b"2"]


def test_failing_swap_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    (tmp_path / "out").mkdir()
    (tmp_path / "out/kind.txt").write_text("precious")
    real = os.replace

    def fail_once(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "out", marker="kind.txt", replace=True):
        pass
    assert (tmp_path / "out/kind.txt").read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with (
        pytest.raises(OutputExistsError, match="is a file"),
        atomic_directory(tmp_path / "out", marker="kind.txt", replace=True),
    ):
        pass
    assert (tmp_path / "out").read_text() == "precious"


def test_folder_without_the_marker_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with (
        pytest.raises(OutputExistsError, match=r"was not created by this command \(it has no kind\.txt\)"),
        atomic_directory(tmp_path / "out", marker="kind.txt", replace=True),
    ):
        pytest.fail("must not get here")
    assert (tmp_path / "out/thesis.txt").read_text() == "precious"


def test_folder_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="--force"), atomic_directory(tmp_path / "out", marker="kind.txt"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/kind.txt").write_text("first")
    assert (tmp_path / "out/kind.txt").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_failing_block_removes_created_parents(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "a/b/out", marker="kind.txt"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", "x/.."])
def test_path_without_a_name_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExistsError, match="Choose a new folder"), atomic_directory(Path(name), marker="kind.txt"):
        pytest.fail("must not get here")


def test_directory_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "tmp" / "test.lock"
    script = (
        "import sys, time; from pathlib import Path; from droneseg.core.files import directory_lock\n"
        "with directory_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiting = threading.Thread(target=_acquire, args=(lock,))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        holder.kill()
        waiting.join(HANG_S)
        assert not waiting.is_alive()


def _acquire(lock: Path) -> None:
    with directory_lock(lock):
        pass
