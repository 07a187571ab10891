"""CPU count, machine description, low-priority subprocesses, telemetry opt-out."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, str | int]:
    """Return the platform, the usable cores and Python's version."""
    return {"platform": platform.platform(), "cores": usable_cores(), "python": platform.python_version()}


_PACKAGE = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Let what is imported in the block find no telemetry: both have a stand-in for when its package is missing."""
    before = sys.modules.get(_PACKAGE)
    sys.modules[_PACKAGE] = None  # type: ignore[assignment]  # makes importing it fail
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]
        if before:
            sys.modules[_PACKAGE] = before
