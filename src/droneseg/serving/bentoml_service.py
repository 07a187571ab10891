"""BentoML service and its middleware.

BentoML reads request bodies of any size before it calls an endpoint, and returns errors in its own format. The
middleware in front of it therefore limits the body while reading it, extracts the image and passes BentoML a request
whose body is the image.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import cache, partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Annotated, cast

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.validators import ContentType
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from droneseg.core.errors import ConfigurationError, DronesegError
from droneseg.core.logs import configure_logging
from droneseg.core.settings import Settings, load_settings, warn_of_misspelt
from droneseg.inference.landing import LandingAnswer
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.store import fetch_model
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving import request_body
from droneseg.serving.background import check_storage
from droneseg.serving.error_responses import error_response, path_error_response
from droneseg.serving.middleware import CLIENT_CLOSED_REQUEST, METRICS, RequestMiddleware
from droneseg.serving.schemas import (
    DEFAULT_OPTIONS,
    BentoPredictionResponse,
    HealthResponse,
    LandingRequestOptions,
    ModelResponse,
    PredictionOptions,
    Upload,
)
from droneseg.serving.server import configure_bentoml_server
from droneseg.serving.service import START_S, PredictionService

DEFAULT_PORT = 3000
PREDICT_BASE64, PREDICT_BYTES, MODEL_INFO = "/predict_base64", "/predict_image_bytes", "/model_info"
LANDING_BASE64, LANDING_BYTES = "/landing_sites", "/landing_sites_image_bytes"
PUBLIC_PATHS = ("/", "/livez", "/readyz", "/healthz", "/schema.json", "/docs.json")
_LINKS = {"documentation": "/docs.json", "model": MODEL_INFO, "metrics": METRICS, "ready": "/readyz"}
_WEB_PAGE = "/static_content"  # files of BentoML's web page, which are not served
_BODY_HEADERS = (b"content-type", b"content-length", b"transfer-encoding")
_BODY_PARSERS: dict[str, Callable[[Headers, bytes], Upload]] = {
    PREDICT_BASE64: request_body.parse_base64_body,
    PREDICT_BYTES: request_body.parse_image_body,
    LANDING_BASE64: partial(request_body.parse_base64_body, kind=request_body.Base64LandingRequest),
    LANDING_BYTES: partial(request_body.parse_image_body, kind=LandingRequestOptions),
}
_BYTES_PATHS = {PREDICT_BASE64: PREDICT_BYTES, LANDING_BASE64: LANDING_BYTES}
"""Path of the endpoint that takes the image of a JSON body as its own body."""
# keys in a request's `state`
_OPTIONS = "options"  # options of the image, read by BentoMLMiddleware
_OWN_ERROR = "error_in_our_format"  # whether the endpoint has returned an error response


def load_bentoml_settings() -> Settings:
    """Load and check the settings.

    Raises:
        BentoMLException: If a setting is invalid. BentoML prints its message without a traceback.
    """
    try:
        settings = load_settings()
        _check_address(settings.host)
        check_storage(settings)
    except ConfigurationError as error:
        raise BentoMLException(str(error)) from error
    return settings


def _check_address(host: str) -> None:
    try:
        ip_address(host)
    except ValueError as error:
        raise ConfigurationError(
            f"DRONESEG_HOST={host} is not an IP address. BentoML does not accept host names."
        ) from error


# loaded at import: BentoML needs the address for the decorator, and a later error would not end `bentoml serve`
_SETTINGS = load_bentoml_settings()


@cache
def prediction_service() -> PredictionService:
    """Return the prediction service of this process; created on the first call."""
    return PredictionService(
        _SETTINGS,
        partial(load_segmenter, _SETTINGS),
        ServiceMetrics(),
        fetch=partial(fetch_model, _SETTINGS.model, _SETTINGS.dvc_pull, _SETTINGS.dvc_remote),
    )


@bentoml.service(
    name="droneseg",
    workers=1,  # the network uses all cores
    # above the limits of `WorkQueue`, which rejects by seconds of work and with Retry-After
    traffic={"timeout": 2 * _SETTINGS.timeout_seconds + 120, "max_concurrency": 512},
    http={"host": _SETTINGS.host, "port": _SETTINGS.port if "port" in _SETTINGS.model_fields_set else DEFAULT_PORT},
    metrics={"enabled": False},  # served by BentoMLMiddleware
    logging={"access": {"enabled": False}},  # logged by RequestMiddleware
    tracing={"excluded_urls": ".*"},  # no spans, because nothing would collect them
)
class DroneSegService:
    """Semantic segmentation of drone images for safe landing."""

    def __init__(self) -> None:
        configure_logging(_SETTINGS.log_level, _SETTINGS.log_format)
        warn_of_misspelt()
        self._service = prediction_service()
        configure_bentoml_server(self._service)
        self._loading = asyncio.get_running_loop().run_in_executor(None, self._service.start)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Finish the accepted requests."""
        await asyncio.wait([self._loading], timeout=START_S)
        await asyncio.to_thread(self._service.stop)

    @bentoml.api(route=PREDICT_BASE64)
    async def predict_base64(self, req: request_body.Base64Image) -> BentoPredictionResponse:
        """Segment one image, sent as base64 in JSON."""
        # over HTTP, BentoMLMiddleware decodes the image and calls `predict_image_bytes`
        return await self._predict(req.decode())

    @bentoml.api(route=PREDICT_BYTES)
    async def predict_image_bytes(self, image: Annotated[bytes, ContentType("image/*")], /) -> BentoPredictionResponse:
        """Segment one image, sent as the request body."""
        return await self._predict(Upload(None, image, _options_of_request()))

    @bentoml.api(route=LANDING_BASE64)
    async def landing_sites(self, req: request_body.Base64LandingImage) -> LandingAnswer:
        """Find sites where a drone can land in one image, sent as base64 in JSON."""
        return await self._find_sites(req.decode())

    @bentoml.api(route=LANDING_BYTES)
    async def landing_sites_image_bytes(self, image: Annotated[bytes, ContentType("image/*")], /) -> LandingAnswer:
        """Find sites where a drone can land in one image, sent as the request body."""
        options = _options_of_request()
        if not isinstance(options, LandingRequestOptions):
            options = LandingRequestOptions()
        return await self._find_sites(Upload(None, image, options))

    @bentoml.api(route=MODEL_INFO)
    async def model_info(self) -> ModelResponse:
        """Return the active model: id, licence, classes and quality metrics."""
        try:
            return self._service.model_info()
        except Exception as error:  # noqa: BLE001  # as in `_predict`
            return cast(ModelResponse, self._error_response(error))

    async def _predict(self, upload: Upload) -> BentoPredictionResponse:
        try:
            (result,) = await self._service.predict([upload])
            if isinstance(result, Exception):
                raise result
            return result.to_bento_response()
        except Exception as error:  # noqa: BLE001  # BentoML would return any error in its own format
            return cast(BentoPredictionResponse, self._error_response(error))

    async def _find_sites(self, upload: Upload) -> LandingAnswer:
        try:
            (result,) = await self._service.predict([upload])
            if isinstance(result, Exception):
                raise result
            return cast(LandingAnswer, result.landing)
        except Exception as error:  # noqa: BLE001  # as in `_predict`
            return cast(LandingAnswer, self._error_response(error))

    def _error_response(self, error: Exception) -> Response:
        request = cast(Request, DroneSegService.context.request)  # type: ignore[attr-defined]  # set by the decorator
        setattr(request.state, _OWN_ERROR, True)
        return error_response(error, self._service.error_detail(error))


class BentoMLMiddleware:
    """ASGI middleware in front of BentoML: body size limits, shared error format, cancellation on disconnect.

    It serves `/` and `/metrics` itself: BentoML's page loads a tracking script, and its metrics have one label per
    requested path. It also serves `GET /readyz` and `GET /model_info`, which BentoML does not provide.

    Args:
        app: BentoML's application.
        service: Prediction service.
    """

    def __init__(self, app: ASGIApp, service: PredictionService) -> None:
        self._app, self._service = app, service
        self._budget = request_body.UploadBudget(service.settings.max_upload_bytes)
        self._pages: dict[str, Callable[[Headers], Response]] = {
            "/": lambda _: _json(service.status(_LINKS)),
            "/readyz": self._ready,
            MODEL_INFO: lambda _: _json(service.model_info()),
            METRICS: self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or pass it on to BentoML."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._handle(scope, receive, send)
        except DronesegError as error:
            await error_response(error, self._service.error_detail(error))(scope, receive, send)
        except ClientDisconnect:
            # without a response, BentoML would keep the request open until its timeout
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in _BODY_PARSERS:
            await self._predict(scope, receive, send)
        elif method == "GET" and path in self._pages:
            await self._pages[path](Headers(scope=scope))(scope, receive, send)
        elif path.startswith(_WEB_PAGE):
            await path_error_response(HTTPStatus.NOT_FOUND, path)(scope, receive, send)
        elif path == METRICS:
            await path_error_response(HTTPStatus.METHOD_NOT_ALLOWED, METRICS, {"Allow": "GET"})(scope, receive, send)
        else:
            # no other path needs a body, and BentoML would read one of any size
            await self._call_bentoml(scope, _with_body(b"{}", receive), send, content_type=b"application/json")

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the image and pass on a request whose body is the image."""
        self._service.check_capacity()
        with self._budget.reserve() as reservation:
            headers = Headers(scope=scope)
            reservation.check_headers(headers)
            chunks = reservation.read(_chunks(receive))
            body = await request_body.read_with_timeout(_join(chunks), self._service.settings.timeout_seconds)
            upload = _BODY_PARSERS[scope["path"]](headers, body)
            scope.setdefault("state", {})[_OPTIONS] = upload.options
            receive_image = _with_body(upload.data, receive)
            del body, upload  # the request waits in the queue, and BentoML keeps the image
            requested: str = scope["path"]
            path = _BYTES_PATHS.get(requested, requested)
            scope = {**scope, "path": path, "raw_path": path.encode()}
            call = self._call_bentoml(scope, receive_image, send, content_type=b"application/octet-stream")
            await request_body.cancel_on_disconnect(call, receive)

    async def _call_bentoml(self, scope: Scope, receive: Receive, send: Send, *, content_type: bytes) -> None:
        """Call BentoML with the body that `receive` returns instead of the original one."""
        headers = [header for header in scope["headers"] if header[0] not in _BODY_HEADERS]
        scope["headers"] = [*headers, (b"content-type", content_type)]
        await self._app(scope, receive, self._with_our_errors(scope, receive, send))

    def _ready(self, _headers: Headers) -> Response:
        self._service.model_info()
        return _json(HealthResponse(status="ready"))

    def _metrics(self, headers: Headers) -> Response:
        content, content_type = self._service.metrics.render(headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    def _with_our_errors(self, scope: Scope, receive: Receive, send: Send) -> Send:
        """Return a `send` that replaces BentoML's error responses, for example for an unknown path, with ours."""
        replaced = False

        async def send_with_our_errors(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400:
                replaced = not scope.get("state", {}).get(_OWN_ERROR, False)
                if replaced:
                    await self._replacement(scope, message)(scope, receive, send)
            if not replaced:
                await send(message)

        return send_with_our_errors

    def _replacement(self, scope: Scope, start: Message) -> Response:
        status = start["status"]
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            error = RuntimeError(f"BentoML failed to handle {scope['path']}")
            return error_response(error, self._service.error_detail(error))
        allow = Headers(raw=start["headers"]).get("allow")
        return path_error_response(HTTPStatus(status), scope["path"], {"Allow": allow} if allow else None)


def _with_middleware(app: ASGIApp) -> ASGIApp:
    """Return BentoML's application with our middleware; called in the serving process, not at import."""
    service = prediction_service()
    return RequestMiddleware(
        BentoMLMiddleware(app, service),
        settings=service.settings,
        metrics=service.metrics,
        error_detail=service.error_detail,
        known_paths=(*PUBLIC_PATHS, *_BODY_PARSERS, MODEL_INFO, METRICS),
        public_paths=PUBLIC_PATHS,
    )


DroneSegService.add_asgi_middleware(_with_middleware)  # type: ignore[attr-defined]  # set by the decorator


def _options_of_request() -> PredictionOptions:
    """Return the options that BentoMLMiddleware has read; the defaults outside HTTP requests."""
    try:
        state = DroneSegService.context.request.state  # type: ignore[attr-defined]  # set by the decorator
    except LookupError:
        return DEFAULT_OPTIONS
    return cast(PredictionOptions, getattr(state, _OPTIONS, DEFAULT_OPTIONS))


async def _join(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more_body = message.get("more_body", False)


def _with_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns this body first."""
    bodies = [body]

    async def receive_body() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receive_body


def _json(response: BaseModel) -> Response:
    return Response(response.model_dump_json(), media_type="application/json")
