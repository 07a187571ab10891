"""ASGI middleware: request id, API key, access log and latency metrics."""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from droneseg.core.errors import NotReadyError, UnauthorizedError
from droneseg.core.logs import request_id
from droneseg.core.settings import Settings
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.error_responses import error_response, path_error_response
from droneseg.serving.schemas import ErrorDetail

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
API_KEY = "X-API-Key"
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected before the response
METRICS = "/metrics"
_VALID_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
_OTHER_ENDPOINT = "other"


class RequestMiddleware:
    """Middleware for all requests of the application: request id, API key, access log and metrics.

    Pure ASGI: starlette's `BaseHTTPMiddleware` runs the application in another task, which does not see disconnects.

    Args:
        app: ASGI application to wrap.
        settings: Application settings, with the API key.
        metrics: Metrics that count the requests.
        error_detail: Function that returns the error code and message for an exception.
        known_paths: Paths of all routes, used as metric labels; all other paths share one label.
        public_paths: Paths that need no API key; a path that ends with a slash includes all paths below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: ServiceMetrics,
        error_detail: Callable[[Exception], ErrorDetail],
        known_paths: Collection[str],
        public_paths: Collection[str],
    ) -> None:
        self._app, self._metrics, self._error_detail = app, metrics, error_detail
        self._known_paths = frozenset(known_paths)
        self._public_paths = frozenset(public_paths) | ({METRICS} if settings.public_metrics else set())
        self._public_prefixes = tuple(path for path in public_paths if path != "/" and path.endswith("/"))
        self._api_key = settings.api_key.get_secret_value().encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, then count and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        method, path = scope["method"], scope["path"].rstrip("/") or "/"
        scope["path"] = path
        response = _ResponseSender(scope, send)
        request_id.set(response.request_id)
        try:
            await self._handle(scope, receive, response)
        except asyncio.CancelledError:
            # the server is shutting down, and its grace period is over
            if not response.started:
                await self._send_error(
                    NotReadyError("The service shut down before the request finished. Retry."), scope, receive, response
                )
        except Exception as error:
            if response.started:
                raise  # the response is incomplete: only closing the connection can signal that
            await self._send_error(error, scope, receive, response)
        finally:
            self._record(method, path, response.status, time.perf_counter() - started_at)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not path.isprintable():
            # a route also matches its path with a trailing line break, which `known_paths` does not contain
            await path_error_response(HTTPStatus.NOT_FOUND, repr(path))(scope, receive, send)
        elif self._needs_key(path) and not self._has_key(Headers(scope=scope)):
            error = UnauthorizedError(f"The API key is missing or wrong. Send it in the header {API_KEY}.")
            await self._send_error(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _send_error(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(error, self._error_detail(error))(scope, receive, send)

    def _record(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request and write its line in the access log."""
        self._metrics.count_request(path if path in self._known_paths else _OTHER_ENDPOINT, status, seconds)
        fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
        shown_path = path if path.isprintable() else repr(path)  # keeps the message on one line
        logger.info("%s %s %d in %.0f ms", method, shown_path, status, 1000 * seconds, extra={"fields": fields})

    def _needs_key(self, path: str) -> bool:
        return (
            self._api_key is not None and path not in self._public_paths and not path.startswith(self._public_prefixes)
        )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = headers.get(API_KEY) or (token.strip() if scheme.lower() == "bearer" else "")
        return hmac.compare_digest(key.encode("latin-1"), self._api_key or b"")


class _ResponseSender:
    """`send` callable that adds the request id to the response and records its status.

    Attributes:
        request_id: Id sent by the client if it is valid, else a new one.
        status: HTTP status of the response; 499 until it starts.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        client_id = Headers(scope=scope).get(REQUEST_ID, "")
        self.request_id = client_id if _VALID_REQUEST_ID.match(client_id) else uuid.uuid4().hex
        self.status = CLIENT_CLOSED_REQUEST
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (REQUEST_ID.lower().encode(), self.request_id.encode())]
        await self._send(message)

    @property
    def started(self) -> bool:
        """Whether the response has started."""
        return self.status != CLIENT_CLOSED_REQUEST
