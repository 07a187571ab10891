"""uvicorn with header limits, header timeout and prompt shutdown."""

import asyncio
import logging
import os
import signal
import uuid
from http import HTTPStatus
from types import FrameType
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from droneseg.serving.error_responses import code_of_status
from droneseg.serving.middleware import REQUEST_ID
from droneseg.serving.schemas import ErrorDetail, ErrorResponse
from droneseg.serving.service import GRACEFUL_S, PredictionService

# HTTP/1.1 within bounds: heads, what follows a refusal, and errors below the application in the one body.
#
# httptools takes heads of any length for any time, and uvicorn reads on after an early answer for as long as somebody
# sends.

HEAD_BYTES = 64 * 1024
HEAD_S = 20.0
# a small body that is not wanted is read, so that the connection can be used again; a large one is cut off
_UNWANTED_BYTES = 64 * 2**20
_UNWANTED_S = 5.0


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _unwanted_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn says the same
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._set_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a head that goes on and on within one field."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """Go on with a head that is not too long."""
        self._in_head = False
        self._set_timer(None)
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > HEAD_BYTES:
            self._refuse_head()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Cut off what is sent on and on after the answer."""
        if self.transport.is_closing():
            return
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > _UNWANTED_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        """Forget the time that the rest of a refused body has."""
        if self.transport.is_closing():
            return
        self._set_timer(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give the rest of a body that was answered early a little time."""
        unfinished = self.cycle is not None and self.cycle.more_body
        super().on_response_complete()
        if unfinished:
            self._unwanted_bytes = 0
            self._set_timer(self.loop.call_later(_UNWANTED_S, self.transport.close))

    def send_400_response(self, msg: str) -> None:
        """Say in the one body that this is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _begin_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._set_timer(self.loop.call_later(HEAD_S, self._refuse_late_head))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _refuse_head(self) -> None:
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The head of the request is longer than {HEAD_BYTES:,} bytes."
        )

    def _refuse_late_head(self) -> None:
        if self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The head of the request did not arrive within {HEAD_S:g} s.")
        else:
            self.transport.close()  # who sent nothing is told nothing

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._in_head = False
        self._set_timer(None)
        if self.transport.is_closing():
            return
        detail = ErrorDetail(code=code_of_status(status), message=message)
        body = ErrorResponse(error=detail).model_dump_json().encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{REQUEST_ID.lower()}: {uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """Tells the service of the end at once, and not when the last connection has closed."""

    def __init__(self, config: uvicorn.Config, service: PredictionService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take nothing more in."""
        super().handle_exit(sig, frame)
        self._service.start_shutdown()


def run(app: ASGIApp, service: PredictionService, *, host: str, port: int) -> None:
    """Serve until a signal says to end, and end the process; what was admitted is finished first."""
    # uvicorn sends itself the signal again once it has ended in good order
    signal.signal(signal.SIGTERM, _end)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=LimitedHttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACEFUL_S,
        server_header=False,
    )
    _Server(config, service).run()


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End without a failure, and at once: a network that still computes would abort the interpreter's own end."""
    logging.shutdown()
    os._exit(0)


logger = logging.getLogger(__name__)


def configure_bentoml_server(service: PredictionService) -> None:
    """Bound the server of this process, which starts and does not listen yet; BentoML has no options for that.

    Args:
        service: What is told of the end at once, and not when the last connection has closed.
    """
    # where uvicorn has left itself by then
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):
        logger.warning("this is not uvicorn's process: heads and the time to end are not bounded")
        return
    server.config.http_protocol_class = LimitedHttpProtocol
    server.config.ws_protocol_class = None
    server.config.timeout_graceful_shutdown = GRACEFUL_S

    def end(number: int, frame: FrameType | None) -> None:
        server.handle_exit(number, frame)
        service.start_shutdown()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
