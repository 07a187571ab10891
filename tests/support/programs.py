"""Programs of the system that some tests need: found, or the test is skipped, or failed where all of it must run."""

import os
import shutil

import pytest


def require_program(*names: str) -> str:
    """Return the path of the first of these programs that is installed."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return found
    if os.environ.get("DRONESEG_REQUIRE_ALL"):
        pytest.fail(f"{names[0]} is not installed")
    pytest.skip(f"install {names[0]}")
