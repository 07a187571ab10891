"""uvicorn with what it leaves out: bounds on the head of a request, and word of the end as soon as it is known."""

import asyncio
import logging
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from droneseg.serving.errors import code_of_status
from droneseg.serving.schemas import ErrorAnswer, ErrorDetail
from droneseg.serving.service import PredictionService

logger = logging.getLogger(__name__)

_DRAIN_S = 8  # of the 10 s that Cloud Run gives; the rest is for records
_HEAD_BYTES = 64 * 1024
_HEAD_S = 20.0


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose heads are bounded in bytes and in time: httptools itself takes any."""

    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn says the same
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._begin_head()

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, and refuse one that is too long."""
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse(431, f"The head of the request is longer than {_HEAD_BYTES:,} bytes.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._end_head()
        super().connection_lost(exc)

    def _begin_head(self) -> None:
        self._end_head()
        self._head_bytes = 0
        self._timer = self.loop.call_later(
            _HEAD_S, self._refuse, 408, f"The head of the request did not arrive within {_HEAD_S:g} s."
        )

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str) -> None:
        self._end_head()
        if self.transport.is_closing():
            return
        if self._head_bytes:  # who sent nothing is told nothing
            body = (
                ErrorAnswer(error=ErrorDetail(code=code_of_status(status), message=message)).model_dump_json().encode()
            )
            head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """Tells the service of the end at once, and not when the last connection has closed."""

    def __init__(self, config: uvicorn.Config, service: PredictionService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take nothing more in."""
        super().handle_exit(sig, frame)
        self._service.refuse_more()


def run(app: FastAPI, *, host: str, port: int) -> None:
    """Serve until a signal says to end; what was admitted is finished first."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_S,
        server_header=False,
    )
    _Server(config, app.state.service).run()
