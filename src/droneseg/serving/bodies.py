"""Bodies of requests within bounds: their bytes are counted as they come, over all requests together."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers

from droneseg.core.errors import MalformedRequestError, QueueFullError, RequestTooLargeError

_BODIES = 8  # of the largest allowed size that may be in memory at once


class BodyMemory:
    """Bytes of all bodies that are being read or wait; what would exceed them is refused.

    Args:
        limit_bytes: Largest single body.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.free_bytes = _BODIES * limit_bytes

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """Count what one request takes, until the block ends."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.free_bytes += lease.taken_bytes


class Lease:
    """What one request has taken of the memory for bodies."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.taken_bytes = 0

    def require(self, headers: Headers) -> None:
        """Refuse a body by the size that its head states: before it is read.

        Raises:
            RequestTooLargeError: If it is above the limit.
            MalformedRequestError: If it is no number.
            QueueFullError: If there is no room for it now.
        """
        stated = headers.get("content-length", "0")
        if not stated.isdecimal():
            raise MalformedRequestError(f"Content-Length {stated[:20]!r} is no number.")
        self._require_limit(int(stated))
        self._require_free(int(stated))

    async def read(self, pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield a body piece by piece, and count it.

        Raises:
            RequestTooLargeError: If it grows above the limit, whatever its head states.
            QueueFullError: If all bodies together do.
        """
        async for piece in pieces:
            self._require_limit(self.taken_bytes + len(piece))
            self._require_free(len(piece))
            self.taken_bytes += len(piece)
            self._memory.free_bytes -= len(piece)
            yield piece

    def _require_limit(self, size_bytes: int) -> None:
        if size_bytes > self._memory.limit_bytes:
            raise RequestTooLargeError(
                f"The body is larger than {self._memory.limit_bytes:,} bytes. Send fewer or smaller files, or raise "
                "DRONESEG_MAX_UPLOAD_BYTES."
            )

    def _require_free(self, size_bytes: int) -> None:
        if size_bytes > self._memory.free_bytes:
            raise QueueFullError("Too many large requests at once. Send it again later.", retry_after_s=1.0)
