"""System programs that tests need: a test is skipped without them, or fails with DRONESEG_REQUIRE_ALL."""

import os
import shutil
from pathlib import Path

import pytest


def require_program(*names: str) -> str:
    """Return the path of the first of these programs that is installed; skip or fail the test without any."""
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program:
        return program
    if os.environ.get("DRONESEG_REQUIRE_ALL"):
        pytest.fail(f"{names[0]} is not installed")
    pytest.skip(f"install {names[0]}")


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
