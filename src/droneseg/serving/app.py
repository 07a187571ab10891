"""FastAPI application: endpoints, exception handlers, web page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DronesegError, MissingInputError
from droneseg.core.prediction import Segmenter
from droneseg.core.settings import Settings
from droneseg.inference.landing import LandingAnswer
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.store import fetch_model
from droneseg.monitoring.drift import MIN_RECORDS
from droneseg.monitoring.drift_report import MAX_RECORDS
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving import openapi, schemas
from droneseg.serving.error_responses import error_response, http_error_response
from droneseg.serving.middleware import API_KEY, CLIENT_CLOSED_REQUEST, RequestMiddleware
from droneseg.serving.request_body import UploadBudget, cancel_on_disconnect, read_files
from droneseg.serving.service import START_S, PredictionService

PNG = "image/png"
MaskOption = Annotated[
    Literal["png", "none"], Query(description="`png` includes the mask in the response, `none` omits it.")
]

_PUBLIC_PATHS = ("/", "/livez", "/readyz", "/ui", "/ui/", "/docs", "/openapi.json")
_PAGE_FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(settings: Settings, segmenter: Segmenter | None = None) -> FastAPI:
    """Create the FastAPI application.

    Args:
        settings: Application settings.
        segmenter: Segmenter to use instead of the model named by the settings.

    Returns:
        ASGI application, which loads its model in the background when it starts: `/livez` responds at once, `/readyz`
        after a test prediction.
    """
    service = PredictionService(
        settings,
        lambda: segmenter or load_segmenter(settings),
        ServiceMetrics(),
        fetch=lambda: None if segmenter else fetch_model(settings.model, settings.dvc_pull, settings.dvc_remote),
    )
    app = FastAPI(
        title="droneseg",
        version=version("droneseg"),
        description=openapi.DESCRIPTION,
        lifespan=lambda _app: _lifespan(service),
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    generate = app.openapi

    def describe() -> dict[str, Any]:
        """Return the OpenAPI schema, with examples of the active model, or else of the default classes."""
        schema, model = generate(), service.model
        # FastAPI leaves out nulls, so the default examples are inserted, too
        classes, policy = (model.classes, model.landing_policy) if model else (DEFAULT_CLASSES, openapi.EXAMPLE_POLICY)
        openapi.describe_model(schema, classes, policy)
        return schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI documents this way to extend the schema
    routers = (*_api_routers(service), _page_router(service))
    for router in routers:
        app.include_router(router)
    _add_exception_handlers(app, service)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    app.add_middleware(
        RequestMiddleware,
        settings=settings,
        metrics=service.metrics,
        error_detail=service.error_detail,
        known_paths=[route.path for route in routes if isinstance(route, Route)],
        public_paths=_PUBLIC_PATHS,
    )
    return app


@asynccontextmanager
async def _lifespan(service: PredictionService) -> AsyncIterator[None]:
    loading = asyncio.create_task(asyncio.to_thread(service.start))
    try:
        yield
    finally:
        await asyncio.wait([loading], timeout=START_S)
        await asyncio.to_thread(service.stop)


def _api_routers(service: PredictionService) -> list[APIRouter]:
    """Return the routers of all endpoints; `/admin` exists only with an API key."""
    key = _key_dependencies(service.settings)
    routers = [
        _prediction_router(service, key),
        _info_router(service, key),
        _health_router(service, [] if service.settings.public_metrics else key),
    ]
    if service.settings.api_key:
        routers.append(_admin_router(service, key))
    return routers


def _key_dependencies(settings: Settings) -> list[Depends]:
    """Return dependencies that declare the API key in OpenAPI; `RequestMiddleware` checks it."""
    if settings.api_key is None:
        return []
    schemes = (APIKeyHeader(name=API_KEY, auto_error=False), HTTPBearer(auto_error=False))
    return [Security(scheme) for scheme in schemes]


def _prediction_router(service: PredictionService, key: list[Depends]) -> APIRouter:
    router = APIRouter(tags=["predict"], dependencies=key)
    budget = UploadBudget(service.settings.max_upload_bytes)

    @router.post(
        "/predict", response_model=schemas.PredictionResponse, responses=openapi.PREDICT, openapi_extra=openapi.ONE_FILE
    )
    async def predict(request: Request, mask: MaskOption = "png") -> Response:
        """Segment one image.

        With `Accept: image/png` the response is the mask file itself, and `X-Warnings` holds the codes of the warnings.
        """
        _, (result,) = await _segment(service, budget, request, max_files=1)
        if isinstance(result, Exception):
            raise result
        only_png = _accepts_only_png(request.headers.get("accept", ""))
        return _mask_file(result) if only_png else _json(_prediction_json(result, mask))

    @router.post(
        "/batch_predict",
        response_model=schemas.BatchResponse,
        responses=openapi.BATCH,
        openapi_extra=openapi.MANY_FILES,
    )
    async def batch_predict(request: Request, mask: MaskOption = "png") -> Response:
        """Segment several images. A file that cannot be segmented gets an error item; the others are unaffected."""
        items = []
        for upload, result in zip(*await _segment(service, budget, request, max_files=None), strict=True):
            items.append(_item_json(service, upload, result, mask))
            await asyncio.sleep(0)  # lets other requests run while a batch of large masks is encoded
        return _json("[" + ",".join(items) + "]")

    @router.post(
        "/landing_sites",
        response_model=LandingAnswer,
        responses=openapi.LANDING,
        openapi_extra=openapi.ONE_LANDING_FILE,
    )
    async def landing_sites(request: Request) -> Response:
        """Find sites where a drone can land.

        A site is a disc of landing zone. It keeps one clearance from everything unsafe and another one from people and
        vehicles. If there is no site, the status is 200, `sites` is empty, and `reason` says why. The answer is
        advisory.
        """
        _, (result,) = await _segment(service, budget, request, max_files=1, kind=schemas.LandingRequestOptions)
        if isinstance(result, Exception):
            raise result
        return _json(cast(LandingAnswer, result.landing).model_dump_json(by_alias=True))

    return router


async def _segment(
    service: PredictionService,
    budget: UploadBudget,
    request: Request,
    *,
    max_files: int | None,
    kind: type[schemas.PredictionOptions] = schemas.PredictionOptions,
) -> tuple[list[schemas.Upload], list[schemas.PredictionResult | Exception]]:
    """Read the files of a request and return them with their results or errors."""
    service.check_capacity()
    with budget.reserve() as reservation:
        uploads = await read_files(request, service.settings, reservation, kind)
        if max_files and len(uploads) > max_files:
            raise MissingInputError(
                f"The form has {len(uploads)} files. Send one file, or send all files to /batch_predict."
            )
        return uploads, await cancel_on_disconnect(service.predict(uploads), request.receive)


def _info_router(service: PredictionService, key: list[Depends]) -> APIRouter:
    router = APIRouter(tags=["about"])

    @router.get("/model_info", response_model=schemas.ModelResponse, responses=openapi.MODEL, dependencies=key)
    async def model_info() -> schemas.ModelResponse:
        """Return the active model: id, licence, classes and quality metrics."""
        return service.model_info()

    @router.get("/drift", response_model=schemas.DriftResponse, responses=openapi.DRIFT, dependencies=key)
    async def drift(
        n: Annotated[int, Query(ge=MIN_RECORDS, le=MAX_RECORDS, description="Maximum number of recent records.")] = 200,
    ) -> schemas.DriftResponse:
        """Compare recent predictions with the validation images and write a drift report.

        Concurrent requests share one report. Takes a few seconds; predictions are not blocked.
        """
        report = await asyncio.shield(asyncio.wrap_future(service.drift.request_report(n)))
        return schemas.DriftResponse(url=report.url, message=report.message, drifted=report.drifted)

    @router.get("/", response_model=schemas.StatusResponse, responses=openapi.STATUS)
    async def status(request: Request) -> Response:
        """Return service status and links. Browsers are redirected to `/ui`."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/ui")
        return JSONResponse(service.status(openapi.LINKS).model_dump())

    return router


def _health_router(service: PredictionService, metrics_key: list[Depends]) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/livez", response_model=schemas.HealthResponse, responses=openapi.LIVE)
    async def livez() -> schemas.HealthResponse:
        """Respond with 200 while the process runs."""
        return schemas.HealthResponse(status="alive")

    @router.get("/readyz", response_model=schemas.HealthResponse, responses=openapi.READY)
    async def readyz() -> schemas.HealthResponse:
        """Respond with 200 once the model has made a test prediction, with 503 before."""
        service.model_info()
        return schemas.HealthResponse(status="ready")

    @router.get("/metrics", response_class=Response, responses=openapi.METRICS, dependencies=metrics_key)
    async def metrics(request: Request) -> Response:
        """Return metrics in the Prometheus text format or as OpenMetrics."""
        content, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    return router


def _admin_router(service: PredictionService, key: list[Depends]) -> APIRouter:
    router = APIRouter(tags=["admin"], dependencies=key)

    @router.post("/admin/reload", response_model=schemas.ReloadResponse, responses=openapi.RELOAD)
    async def reload() -> schemas.ReloadResponse:
        """Load the model in the configured folder. If it fails verification, the current model stays active."""
        changed = await asyncio.wrap_future(service.reload_async())
        return schemas.ReloadResponse(model_id=service.model_info().model_id, changed=changed)

    return router


def _page_router(service: PredictionService) -> APIRouter:
    """Return the routes of the web page. Its files are part of the package and load nothing from other hosts."""
    router = APIRouter(include_in_schema=False)
    folder = files("droneseg.serving") / "static"
    contents = {name: (folder / name).read_bytes() for name in _PAGE_FILES}

    def add_file(name: str, path: str) -> None:
        @router.get(path)
        async def page_file() -> Response:
            return Response(contents[name], media_type=_PAGE_FILES[name], headers=_PAGE_HEADERS)

    add_file("page.html", "/ui")
    for name in _PAGE_FILES:
        if name != "page.html":
            add_file(name, f"/ui/{name}")

    @router.get("/ui/settings.json")
    async def settings() -> schemas.PageSettings:
        return schemas.PageSettings(classes=schemas.class_infos(service.require_classes()))

    return router


def _add_exception_handlers(app: FastAPI, service: PredictionService) -> None:
    """Register handlers that return every error in the shared error format."""

    @app.exception_handler(DronesegError)
    async def handle_expected_error(_request: Request, error: DronesegError) -> Response:
        return error_response(error, service.error_detail(error))

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(_request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        invalid = MissingInputError("; ".join(problems))
        return error_response(invalid, service.error_detail(invalid))

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> Response:
        return http_error_response(error.status_code, f"{error.detail}: {request.url.path}", dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def handle_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def _mask_file(result: schemas.PredictionResult) -> Response:
    headers = {"X-Model-ID": result.model_id}
    if result.ground.warnings:
        headers["X-Warnings"] = ",".join(result.ground.warnings)
    return Response(result.mask_png, media_type=PNG, headers=headers)


def _prediction_json(result: schemas.PredictionResult, mask: str) -> str:
    if mask == "none":
        return result.to_response(with_mask=False).model_dump_json(exclude={"segmentation_mask"})
    return result.to_response().model_dump_json()


def _item_json(
    service: PredictionService, upload: schemas.Upload, result: schemas.PredictionResult | Exception, mask: str
) -> str:
    if isinstance(result, schemas.PredictionResult):
        return _prediction_json(result, mask)
    return service.batch_item_error(upload, result).model_dump_json()


def _accepts_only_png(accept: str) -> bool:
    """Return whether an `Accept` header requests the mask file instead of JSON."""
    return PNG in accept and "application/json" not in accept


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
