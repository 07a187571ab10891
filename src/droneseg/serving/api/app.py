"""The application: model, endpoints, page and error bodies put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from droneseg.core.errors import DronesegError, MissingInputError
from droneseg.core.prediction import Segmenter
from droneseg.core.settings import Settings
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.store import fetch_model
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.api.documentation import DESCRIPTION
from droneseg.serving.api.page import make_page
from droneseg.serving.api.routes import make_router
from droneseg.serving.bodies import BodyMemory
from droneseg.serving.gate import HANGUP, Gate
from droneseg.serving.refusals import framework_refusal, refusal
from droneseg.serving.service import PredictionService
from droneseg.serving.times import START_S

_OPEN = ("/", "/livez", "/readyz", "/ui", "/ui/", "/docs", "/openapi.json")


def create_app(settings: Settings, segmenter: Segmenter | None = None) -> FastAPI:
    """Make the service.

    Args:
        settings: Limits, places, key and model.
        segmenter: What predicts, instead of the model that the settings name.

    Returns:
        An ASGI application. Its model is loaded in the background as it starts: `/livez` answers at once, `/readyz`
        when a prediction has been made.
    """
    metrics = ServiceMetrics()
    service = PredictionService(
        settings,
        lambda: segmenter or load_segmenter(settings),
        metrics,
        fetch=lambda: None if segmenter else fetch_model(settings.model, settings.dvc_pull, settings.dvc_remote),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(service.start))
        try:
            yield
        finally:
            await asyncio.wait([loading], timeout=START_S)
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="droneseg",
        version=version("droneseg"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    routers = (make_router(service, BodyMemory(settings.max_upload_bytes)), make_page())
    for router in routers:
        app.include_router(router)
    _answer_errors(app, service)
    own = [route for router in routers for route in router.routes]
    known = [route.path for route in (*app.routes, *own) if isinstance(route, Route)]
    app.add_middleware(Gate, settings=settings, metrics=metrics, failed=service.failed, known=known, open_paths=_OPEN)
    return app


def _answer_errors(app: FastAPI, service: PredictionService) -> None:
    """Give every failure the one error body."""

    @app.exception_handler(DronesegError)
    async def expected(_request: Request, error: DronesegError) -> Response:
        return refusal(error, service.failed(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        wrong = MissingInputError("; ".join(problems))
        return refusal(wrong, service.failed(wrong))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return framework_refusal(error.status_code, f"{error.detail}: {request.url.path}", dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=HANGUP)
