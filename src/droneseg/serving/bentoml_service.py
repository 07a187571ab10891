"""BentoML service and its middleware.

BentoML reads a body of any size before it calls anything of ours, and puts every error into its own form.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Annotated, cast

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.validators import ContentType
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from droneseg.core.errors import ConfigurationError, DronesegError
from droneseg.core.logs import configure_logging
from droneseg.core.settings import load_settings, warn_of_misspelt
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.store import fetch_model
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.error_responses import error_response, not_found_response
from droneseg.serving.middleware import HANGUP, METRICS, RequestMiddleware
from droneseg.serving.request_body import (
    Base64Image,
    UploadBudget,
    answers,
    cancel_on_disconnect,
    parse_base64_body,
    parse_image_body,
    read_with_timeout,
)
from droneseg.serving.schemas import BentoPredictionResponse, HealthResponse, ModelResponse, Upload
from droneseg.serving.server import configure_bentoml_server
from droneseg.serving.service import START_S, PredictionService

# What stands before BentoML: bodies within bounds, errors in our words, and nothing computed for who has hung up.
#
# BentoML reads a body of any size before it calls anything of ours, and puts every error into its own form.

# in the scope of a request
TOLD = "droneseg.told"  # its error has our body already
PHOTOGRAPH = "droneseg.photograph"  # the file that was in its body
_PAGES = "/static_content"  # of BentoML's page, which is not shown
_OF_BODIES = (b"content-type", b"content-length", b"transfer-encoding")
_STUB_TYPE = (b"content-type", b"application/json")
_INSTEAD = b'{"req": {"image_b64": ""}}'  # of a body for BentoML, which would take it apart again


class BentoMLMiddleware:
    """ASGI middleware between the gate and BentoML.

    It answers `/` itself, where BentoML has a page that loads a tracker, `/metrics`, as BentoML's own have a label for
    every path that is asked for, and what is asked for of the model without a body.

    Args:
        app: BentoML's application.
        service: What answers.
        bodies: For each path that predicts, what takes the photograph out of a body, given its stated type, too.
        links: Where to go on from `/`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: PredictionService,
        bodies: Mapping[str, Callable[[str, bytes], bytes]],
        links: Mapping[str, str],
    ) -> None:
        self._app, self._service, self._bodies = app, service, bodies
        self._memory = UploadBudget(service.settings.max_upload_bytes)
        self._facts: dict[str, Callable[[Headers], Response]] = {
            "/": lambda _: _json(service.status_answer(links)),
            "/readyz": self._ready,
            "/model_info": lambda _: _json(service.model_answer()),
            METRICS: self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["method"] == "POST" and scope["path"] in self._bodies:
                await self._predict(scope, receive, send)
            elif scope["method"] == "GET" and scope["path"] in self._facts:
                await self._facts[scope["path"]](Headers(scope=scope))(scope, receive, send)
            elif scope["path"].startswith(_PAGES):
                await not_found_response(HTTPStatus.NOT_FOUND, scope["path"])(scope, receive, send)
            elif scope["path"] == METRICS:
                await not_found_response(HTTPStatus.METHOD_NOT_ALLOWED, METRICS, {"Allow": "GET"})(scope, receive, send)
            else:
                # nothing else has use for a body, and BentoML would read one of any size
                scope["headers"] = [*(each for each in scope["headers"] if each[0] not in _OF_BODIES), _STUB_TYPE]
                await self._app(scope, _with_stub(receive), self._in_our_words(scope, receive, send))
        except DronesegError as error:
            await error_response(error, self._service.failed(error))(scope, receive, send)
        except ClientDisconnect:
            # or BentoML waits for an answer until its time is over, and holds the request
            await Response(status_code=HANGUP)(scope, receive, send)
        finally:
            scope.pop(PHOTOGRAPH, None)  # the scope lives as long as the connection

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._service.check_capacity()
        with self._memory.lease() as lease:
            lease.check_headers(headers)
            content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            body = await read_with_timeout(_whole(lease.read(_pieces(receive))), self._service.settings.timeout_seconds)
            scope[PHOTOGRAPH] = self._bodies[scope["path"]](content_type, body)
            app = self._app(scope, _with_stub(receive), self._in_our_words(scope, receive, send))
            await cancel_on_disconnect(app, receive)

    def _ready(self, _headers: Headers) -> Response:
        self._service.model_answer()
        return _json(HealthResponse(status="ready"))

    def _metrics(self, headers: Headers) -> Response:
        content, content_type = self._service.metrics.render(headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    def _in_our_words(self, scope: Scope, receive: Receive, send: Send) -> Send:
        """Return a `send` that puts BentoML's own errors, such as of a path that is not there, into our body."""
        replaced = False

        async def pass_on(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400 and not scope.get(TOLD):
                replaced = True
                await self._own_error(scope, message)(scope, receive, send)
            elif not replaced:
                await send(message)

        return pass_on

    def _own_error(self, scope: Scope, start: Message) -> Response:
        status = start["status"]
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            error = RuntimeError(f"BentoML failed at {scope['path']}")
            return error_response(error, self._service.failed(error))
        allowed = Headers(raw=start["headers"]).get("allow")
        return not_found_response(HTTPStatus(status), scope["path"], {"Allow": allowed} if allowed else None)


async def _whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _with_stub(receive: Receive) -> Receive:
    """Return a `receive` that gives a small body first."""
    given = False

    async def receive_stub() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": _INSTEAD, "more_body": False}

    return receive_stub


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


PORT = 3000
_BASE64, _BYTES, _MODEL = "/predict_base64", "/predict_image_bytes", "/model_info"
_OPEN = ("/", "/livez", "/readyz", "/healthz", "/schema.json", "/docs.json")
_LINKS = {"documentation": "/docs.json", "model": _MODEL, "metrics": METRICS, "ready": "/readyz"}


def make_service() -> PredictionService:
    """Return the service core of this process, which does nothing yet.

    Raises:
        BentoMLException: If a setting is wrong: of that BentoML shows the message.
    """
    try:
        settings = load_settings()
        _require_address(settings.host)
        return PredictionService(
            settings,
            partial(load_segmenter, settings),
            ServiceMetrics(),
            fetch=partial(fetch_model, settings.model, settings.dvc_pull, settings.dvc_remote),
        )
    except ConfigurationError as error:
        raise BentoMLException(str(error)) from error


def _require_address(host: str) -> None:
    try:
        ip_address(host)
    except ValueError as error:
        raise ConfigurationError(f"DRONESEG_HOST={host} is no address, and BentoML takes no names.") from error


# at import: BentoML asks for the address as the class is made, and later cannot refuse to start any more
SERVICE = make_service()
_SETTINGS = SERVICE.settings


@bentoml.service(
    name="droneseg",
    workers=1,  # the network uses all cores
    # the queue of the service core bounds both, in seconds of work and with Retry-After; these are beyond it
    traffic={"timeout": 2 * _SETTINGS.timeout_seconds + 120, "max_concurrency": 512},
    http={"host": _SETTINGS.host, "port": _SETTINGS.port if "port" in _SETTINGS.model_fields_set else PORT},
    metrics={"enabled": False},  # the door has ours
    logging={"access": {"enabled": False}},  # the gate logs every request
    tracing={"excluded_urls": ".*"},  # or every request gets spans that nobody reads
)
class DroneSegService:
    """Says what is where in photographs from a drone."""

    def __init__(self) -> None:
        configure_logging(_SETTINGS.log_level, _SETTINGS.log_format)
        warn_of_misspelt()
        configure_bentoml_server(SERVICE)
        self._starting = asyncio.get_running_loop().run_in_executor(None, SERVICE.start)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Finish what was admitted."""
        await asyncio.wait([self._starting], timeout=START_S)
        await asyncio.to_thread(SERVICE.stop)

    @bentoml.api(route=_BASE64)
    async def predict_base64(self, req: Base64Image) -> BentoPredictionResponse:  # noqa: ARG002  # see the door
        """Say what is where in one photograph, sent in JSON."""
        return await _predict()

    @bentoml.api(route=_BYTES)
    async def predict_image_bytes(self, image: Annotated[bytes, ContentType("image/*")], /) -> BentoPredictionResponse:  # noqa: ARG002
        """Say what is where in one photograph, which is the body itself."""
        return await _predict()

    @bentoml.api(route=_MODEL)
    async def model_info(self) -> ModelResponse:
        """Describe the model that answers."""
        try:
            return SERVICE.model_answer()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is answered in our words
            return cast(ModelResponse, _refuse(error))


async def _predict() -> BentoPredictionResponse:
    # the door has taken it out of the body, within bounds and once
    upload = Upload(None, _scope().pop(PHOTOGRAPH))
    try:
        (answer,) = await answers(SERVICE, [upload])
    except Exception as error:  # noqa: BLE001  # as above
        answer = error
    if isinstance(answer, Exception):
        return cast(BentoPredictionResponse, _refuse(answer))
    return answer.to_loaded_schema()


def _refuse(error: Exception) -> Response:
    """Return a response, which BentoML passes on; an error it would put into its own form."""
    _scope()[TOLD] = True
    return error_response(error, SERVICE.failed(error))


def _scope() -> Scope:
    return cast(Scope, DroneSegService.context.request.scope)  # type: ignore[attr-defined]  # it is a service now


DroneSegService.add_asgi_middleware(  # type: ignore[attr-defined]  # it is a service now
    RequestMiddleware,
    settings=_SETTINGS,
    metrics=SERVICE.metrics,
    failed=SERVICE.failed,
    known=(*_OPEN, _BASE64, _BYTES, _MODEL, METRICS),
    open_paths=_OPEN,
)
DroneSegService.add_asgi_middleware(  # type: ignore[attr-defined]
    BentoMLMiddleware, service=SERVICE, bodies={_BASE64: parse_base64_body, _BYTES: parse_image_body}, links=_LINKS
)
