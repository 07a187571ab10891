"""Atomic writes, atomic directory replacement, directory lock."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from droneseg.core.errors import OutputExistsError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step; the parent folders are made, an older file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` in one step."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_directory(path: Path, *, marker: str, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill that becomes `path` when the block ends well, and vanishes when it does not.

    What was there before is kept until the new folder stands in its place, and given back if that fails.

    Args:
        path: Where the folder shall be.
        marker: Name of something that every folder of this kind holds: one without it was made by somebody else and is
            never replaced.
        replace: Whether a folder of this kind may be replaced. An empty one always may.

    Yields:
        An empty folder beside `path`.

    Raises:
        OutputExistsError: If something is in the way. Nothing is touched then.
    """
    check_writable(path, marker=marker, replace=replace)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    aside, old = (path.with_name(f".{path.name}.{token}.{suffix}") for suffix in ("part", "old"))
    aside.mkdir()
    try:
        yield aside
        # somebody else may have been quicker
        check_writable(path, marker=marker, replace=replace)
        _swap(aside, path, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in made:
            # only those that nothing was put in
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def directory_lock(lock_file: Path) -> Iterator[None]:
    """Wait for an exclusive lock and hold it while the block runs.

    The operating system releases the lock when the process ends. The lock file remains, so place it where git and DVC
    ignore it.

    Args:
        lock_file: File that represents the directory; created if missing, together with its parents.
    """
    from filelock import FileLock  # takes 80 ms to import

    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_file):
        yield


def check_writable(path: Path, *, marker: str, replace: bool) -> None:
    """Refuse to write a folder over something: asked before work begins, so that none is in vain.

    Raises:
        OutputExistsError: If a file is in the way, or a folder that is not empty and may not be replaced.
    """
    if not path.name or path.name == "..":
        raise OutputExistsError(f"{path} cannot be replaced as a whole. Name a new folder in it.")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputExistsError(f"{path} is a file or a link and was left untouched. Name another place.")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / marker).exists():
        raise OutputExistsError(
            f"{path} holds something else (no {marker}) and was left untouched. Name another place."
        )
    if not replace:
        raise OutputExistsError(f"{path} is already there and was left untouched. Use --force to replace it.")


def _swap(aside: Path, path: Path, old: Path) -> None:
    """Put a folder in the place of another one; if that fails, the other one stays."""
    with ExitStack() as undo:
        if path.exists():
            os.replace(path, old)
            undo.callback(os.replace, old, path)
        os.replace(aside, path)
        undo.pop_all()
    shutil.rmtree(old, ignore_errors=True)
