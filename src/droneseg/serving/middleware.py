"""Middleware: request id, API key, access log, metrics."""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from droneseg.core.errors import NotReadyError, UnauthorizedError
from droneseg.core.logs import request_id
from droneseg.core.settings import Settings
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.error_responses import error_response, not_found_response
from droneseg.serving.schemas import ErrorDetail

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
API_KEY = "X-API-Key"
HANGUP = 499  # as nginx logs it: nobody was there to read the answer
_GOOD_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
_OTHER = "other"
METRICS = "/metrics"


class RequestMiddleware:
    """ASGI middleware around the whole application.

    Args:
        app: What is behind it.
        settings: With the API key, if one is asked.
        metrics: Where requests are counted.
        failed: Returns what a client is told of an error.
        known: Paths of all routes, which label the metrics; any other path is counted as one.
        open_paths: Those that need no key; one that ends with a slash opens all below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: ServiceMetrics,
        failed: Callable[[Exception], ErrorDetail],
        known: Collection[str],
        open_paths: Collection[str],
    ) -> None:
        self._app, self._metrics, self._failed = app, metrics, failed
        self._known = frozenset(known)
        self._open = frozenset(open_paths) | ({METRICS} if settings.public_metrics else set())
        self._open_below = tuple(path for path in open_paths if path != "/" and path.endswith("/"))
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it for its key; count and log it when it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        scope["path"] = path = scope["path"].rstrip("/") or "/"
        given = headers.get(REQUEST_ID.lower().encode(), "")
        own_id = given if _GOOD_ID.match(given) else uuid.uuid4().hex
        request_id.set(own_id)
        status = HANGUP

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID.lower().encode(), own_id.encode())]
            await send(message)

        async def refuse(error: Exception) -> None:
            await error_response(error, self._failed(error))(scope, receive, answer)

        try:
            if not path.isprintable():
                # routes end before a last line break, names of paths do not
                await not_found_response(HTTPStatus.NOT_FOUND, repr(path))(scope, receive, answer)
            elif self._needs_key(path) and not self._has_key(headers):
                await refuse(UnauthorizedError(f"Send the API key in the header {API_KEY}."))
            else:
                await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            # the server stops, and its time for what was begun is over
            if status == HANGUP:
                await refuse(NotReadyError("The service stopped before this was done. Send it again."))
        except Exception as error:
            if status != HANGUP:
                raise  # half an answer is out: only the connection can tell that it is none
            await refuse(error)
        finally:
            seconds = time.perf_counter() - begin
            self._metrics.count_request(path if path in self._known else _OTHER, status, seconds)
            fields = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
            shown = path if path.isprintable() else repr(path)  # a line of the log is one request
            logger.info("%s %s %d in %.0f ms", scope["method"], shown, status, 1000 * seconds, extra={"fields": fields})

    def _needs_key(self, path: str) -> bool:
        return self._key is not None and path not in self._open and not path.startswith(self._open_below)

    def _has_key(self, headers: dict[bytes, str]) -> bool:
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        given = headers.get(API_KEY.lower().encode(), "") or (token.strip() if scheme.lower() == "bearer" else "")
        return hmac.compare_digest(given.encode("latin-1"), self._key or b"")
