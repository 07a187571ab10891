"""Multipart bodies, read within bounds of bytes, files and time."""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from droneseg.core.errors import (
    MalformedRequestError,
    MissingInputError,
    TooManyFilesError,
    WrongContentTypeError,
)
from droneseg.core.settings import Settings
from droneseg.serving.answers import Upload
from droneseg.serving.bodies import Lease
from droneseg.serving.waiting import in_time

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


async def read_files(request: Request, settings: Settings, lease: Lease) -> list[Upload]:
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
    lease.require(request.headers)
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
        form = await in_time(parser.parse(), settings.timeout_seconds)
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
