"""Waiting for answers without blocking the event loop, and no longer than allowed."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from droneseg.core.errors import SlowRequestError, TooLateError
from droneseg.serving.answers import Answer, Upload
from droneseg.serving.service import PredictionService

_Result = TypeVar("_Result")


async def in_time(reading: Awaitable[_Result], timeout_s: float) -> _Result:
    """Return what reading a body gives.

    Raises:
        SlowRequestError: If it does not arrive in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError as error:
        raise SlowRequestError(f"The body did not arrive within {timeout_s:g} s.") from error


async def unless_gone(answering: Awaitable[_Result], receive: Receive) -> _Result:
    """Return an answer; if the client hangs up first, what is waited for is given up, and leaves the queue.

    Raises:
        ClientDisconnect: If it hung up.
    """
    waiting = asyncio.ensure_future(answering)
    gone = asyncio.create_task(_hangup(receive))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        gone.cancel()
        waiting.cancel()


async def _hangup(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
