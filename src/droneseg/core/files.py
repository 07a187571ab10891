"""Write aside, then rename: a reader never sees half a file or half a folder."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: Where the folder shall be.
        replace: Whether an existing folder may be replaced. An empty one always may.

    Yields:
        An empty folder beside `path`.

    Raises:
        OutputExistsError: If `path` exists, is not empty, and `replace` is false. Nothing is touched then.
    """
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"{path} is a file, not a folder, and was left untouched. Name another place.")
    if not replace and path.exists() and any(path.iterdir()):
        raise OutputExistsError(f"{path} is already there and was left untouched. Use --force to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    aside, old = (path.with_name(f".{path.name}.{token}.{suffix}") for suffix in ("part", "old"))
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(aside, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
