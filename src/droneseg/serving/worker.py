"""BentoML's worker, whose server we did not make, within the bounds of ours: of heads, and of the end."""

import logging
import signal
from types import FrameType

import uvicorn

from droneseg.serving.protocol import BoundedProtocol
from droneseg.serving.service import PredictionService
from droneseg.serving.times import GRACEFUL_S

logger = logging.getLogger(__name__)


def bound_server(service: PredictionService) -> None:
    """Bound the server of this process, which starts and does not listen yet; BentoML has no options for that.

    Args:
        service: What is told of the end at once, and not when the last connection has closed.
    """
    # where uvicorn has left itself by then
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):
        logger.warning("this is not uvicorn's process: heads and the time to end are not bounded")
        return
    server.config.http_protocol_class = BoundedProtocol
    server.config.ws_protocol_class = None
    server.config.timeout_graceful_shutdown = GRACEFUL_S

    def end(number: int, frame: FrameType | None) -> None:
        server.handle_exit(number, frame)
        service.begin_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
