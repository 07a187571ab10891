"""What stands before BentoML: bodies within bounds, errors in our words, and nothing computed for who has hung up.

BentoML reads a body of any size before it calls anything of ours, and puts every error into its own form.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from droneseg.core.errors import DronesegError
from droneseg.serving.bodies import BodyMemory
from droneseg.serving.gate import HANGUP, METRICS
from droneseg.serving.refusals import path_refusal, refusal
from droneseg.serving.schemas import HealthAnswer
from droneseg.serving.service import PredictionService
from droneseg.serving.waiting import in_time, unless_gone

# in the scope of a request
TOLD = "droneseg.told"  # its error has our body already
PHOTOGRAPH = "droneseg.photograph"  # the file that was in its body
_PAGES = "/static_content"  # of BentoML's page, which is not shown
_OF_BODIES = (b"content-type", b"content-length", b"transfer-encoding")
_STUB_TYPE = (b"content-type", b"application/json")
_INSTEAD = b'{"req": {"image_b64": ""}}'  # of a body for BentoML, which would take it apart again


class Door:
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
        self._memory = BodyMemory(service.settings.max_upload_bytes)
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
                await path_refusal(HTTPStatus.NOT_FOUND, scope["path"])(scope, receive, send)
            elif scope["path"] == METRICS:
                await path_refusal(HTTPStatus.METHOD_NOT_ALLOWED, METRICS, {"Allow": "GET"})(scope, receive, send)
            else:
                # nothing else has use for a body, and BentoML would read one of any size
                scope["headers"] = [*(each for each in scope["headers"] if each[0] not in _OF_BODIES), _STUB_TYPE]
                await self._app(scope, _with_stub(receive), self._in_our_words(scope, receive, send))
        except DronesegError as error:
            await refusal(error, self._service.failed(error))(scope, receive, send)
        except ClientDisconnect:
            # or BentoML waits for an answer until its time is over, and holds the request
            await Response(status_code=HANGUP)(scope, receive, send)
        finally:
            scope.pop(PHOTOGRAPH, None)  # the scope lives as long as the connection

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._service.require_room()
        with self._memory.lease() as lease:
            lease.require(headers)
            content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            body = await in_time(_whole(lease.read(_pieces(receive))), self._service.settings.timeout_seconds)
            scope[PHOTOGRAPH] = self._bodies[scope["path"]](content_type, body)
            app = self._app(scope, _with_stub(receive), self._in_our_words(scope, receive, send))
            await unless_gone(app, receive)

    def _ready(self, _headers: Headers) -> Response:
        self._service.model_answer()
        return _json(HealthAnswer(status="ready"))

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
            return refusal(error, self._service.failed(error))
        allowed = Headers(raw=start["headers"]).get("allow")
        return path_refusal(HTTPStatus(status), scope["path"], {"Allow": allowed} if allowed else None)


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
