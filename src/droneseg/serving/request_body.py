"""Request bodies: size limits, multipart, raw image, base64 JSON; deadlines and disconnects."""

import asyncio
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pybase64
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from droneseg.core.errors import (
    BrokenImageError,
    MalformedRequestError,
    MissingInputError,
    QueueFullError,
    RequestTooLargeError,
    SlowRequestError,
    TooLateError,
    TooManyFilesError,
    WrongContentTypeError,
)
from droneseg.core.images import EMPTY
from droneseg.core.settings import Settings
from droneseg.serving.schemas import PredictionResult, Upload
from droneseg.serving.service import PredictionService

_BODIES = 8  # of the largest allowed size that may be in memory at once


class UploadBudget:
    """Bytes of all bodies that are being read or wait; what would exceed them is refused.

    Args:
        limit_bytes: Largest single body.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.free_bytes = _BODIES * limit_bytes

    @contextmanager
    def lease(self) -> Iterator["Reservation"]:
        """Count what one request takes, until the block ends."""
        lease = Reservation(self)
        try:
            yield lease
        finally:
            self.free_bytes += lease.taken_bytes


class Reservation:
    """What one request has taken of the memory for bodies."""

    def __init__(self, memory: UploadBudget) -> None:
        self._memory = memory
        self.taken_bytes = 0

    def check_headers(self, headers: Headers) -> None:
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


FIELD = "data"
_MAX_FIELDS = 32
_MAX_TEXT_BYTES = 64 * 1024


class _Parser(MultiPartParser):
    """Starlette's, which does not notice by itself that the last boundary is missing.

    Names are always read as UTF-8, and not as what the head calls `charset`: browsers send UTF-8, and some of Python's
    decoders fail on names or return such that cannot be sent back.
    """

    ended = False

    @property
    def _charset(self) -> str:
        return "utf-8"

    @_charset.setter
    def _charset(self, stated: str) -> None:
        pass

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


async def read_files(request: Request, settings: Settings, lease: Reservation) -> list[Upload]:
    """Read the files in the field `data` of a multipart body.

    Raises:
        WrongContentTypeError: If it is no multipart body.
        MalformedRequestError: If it is cut off or not what it says.
        MissingInputError: If there is no file in that field.
        TooManyFilesError: If there are more files than allowed.
        RequestTooLargeError: If it has more bytes than allowed.
        SlowRequestError: If it does not arrive in time.
        QueueFullError: If all bodies together are too large.
        ClientDisconnect: If the client hangs up.
    """
    lease.check_headers(request.headers)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise WrongContentTypeError(f"Send multipart/form-data with the photograph as a file in the field {FIELD!r}.")
    parser = _Parser(
        request.headers,
        lease.read(request.stream()),
        max_files=settings.max_batch,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_TEXT_BYTES,
    )
    parser.spool_max_size = settings.max_upload_bytes  # never to the disk
    try:
        form = await read_with_timeout(parser.parse(), settings.timeout_seconds)
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


_BYTES = ("application/octet-stream", "text/plain")  # the second is what BentoML's client says of bytes
_JSON = "application/json"
_BASE64 = re.compile(r"^[A-Za-z0-9+/]*=*\Z")
_MOST_PARTS = 64  # base64 has none of their signs, and a tree of millions takes a hundred times its bytes


class Base64Image(BaseModel):
    """A photograph in JSON."""

    image_b64: str = Field(description="The file, in base64.")
    content_type: str = Field("image/jpeg", description="Its media type; what it is, is seen from its bytes.")


class Base64Request(BaseModel):
    """The body of `/predict_base64`."""

    req: Base64Image


def parse_image_body(content_type: str, body: bytes) -> bytes:
    """Return a body that is the file.

    Raises:
        WrongContentTypeError: If it says to be something else.
        BrokenImageError: If it is empty.
    """
    if content_type and not content_type.startswith("image/") and content_type not in _BYTES:
        raise WrongContentTypeError(f"Send the image itself, as image/..., not as {content_type[:40]}.")
    if not body:
        raise BrokenImageError(EMPTY)
    return body


def parse_base64_body(content_type: str, body: bytes) -> bytes:
    """Return the file that lies in JSON, see `Base64Request`.

    Raises:
        WrongContentTypeError: If the body or the file says to be something else.
        MalformedRequestError: If the body is no JSON, or the file not base64 to the letter.
        MissingInputError: If a field is missing or wrong.
    """
    if content_type != _JSON:
        raise WrongContentTypeError(f"Send {_JSON}.")
    if sum(body.count(sign) for sign in b"[{,") > _MOST_PARTS:
        raise MalformedRequestError("The JSON has more parts than a photograph needs.")
    try:
        image = Base64Request.model_validate_json(body).req
    except ValidationError as error:
        # without the input, which may be 30 MB
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if problems[0]["type"] == "json_invalid":
            raise MalformedRequestError("The body is no JSON.") from error
        said = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in problems]
        raise MissingInputError("; ".join(said)) from error
    if not image.content_type.lower().startswith("image/"):
        raise WrongContentTypeError(f"content_type is {image.content_type[:40]!r}; send an image.")
    try:
        # forty times as fast as Python's decoder, which also lets some wrong padding pass
        return pybase64.b64decode(image.image_b64, validate=True)
    except (binascii.Error, ValueError) as error:
        wrong = (
            "its padding is wrong" if _BASE64.match(image.image_b64) else "it has other characters, such as line breaks"
        )
        raise MalformedRequestError(f"image_b64 is not base64: {wrong}.") from error


_Result = TypeVar("_Result")


async def read_with_timeout(reading: Awaitable[_Result], timeout_s: float) -> _Result:
    """Return what reading a body gives.

    Raises:
        SlowRequestError: If it does not arrive in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError as error:
        raise SlowRequestError(f"The body did not arrive within {timeout_s:g} s.") from error


async def cancel_on_disconnect(answering: Awaitable[_Result], receive: Receive) -> _Result:
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


async def answers(service: PredictionService, uploads: Sequence[Upload]) -> list[PredictionResult | Exception]:
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


def _result(done: "asyncio.Future[PredictionResult]", timeout_s: float) -> PredictionResult | Exception:
    if done.cancelled():
        return TooLateError(f"It waited for {timeout_s:g} s and was not begun. Send it again later.")
    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, Exception):
        return error
    raise error
