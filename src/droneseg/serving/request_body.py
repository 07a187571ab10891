"""Request bodies: size limits, multipart forms, raw images, base64 JSON, options, read timeout and disconnects."""

from __future__ import annotations

import asyncio
import binascii
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from droneseg.core import errors
from droneseg.core.camera import GIVEN_HEIGHT_RANGE_M, GSD_RANGE_M
from droneseg.core.images import EMPTY_FILE
from droneseg.core.landing_grid import OPTION_CONFLICT
from droneseg.core.settings import Settings
from droneseg.serving.schemas import (
    MISNAMED_LENGTHS,
    MISNAMED_OPTIONS,
    LandingRequestOptions,
    PredictionOptions,
    Upload,
)

FILE_FIELD = "data"
_BUDGET_BODIES = 8  # size of the budget, in bodies of the largest allowed size
_MAX_FIELDS = 32
_MAX_TEXT_BYTES = 64 * 1024
_REMEDIES = {
    "gsd_m": "Send metres per pixel, {:g} to {:g}, for example 0.025.".format(*GSD_RANGE_M),
    "height_m": "Send the height above ground in metres, {:g} to {:g}, for example 40.".format(*GIVEN_HEIGHT_RANGE_M),
    "plain": "Send true or false.",
}
_JSON = "application/json"
_RAW_TYPES = ("application/octet-stream", "text/plain")  # BentoML's client sends bytes as text/plain
_BASE64 = re.compile(r"^[A-Za-z0-9+/]*=*\Z")
# limit on the characters that start JSON nodes: parsed nodes take 100 times their size, and base64 has none of these
_MAX_JSON_PARTS = 64

_Result = TypeVar("_Result")


class UploadBudget:
    """Memory budget shared by the request bodies that are being read or wait in the queue.

    Args:
        limit_bytes: Largest allowed size of one body.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.free_bytes = _BUDGET_BODIES * limit_bytes

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Yield the reservation for one request and release it at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.free_bytes += reservation.size_bytes


class Reservation:
    """Part of the upload budget taken by one request.

    Attributes:
        size_bytes: Number of bytes received so far.
    """

    def __init__(self, budget: UploadBudget) -> None:
        self._budget = budget
        self.size_bytes = 0

    def check_headers(self, headers: Headers) -> None:
        """Check the size in `Content-Length` before the body is read.

        Raises:
            RequestTooLargeError: If it exceeds the limit.
            MalformedRequestError: If it is not a number.
            QueueFullError: If it exceeds the remaining budget.
        """
        content_length = headers.get("content-length", "0")
        if not content_length.isdecimal():
            raise errors.MalformedRequestError(
                f"Invalid Content-Length: {content_length[:20]!r}. Send the size in bytes."
            )
        self._check_limit(int(content_length))
        self._check_budget(int(content_length))

    async def read(self, chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a body and check their total size, regardless of `Content-Length`.

        Raises:
            RequestTooLargeError: If the body exceeds the limit.
            QueueFullError: If all bodies together exceed the budget.
        """
        async for chunk in chunks:
            self._check_limit(self.size_bytes + len(chunk))
            self._check_budget(len(chunk))
            self.size_bytes += len(chunk)
            self._budget.free_bytes -= len(chunk)
            yield chunk

    def _check_limit(self, size_bytes: int) -> None:
        if size_bytes > self._budget.limit_bytes:
            raise errors.RequestTooLargeError(
                f"The body is larger than {self._budget.limit_bytes:,} bytes. Send fewer or smaller files, or raise "
                "DRONESEG_MAX_UPLOAD_BYTES."
            )

    def _check_budget(self, size_bytes: int) -> None:
        if size_bytes > self._budget.free_bytes:
            raise errors.QueueFullError("Too many large requests at the same time. Retry later.", retry_after_s=1.0)


async def read_files(
    request: Request,
    settings: Settings,
    reservation: Reservation,
    kind: type[PredictionOptions] = PredictionOptions,
) -> list[Upload]:
    """Read the files in the field `data` of a multipart form, and their options in fields of the same names.

    An option has one value for all files, or one value per file in their order; an empty value counts as missing.

    Args:
        request: Request with the form.
        settings: Limits of sizes, number of files and time.
        reservation: Reservation of the memory for the body.
        kind: Class of the options.

    Raises:
        WrongContentTypeError: If the body is not a multipart form.
        MalformedRequestError: If the body is truncated or malformed.
        MissingInputError: If the field has no file, or an option has a wrong value or number of values.
        TooManyFilesError: If there are more files than allowed.
        RequestTooLargeError: If the body is larger than allowed.
        SlowRequestError: If the body does not arrive in time.
        QueueFullError: If all bodies together exceed the budget.
        ClientDisconnect: If the client disconnects.
    """
    reservation.check_headers(request.headers)
    if media_type(request.headers) != "multipart/form-data":
        raise errors.WrongContentTypeError(
            f"The body is not a multipart form. Send multipart/form-data with the image as a file in {FILE_FIELD!r}."
        )
    parser = _FormParser(request.headers, reservation.read(request.stream()), settings)
    try:
        form = await read_with_timeout(parser.parse(), settings.timeout_seconds)
    except MultiPartException as error:
        raise errors.MalformedRequestError(f"The multipart body is malformed: {error.message}") from error
    try:
        return _uploads(form, kind)
    finally:
        await form.close()


def _uploads(form: FormData, kind: type[PredictionOptions]) -> list[Upload]:
    files = [part for part in form.getlist(FILE_FIELD) if isinstance(part, UploadFile)]
    if not files:
        names = ", ".join(sorted({repr(name[:40]) for name in form})) or "none"
        raise errors.MissingInputError(f"The field {FILE_FIELD!r} has no file; fields sent: {names}.")
    return [
        Upload(file.filename, file.file.read(), options)
        for file, options in zip(files, _form_options(form, len(files), kind), strict=True)
    ]


def _form_options(form: FormData, files: int, kind: type[PredictionOptions]) -> list[PredictionOptions]:
    """Return the options of each file; the message of an error lists all problems."""
    problems, columns = [], {}
    for name in (*kind.model_fields, *MISNAMED_OPTIONS, *MISNAMED_LENGTHS):
        values = [_text(value) for value in form.getlist(name)]
        if len(values) in (0, 1, files):
            columns[name] = values if len(values) == files else (values or [""]) * files
        else:
            problems.append(f"{name} has {len(values)} values for {files} files. Send one for all, or one per file.")
    options = []
    for row in zip(*columns.values(), strict=True):
        try:
            options.append(_validate_options(dict(zip(columns, row, strict=True)), kind))
        except ValidationError as error:
            problems += _describe_problems(error)
    if problems:
        raise errors.MissingInputError(" ".join(dict.fromkeys(problems)))
    return options


def _text(value: str | UploadFile) -> str:
    return f"file {value.filename}" if isinstance(value, UploadFile) else value.strip()


def _validate_options(texts: Mapping[str, str], kind: type[PredictionOptions]) -> PredictionOptions:
    """Return the options in these texts, by name; an empty text counts as missing."""
    return kind.model_validate_strings({name: text for name, text in texts.items() if text})


def _describe_problems(error: ValidationError) -> list[str]:
    """Return a message for each invalid field: its name, the problem and, for an option, its value and a remedy."""
    messages = []
    for item in error.errors(include_url=False, include_context=False):
        name = ".".join(map(str, item["loc"]))
        remedy = _REMEDIES.get(name.rpartition(".")[2])
        if remedy:
            messages.append(f"{name} is {str(item['input'])[:40]!r}. {remedy}")
        elif item["type"] == OPTION_CONFLICT:
            messages.append(item["msg"])
        else:
            messages.append(f"{name or 'body'}: {item['msg']}")
    return messages


class _FormParser(MultiPartParser):
    """Multipart parser that keeps files in memory, limits their number and detects a missing last boundary.

    It overrides starlette's methods `parse`, `on_part_end` and `on_end` and relies on its attributes `stream`,
    `items` and `spool_max_size`, which are public but not documented.
    """

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], settings: Settings) -> None:
        # the last charset wins: browsers send UTF-8, and some other charsets cannot decode every file name
        content_type = f"{headers['content-type']}; charset=utf-8"
        super().__init__(
            Headers({"content-type": content_type}),
            stream,
            max_files=math.inf,  # counted in `on_part_end`
            max_fields=_MAX_FIELDS + len(PredictionOptions.model_fields) * settings.max_batch,
            max_part_size=_MAX_TEXT_BYTES,
        )
        self.spool_max_size = settings.max_upload_bytes  # never written to disk
        self._max_batch = settings.max_batch
        self._files = 0
        self._ended = False

    async def parse(self) -> FormData:
        """Parse the form.

        Raises:
            MalformedRequestError: If the body ends before its last boundary.
            TooManyFilesError: If there are more files than allowed.
        """
        self.stream = self._check_end(self.stream)
        return await super().parse()

    def on_part_end(self) -> None:
        """Count the files."""
        super().on_part_end()
        self._files += isinstance(self.items[-1][1], UploadFile)
        if self._files > self._max_batch:
            raise errors.TooManyFilesError(f"The request has more than {self._max_batch} files. Send several requests.")

    def on_end(self) -> None:
        """Record that the last boundary arrived."""
        self._ended = True

    async def _check_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise errors.MalformedRequestError(
                "The multipart body ends before its last boundary. Send the complete body."
            )


class Base64Image(PredictionOptions):
    """JSON request with a base64-encoded image and its options."""

    image_b64: str = Field(description="Base64-encoded image file.")
    content_type: str = Field("image/jpeg", description="Media type. The format is detected from the file itself.")

    def decode(self) -> Upload:
        """Return the image file and its options.

        Raises:
            MalformedRequestError: If the text is not valid base64.
        """
        options = PredictionOptions(gsd_m=self.gsd_m, height_m=self.height_m, plain=self.plain)
        return Upload(None, decode_base64(self.image_b64), options)


class Base64LandingImage(Base64Image, LandingRequestOptions):
    """JSON request with a base64-encoded image, its options, and the requirements for landing sites."""

    def decode(self) -> Upload:
        """Return the image file and its options; see `Base64Image`."""
        values = {name: getattr(self, name) for name in LandingRequestOptions.model_fields}
        return Upload(None, decode_base64(self.image_b64), LandingRequestOptions(**values))


class Base64Request(BaseModel):
    """Body of `/predict_base64`."""

    req: Base64Image


class Base64LandingRequest(BaseModel):
    """Body of `/landing_sites` of the BentoML service."""

    req: Base64LandingImage


def header_of(option: str) -> str:
    """Return the header of an option, for example X-Height-M."""
    return f"X-{option.replace('_', '-').title()}"


def media_type(headers: Headers) -> str:
    """Return the media type in `Content-Type` in lower case without parameters; empty if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_image_body(headers: Headers, body: bytes, kind: type[PredictionOptions] = PredictionOptions) -> Upload:
    """Return the body as an image file, with the options in the headers; `kind` is the class of the options.

    Raises:
        WrongContentTypeError: If the media type is not that of an image.
        MissingInputError: If an option has a wrong value.
        BrokenImageError: If the body is empty.
    """
    content_type = media_type(headers)
    if content_type and not content_type.startswith("image/") and content_type not in _RAW_TYPES:
        raise errors.WrongContentTypeError(
            f"The content type is {content_type[:40]}. Send the image file itself, for example as image/jpeg."
        )
    texts = {name: ", ".join(headers.getlist(header_of(name))) for name in kind.model_fields}
    try:
        options = _validate_options(texts, kind)
    except ValidationError as error:
        raise errors.MissingInputError(" ".join(_describe_problems(error))) from error
    return _require_content(Upload(None, body, options))


def parse_base64_body(
    headers: Headers, body: bytes, kind: type[Base64Request | Base64LandingRequest] = Base64Request
) -> Upload:
    """Return the image file and the options in a JSON body; `kind` is the class of the body.

    Raises:
        WrongContentTypeError: If the body is not JSON or the file is not an image, by their media types.
        MalformedRequestError: If the body is not valid JSON or the file not valid base64.
        MissingInputError: If a field is missing or has a wrong type or value.
        BrokenImageError: If the file is empty.
    """
    content_type = media_type(headers)
    if content_type != _JSON:
        problem = f"The content type is {content_type[:40]}" if content_type else "The body has no content type"
        raise errors.WrongContentTypeError(f"{problem}. Send {_JSON}.")
    if sum(body.count(character) for character in b"[{,") > _MAX_JSON_PARTS:
        names = ", ".join((Base64LandingImage if kind is Base64LandingRequest else Base64Image).model_fields)
        raise errors.MalformedRequestError(f"The JSON body has too many elements. Send only {names}.")
    image = _validate_base64_request(body, kind)
    if not image.content_type.lower().startswith("image/"):
        raise errors.WrongContentTypeError(
            f"content_type is {image.content_type[:40]!r}. Send the media type of an image."
        )
    return _require_content(image.decode())


def _require_content(upload: Upload) -> Upload:
    if not upload.data:
        raise errors.BrokenImageError(EMPTY_FILE)
    return upload


def _validate_base64_request(body: bytes, kind: type[Base64Request | Base64LandingRequest]) -> Base64Image:
    try:
        return kind.model_validate_json(body).req
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] == "json_invalid":
            raise errors.MalformedRequestError("The body is not valid JSON. Send a JSON object.") from error
        raise errors.MissingInputError("; ".join(_describe_problems(error))) from error


def decode_base64(text: str) -> bytes:
    """Decode base64 strictly.

    Raises:
        MalformedRequestError: If the text has invalid characters or wrong padding.
    """
    import pybase64  # 40 times as fast as the standard library, which also accepts some wrong padding; extra `bento`

    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        problem = "wrong padding" if _BASE64.match(text) else "invalid characters, such as line breaks"
        raise errors.MalformedRequestError(f"image_b64 is not valid base64: {problem}.") from error


async def read_with_timeout(reading: Awaitable[_Result], timeout_s: float) -> _Result:
    """Wait at most `timeout_s` seconds for a body to be read.

    Raises:
        SlowRequestError: If the body does not arrive in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError as error:
        raise errors.SlowRequestError(
            f"The body did not arrive within {timeout_s:g} s. Send a smaller body or use a faster connection."
        ) from error


async def cancel_on_disconnect(awaitable: Awaitable[_Result], receive: Receive) -> _Result:
    """Await a result and cancel its computation if the client disconnects.

    Raises:
        ClientDisconnect: If the client disconnects first.
    """
    computation = asyncio.ensure_future(awaitable)
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((computation, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not computation.done():
            raise ClientDisconnect
        return computation.result()
    finally:
        disconnect.cancel()
        computation.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
