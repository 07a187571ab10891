"""What the machine is, and how much of it this process may use."""

import os
import platform


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, str | int]:
    """Return the platform, the usable cores and Python's version."""
    return {"platform": platform.platform(), "cores": usable_cores(), "python": platform.python_version()}
