"""Atomic writes, atomic directory replacement, directory lock, JSON files of users."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from droneseg.core.errors import DatasetError, OutputExistsError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; create parent folders and replace an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        staging.write_bytes(data)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def read_json(file: Path, *, expected: str) -> Any:
    """Read a JSON file that a user passes.

    Args:
        file: File.
        expected: Sentence that says what the file must contain.

    Raises:
        DatasetError: If the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}. Pass an existing file. {expected}") from error
    except ValueError as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}. {expected}") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, in hexadecimal digits; a checksum, not a protection against forgery."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def atomic_directory(path: Path, *, marker: str, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` if the block succeeds and removed if it raises.

    An existing folder is kept until the new one has replaced it, and restored if that fails.

    Args:
        path: Folder to create.
        marker: Name of an entry that every folder of this kind contains. A folder without it was not
            written by droneseg and is never replaced.
        replace: Whether an existing folder of this kind may be replaced. An empty folder may always be replaced.

    Yields:
        An empty folder next to `path`.

    Raises:
        OutputExistsError: If `path` is in use; nothing is changed.
    """
    check_writable(path, marker=marker, replace=replace)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    staging, old = (path.with_name(f".{path.name}.{token}.{suffix}") for suffix in ("part", "old"))
    staging.mkdir()
    try:
        yield staging
        # another process may have created it meanwhile
        check_writable(path, marker=marker, replace=replace)
        _swap(staging, path, old)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            # removes empty folders only
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
    """Check that an output folder may be created at `path`. Call this before long work, so that no result is lost.

    Raises:
        OutputExistsError: If `path` is a file, or a non-empty folder that may not be replaced.
    """
    if not path.name or path.name == "..":
        raise OutputExistsError(f"{path} cannot be used as an output folder. Choose a new folder inside it.")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputExistsError(f"{path} is a file or a link and was not changed. Choose another path.")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / marker).exists():
        raise OutputExistsError(
            f"{path} was not created by this command (it has no {marker}) and was not changed. Choose another path."
        )
    if not replace:
        raise OutputExistsError(f"{path} already exists and was not changed. Use --force to replace it.")


def _swap(staging: Path, path: Path, old: Path) -> None:
    """Replace folder `path` with `staging`; keep the original as `old` until that has succeeded."""
    with ExitStack() as undo:
        if path.exists():
            os.replace(path, old)
            undo.callback(os.replace, old, path)
        os.replace(staging, path)
        undo.pop_all()
    shutil.rmtree(old, ignore_errors=True)
