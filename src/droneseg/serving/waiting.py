"""Waiting for answers without blocking the event loop, and no longer than allowed."""

import asyncio
from collections.abc import Sequence

from droneseg.core.errors import TooLateError
from droneseg.serving.answers import Answer, Upload
from droneseg.serving.service import PredictionService


async def answers(service: PredictionService, uploads: Sequence[Upload]) -> list[Answer | Exception]:
    """Return what became of each photograph, in order; none is computed any more for who stops waiting.

    What has not been begun when the time is over is taken out of the queue: work can be late although the queue
    thought otherwise, for instance behind a photograph that takes minutes to decode.

    Raises:
        NotReadyError: If there is no verified model.
        QueueFullError: If the queue has no room for them.
    """
    futures = await asyncio.to_thread(service.submit, uploads)
    waiting = [asyncio.wrap_future(future) for future in futures]
    timeout_s = service.settings.timeout_seconds
    try:
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
            for future in futures:
                future.cancel()  # does nothing to what was begun
            await asyncio.wait(waiting)
    finally:
        for future, wrapped in zip(futures, waiting, strict=True):
            future.cancel()
            wrapped.cancel()
    return [_result(wrapped, timeout_s) for wrapped in waiting]


def _result(done: "asyncio.Future[Answer]", timeout_s: float) -> Answer | Exception:
    if done.cancelled():
        return TooLateError(f"It waited for {timeout_s:g} s and was not begun. Send it again later.")
    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, Exception):
        return error
    raise error
