"""Artefacts that the processes of a test run share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is filled once in a test run; other processes that need it wait.

    The folder is read-only by convention: a test that writes takes a copy.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: Name of the artefact, unique in the run.
        make: Function that fills the empty folder it is called with.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives each process a folder of this name inside that of the run
    run = base.parent if base.name.startswith("popen-gw") else base
    folder, complete = run / "shared" / name, run / "shared" / f"{name}.complete"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
