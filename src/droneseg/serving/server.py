"""uvicorn for an application of ours: heads are bounded, and the service is told of the end at once."""

import logging
import os
import signal
from types import FrameType
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from droneseg.serving.protocol import BoundedProtocol
from droneseg.serving.service import PredictionService
from droneseg.serving.times import GRACEFUL_S


class _Server(uvicorn.Server):
    """Tells the service of the end at once, and not when the last connection has closed."""

    def __init__(self, config: uvicorn.Config, service: PredictionService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take nothing more in."""
        super().handle_exit(sig, frame)
        self._service.begin_stop()


def run(app: ASGIApp, service: PredictionService, *, host: str, port: int) -> None:
    """Serve until a signal says to end, and end the process; what was admitted is finished first."""
    # uvicorn sends itself the signal again once it has ended in good order
    signal.signal(signal.SIGTERM, _end)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
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
