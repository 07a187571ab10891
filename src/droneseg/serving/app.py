"""FastAPI application: endpoints, exception handlers, web page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import RootModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from droneseg.core.classes import CLASSES
from droneseg.core.errors import DronesegError, MissingInputError
from droneseg.core.prediction import Segmenter
from droneseg.core.settings import Settings
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.store import fetch_model
from droneseg.monitoring.drift import MIN_RECORDS
from droneseg.monitoring.drift_report import MAX_RECORDS
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving import openapi
from droneseg.serving.error_responses import error_response, http_error_response
from droneseg.serving.middleware import HANGUP, RequestMiddleware
from droneseg.serving.openapi import DESCRIPTION
from droneseg.serving.request_body import UploadBudget, answers, cancel_on_disconnect, read_files
from droneseg.serving.schemas import (
    BatchItemError,
    DriftResponse,
    HealthResponse,
    ModelResponse,
    PredictionResponse,
    PredictionResult,
    ReloadResponse,
    StatusResponse,
)
from droneseg.serving.service import START_S, PredictionService

__all__ = ["create_app"]


_TYPES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_page() -> APIRouter:
    """Return the page at `/ui` and what it is made of."""
    router = APIRouter(include_in_schema=False)
    folder = files("droneseg.serving") / "static"
    contents = {name: (folder / name).read_bytes() for name in _TYPES}

    def serve(name: str, path: str) -> None:
        @router.get(path)
        async def part() -> Response:
            return Response(contents[name], media_type=_TYPES[name], headers=_HEADERS)

    serve("page.html", "/ui")
    for name in _TYPES:
        if name != "page.html":
            serve(name, f"/ui/{name}")

    @router.get("/ui/classes.json")
    async def classes() -> list[dict[str, object]]:
        return [{"id": entry.id, "name": entry.name, "colour": entry.colour} for entry in CLASSES]

    return router


MaskWish = Annotated[Literal["png", "none"], Query(description="none leaves the mask out.")]
PNG = "image/png"


class BatchAnswer(RootModel[list[PredictionResponse | BatchItemError]]):
    """One item per file, in order."""


def make_router(service: PredictionService, memory: UploadBudget) -> APIRouter:
    """Return the endpoints that predict and those that tell about the model and the service."""
    router = APIRouter()
    _add_predictions(router, service, memory)
    _add_facts(router, service)
    if service.settings.api_key:
        _add_admin(router, service)
    return router


def _add_predictions(router: APIRouter, service: PredictionService, memory: UploadBudget) -> None:
    settings = service.settings

    @router.post(
        "/predict",
        response_model=PredictionResponse,
        responses=openapi.PREDICT,
        openapi_extra=openapi.ONE_FILE,
        tags=["predict"],
    )
    async def predict(request: Request, mask: MaskWish = "png") -> Response:
        """Say what is where in one photograph.

        With `Accept: image/png` the answer is the mask file itself.
        """
        service.check_capacity()
        with memory.lease() as lease:
            uploads = await read_files(request, settings, lease)
            if len(uploads) > 1:
                raise MissingInputError(f"There are {len(uploads)} files; send one here, or all to /batch_predict.")
            (answer,) = await cancel_on_disconnect(answers(service, uploads), request.receive)
        if isinstance(answer, Exception):
            raise answer
        if _wants_png(request.headers.get("accept", "")):
            return Response(answer.mask_png, media_type=PNG, headers={"X-Model-ID": answer.model_id})
        return _json(answer.to_schema(with_mask=mask == "png").model_dump_json(exclude=_left_out(mask)))

    @router.post(
        "/batch_predict",
        response_model=BatchAnswer,
        responses=openapi.BATCH,
        openapi_extra=openapi.MANY_FILES,
        tags=["predict"],
    )
    async def batch_predict(request: Request, mask: MaskWish = "png") -> Response:
        """Say what is where in several photographs; one that cannot be used loses none of the others."""
        service.check_capacity()
        with memory.lease() as lease:
            uploads = await read_files(request, settings, lease)
            found = await cancel_on_disconnect(answers(service, uploads), request.receive)
        items = []
        for upload, answer in zip(uploads, found, strict=True):
            if isinstance(answer, PredictionResult):
                items.append(answer.to_schema(with_mask=mask == "png").model_dump_json(exclude=_left_out(mask)))
            else:
                items.append(service.failed_item(upload, answer).model_dump_json())
            await asyncio.sleep(0)  # a batch of large masks leaves the loop to others in between
        return _json("[" + ",".join(items) + "]")


def _add_facts(router: APIRouter, service: PredictionService) -> None:
    @router.get("/model_info", response_model=ModelResponse, responses=openapi.MODEL, tags=["about"])
    async def model_info() -> ModelResponse:
        """Describe the model that answers: its terms, its classes, and how good it is."""
        return service.model_answer()

    @router.get("/drift", response_model=DriftResponse, responses=openapi.DRIFT, tags=["about"])
    async def drift(
        n: Annotated[
            int, Query(ge=MIN_RECORDS, le=MAX_RECORDS, description="How many of the last records, at most.")
        ] = 200,
    ) -> DriftResponse:
        """Hold the last records against the photographs the model was validated on, and write a report.

        While one is being made, that one is the answer. It takes some seconds; predictions go on.
        """
        found = await asyncio.shield(asyncio.wrap_future(service.drift.request_report(n)))
        return DriftResponse(url=found.url, message=found.message, drifted=found.drifted)

    @router.get("/livez", response_model=HealthResponse, responses=openapi.LIVE, tags=["health"])
    async def livez() -> HealthResponse:
        """Answer while the process lives."""
        return HealthResponse(status="alive")

    @router.get("/readyz", response_model=HealthResponse, responses=openapi.READY, tags=["health"])
    async def readyz() -> HealthResponse:
        """Answer 200 once a real prediction has been made, 503 before."""
        service.model_answer()
        return HealthResponse(status="ready")

    @router.get("/metrics", response_class=Response, responses=openapi.METRICS, tags=["health"])
    async def metrics(request: Request) -> Response:
        """Return the figures for Prometheus, in its text format or as OpenMetrics."""
        content, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    @router.get("/", response_model=StatusResponse, responses=openapi.STATUS, tags=["about"])
    async def status(request: Request) -> Response:
        """Say what this is and where to go on; a browser is sent to the page."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/ui")
        return JSONResponse(service.status_answer(openapi.LINKS).model_dump())


def _add_admin(router: APIRouter, service: PredictionService) -> None:
    @router.post("/admin/reload", response_model=ReloadResponse, responses=openapi.RELOAD, tags=["admin"])
    async def reload() -> ReloadResponse:
        """Take up the model that stands where the settings say; if it does not verify, the old one goes on."""
        changed = await asyncio.wrap_future(service.reload_async())
        return ReloadResponse(model_id=service.model_answer().model_id, changed=changed)


def _wants_png(accept: str) -> bool:
    """Say whether a client asks for the mask file rather than JSON."""
    return PNG in accept and "application/json" not in accept


def _left_out(mask: str) -> set[str]:
    return {"segmentation_mask"} if mask == "none" else set()


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


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
    routers = (make_router(service, UploadBudget(settings.max_upload_bytes)), make_page())
    for router in routers:
        app.include_router(router)
    _answer_errors(app, service)
    own = [route for router in routers for route in router.routes]
    known = [route.path for route in (*app.routes, *own) if isinstance(route, Route)]
    app.add_middleware(
        RequestMiddleware, settings=settings, metrics=metrics, failed=service.failed, known=known, open_paths=_OPEN
    )
    return app


def _answer_errors(app: FastAPI, service: PredictionService) -> None:
    """Give every failure the one error body."""

    @app.exception_handler(DronesegError)
    async def expected(_request: Request, error: DronesegError) -> Response:
        return error_response(error, service.failed(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        wrong = MissingInputError("; ".join(problems))
        return error_response(wrong, service.failed(wrong))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return http_error_response(error.status_code, f"{error.detail}: {request.url.path}", dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=HANGUP)
