"""uvicorn for an application of ours: heads are bounded, and the service is told of the end at once."""

from types import FrameType

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
    """Serve until a signal says to end; what was admitted is finished first."""
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
