"""uvicorn with header limits, a header timeout and a prompt shutdown.

With httptools, uvicorn has no limit on the size of headers and no header timeout, and it keeps reading a body after an
early response. Reverse proxies, such as nginx or Cloud Run's, set similar limits; these are for a service without one.
"""

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

# not public: because of this class, its attributes and its callbacks, pyproject.toml has an upper bound for uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from droneseg.serving.error_responses import status_code_name
from droneseg.serving.middleware import REQUEST_ID
from droneseg.serving.schemas import ErrorDetail, ErrorResponse
from droneseg.serving.service import GRACEFUL_S, PredictionService

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
HEADER_TIMEOUT_S = 20.0
# the rest of a rejected body is read up to these limits, so that the client can reuse the connection
_MAX_DISCARDED_BYTES = 64 * 2**20
_DISCARD_TIMEOUT_S = 5.0


def run(app: ASGIApp, service: PredictionService, *, host: str, port: int) -> None:
    """Serve until a signal arrives, finish the accepted requests and end the process."""
    # uvicorn raises the signal again after its shutdown
    signal.signal(signal.SIGTERM, _exit)
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


def configure_bentoml_server(service: PredictionService) -> None:
    """Apply the header limits and the shutdown behaviour to BentoML's uvicorn server before it listens.

    BentoML has no options for them, except `--timeout-graceful-shutdown`, which takes precedence over the default here.

    Args:
        service: Service that starts its shutdown when the signal arrives, not when the last connection has closed.
    """
    # not public: uvicorn's `Server.capture_signals` has installed the bound method `handle_exit` as handler
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):
        logger.warning("uvicorn server not found; header limits and graceful-shutdown timeout are not applied")
        return
    server.config.http_protocol_class = LimitedHttpProtocol
    server.config.ws_protocol_class = None
    if server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = GRACEFUL_S

    def handle_exit(number: int, frame: FrameType | None) -> None:
        server.handle_exit(number, frame)
        service.start_shutdown()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle_exit)


class _Server(uvicorn.Server):
    """uvicorn server that starts the shutdown of the service as soon as it receives SIGTERM or SIGINT."""

    def __init__(self, config: uvicorn.Config, service: PredictionService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown of server and service."""
        super().handle_exit(sig, frame)
        self._service.start_shutdown()


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits for headers and for the body after an early response."""

    _timer: asyncio.TimerHandle | None = None
    _in_headers = True
    _header_bytes = 0
    _discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the timeout of the first request's headers."""
        super().connection_made(transport)
        self._start_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._set_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reject headers whose size exceeds the limit before they are complete."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._reject_large_headers()

    def on_message_begin(self) -> None:
        """Start the timeout and the size count of a request's headers."""
        super().on_message_begin()
        self._start_headers()

    def on_headers_complete(self) -> None:
        """Reject headers that exceed the size limit, even if they arrived in one read with the body."""
        self._in_headers = False
        self._set_timer(None)
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > MAX_HEADER_BYTES:
            self._reject_large_headers()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Close the connection if the client keeps sending a large body after the response."""
        if self.transport.is_closing():
            return
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > _MAX_DISCARDED_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        """Cancel the timeout for the rest of a rejected body."""
        if self.transport.is_closing():
            return
        self._set_timer(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """If the response was sent before the body had arrived, start the timeout for the rest of the body."""
        unfinished = self.cycle is not None and self.cycle.more_body
        super().on_response_complete()
        if unfinished:
            self._discarded_bytes = 0
            self._set_timer(self.loop.call_later(_DISCARD_TIMEOUT_S, self.transport.close))

    def send_400_response(self, msg: str) -> None:
        """Reject invalid HTTP in the shared error format."""
        self._reject(HTTPStatus.BAD_REQUEST, msg)

    def _start_headers(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        self._set_timer(self.loop.call_later(HEADER_TIMEOUT_S, self._reject_late_headers))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _reject_large_headers(self) -> None:
        self._reject(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"The request headers are larger than {MAX_HEADER_BYTES:,} bytes. Send fewer or shorter headers.",
        )

    def _reject_late_headers(self) -> None:
        if self._header_bytes:
            self._reject(
                HTTPStatus.REQUEST_TIMEOUT,
                f"The request headers did not arrive within {HEADER_TIMEOUT_S:g} s. Retry with a faster connection.",
            )
        else:
            self.transport.close()  # an idle connection gets no response

    def _reject(self, status: HTTPStatus, message: str) -> None:
        self._in_headers = False
        self._set_timer(None)
        if self.transport.is_closing():
            return
        detail = ErrorDetail(code=status_code_name(status), message=message)
        body = ErrorResponse(error=detail).model_dump_json().encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{REQUEST_ID.lower()}: {uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _exit(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Exit with status 0 immediately: finalising the interpreter while a network computes would abort the process."""
    logging.shutdown()
    os._exit(0)
