"""Bodies of requests within bounds: their bytes are counted before memory is spent on them."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers

from droneseg.core.errors import MalformedRequestError, QueueFullError, RequestTooLargeError

_BODIES = 8  # of the largest allowed size that may be in memory at once


class BodyMemory:
    """Bytes of all bodies that are being read or wait; a request that would exceed them is refused before it is read.

    Args:
        max_body_bytes: Largest single body.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._free = _BODIES * max_body_bytes

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Hold so many bytes while the block runs.

        Raises:
            QueueFullError: If they are not free.
        """
        if size_bytes > self._free:
            raise QueueFullError("Too many large requests at once. Send it again later.", retry_after_s=1.0)
        self._free -= size_bytes
        try:
            yield
        finally:
            self._free += size_bytes


def stated_size(headers: Headers, limit_bytes: int) -> int:
    """Return the size of a body as its head states it, or the limit if it does not.

    Raises:
        RequestTooLargeError: If it is above the limit.
        MalformedRequestError: If it is no number.
    """
    stated = headers.get("content-length")
    if stated is None:
        return limit_bytes
    if not stated.isdecimal():
        raise MalformedRequestError(f"Content-Length {stated[:20]!r} is no number.")
    if int(stated) > limit_bytes:
        raise _too_large(limit_bytes)
    return int(stated)


async def limited(pieces: AsyncIterable[bytes], limit_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield a body, and end with an error where it grows too large: what is sent in pieces states no size.

    Raises:
        RequestTooLargeError: If it does.
    """
    received = 0
    async for piece in pieces:
        received += len(piece)
        if received > limit_bytes:
            raise _too_large(limit_bytes)
        yield piece


def _too_large(limit_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The body is larger than {limit_bytes:,} bytes. Send fewer or smaller files, or raise "
        "DRONESEG_MAX_UPLOAD_BYTES."
    )
