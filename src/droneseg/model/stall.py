"""Gives up on a store that says nothing any more: a cloud's own client goes on trying for minutes, and tells nobody."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

STALL_S = 20.0


class Pulse:
    """When something was last heard."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def beat(self) -> None:
        """Something was."""
        self._last_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._last_s


async def unless_silent(work: Awaitable[T], pulse: Pulse) -> T:
    """Wait for work, as long as something is heard of it now and then.

    Raises:
        TimeoutError: If nothing was for `STALL_S`; the work is ended then.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=0.2)
            if not task.done() and pulse.silent_s > STALL_S:
                raise TimeoutError(f"nothing was heard for {STALL_S:g} s")
        return task.result()
    finally:
        task.cancel()


def call(filesystem: Any, name: str, *arguments: Any, pulse: Pulse, **options: Any) -> Any:
    """Call a method of an fsspec filesystem, and give it up if nothing is heard of it; a local one is just called.

    Raises:
        TimeoutError: As `unless_silent` does.
    """
    if not getattr(filesystem, "async_impl", False):
        return getattr(filesystem, name)(*arguments, **options)
    from fsspec.asyn import sync

    async def guarded() -> Any:
        return await unless_silent(getattr(filesystem, f"_{name}")(*arguments, **options), pulse)

    return sync(filesystem.loop, guarded)
