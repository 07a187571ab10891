"""Waiting for conditions, with one limit for all tests."""

import time
from collections.abc import Callable

HANG_S = 600
"""Seconds until a waiting test fails: a guard against hanging, far longer than anything takes on a busy machine."""


def wait_until(condition: Callable[[], object], *, pause_s: float = 0.01) -> None:
    """Wait until a condition is true; fail after HANG_S."""
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, f"still waiting after {HANG_S} s"
        time.sleep(pause_s)
