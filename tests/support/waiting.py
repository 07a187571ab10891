"""Waiting for something to happen, without knowing how fast the machine is."""

import time
from collections.abc import Callable

HANG_S = 600
"""Seconds after which a test fails instead of waiting on: far more than anything takes on a busy machine."""


def wait_until(condition: Callable[[], object], *, pause_s: float = 0.01) -> None:
    """Call a function again and again until what it returns is true."""
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, f"still waiting after {HANG_S} s"
        time.sleep(pause_s)
