"""The body of a request, read within bounds: bytes, files and time are limited before memory is spent on them."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from droneseg.core.errors import (
    MalformedRequestError,
    MissingInputError,
    QueueFullError,
    RequestTooLargeError,
    SlowRequestError,
    TooManyFilesError,
    WrongContentTypeError,
)
from droneseg.core.settings import Settings
from droneseg.serving.answers import Upload

FIELD = "data"
_BODIES = 8  # of the largest allowed size that may be in memory at once
_MAX_FIELDS = 32
_MAX_TEXT_BYTES = 64 * 1024


class _Parser(MultiPartParser):
    """Starlette's, which does not notice by itself that the last boundary is missing."""

    ended = False

    async def parse(self) -> FormData:
        """Parse the body.

        Raises:
            MalformedRequestError: If it ends early.
        """
        self.stream = self._whole(self.stream)
        return await super().parse()

    def on_end(self) -> None:
        """Note that the last boundary was there."""
        self.ended = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for piece in stream:
            yield piece
        if not self.ended:
            raise MalformedRequestError("The multipart body ends before its last boundary.")


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


def stated_size(request: Request, settings: Settings) -> int:
    """Return the size of the body as its head states it, or the largest allowed one if it does not.

    Raises:
        RequestTooLargeError: If it is above the limit.
        MalformedRequestError: If it is no number.
    """
    stated = request.headers.get("content-length")
    if stated is None:
        return settings.max_upload_bytes
    if not stated.isdecimal():
        raise MalformedRequestError(f"Content-Length {stated[:20]!r} is no number.")
    if int(stated) > settings.max_upload_bytes:
        raise _too_large(settings)
    return int(stated)


async def read_files(request: Request, settings: Settings) -> list[Upload]:
    """Read the files in the field `data` of a multipart body.

    Raises:
        WrongContentTypeError: If it is no multipart body.
        MalformedRequestError: If it is cut off or not what it says.
        MissingInputError: If there is no file in that field.
        TooManyFilesError: If there are more files than allowed.
        RequestTooLargeError: If it has more bytes than allowed.
        SlowRequestError: If it does not arrive in time.
        ClientDisconnect: If the client hangs up.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise WrongContentTypeError(f"Send multipart/form-data with the photograph as a file in the field {FIELD!r}.")
    parser = _Parser(
        request.headers,
        _limited(request, settings),
        max_files=settings.max_batch,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_TEXT_BYTES,
    )
    parser.spool_max_size = settings.max_upload_bytes  # never to the disk
    try:
        async with asyncio.timeout(settings.timeout_seconds):
            form = await parser.parse()
    except TimeoutError as error:
        raise SlowRequestError(f"The body did not arrive within {settings.timeout_seconds:g} s.") from error
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise TooManyFilesError(
                f"There are more than {settings.max_batch} files. Send several requests."
            ) from error
        raise MalformedRequestError(f"The multipart body is malformed: {error.message}") from error
    files = [part for part in form.getlist(FIELD) if isinstance(part, UploadFile)]
    try:
        if not files:
            fields = ", ".join(sorted({repr(name[:40]) for name in form})) or "none"
            raise MissingInputError(f"There is no file in the field {FIELD!r}; fields sent: {fields}.")
        return [Upload(file.filename, file.file.read()) for file in files]
    finally:
        await form.close()


async def _limited(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    """Yield the body, and end with an error where it grows too large: what is sent in pieces states no size."""
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > settings.max_upload_bytes:
            raise _too_large(settings)
        yield piece


def _too_large(settings: Settings) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The body is larger than {settings.max_upload_bytes:,} bytes. Send fewer or smaller files, or raise "
        "DRONESEG_MAX_UPLOAD_BYTES."
    )
