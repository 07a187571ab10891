"""Artefacts that the processes of a test run share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled, once in a test run: further calls and processes wait for it.

    Nothing may be written into it afterwards; a test that has to takes a copy.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: Name of the artefact, unique in the run.
        make: Fills the folder it is given, which exists and is empty.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives each worker a folder inside that of the run
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, complete = run / "shared" / name, run / "shared" / f"{name}.complete"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
