"""The endpoints. Each takes a request apart, asks the service, and puts the answer into HTTP."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import RootModel

from droneseg.core.errors import MissingInputError
from droneseg.monitoring.drift import FEWEST
from droneseg.monitoring.drift_report import MOST
from droneseg.serving.answers import Answer
from droneseg.serving.api import documentation
from droneseg.serving.api.uploads import read_files
from droneseg.serving.bodies import BodyMemory
from droneseg.serving.schemas import (
    DriftAnswer,
    FailedItem,
    HealthAnswer,
    ModelAnswer,
    PredictionAnswer,
    ReloadAnswer,
    StatusAnswer,
)
from droneseg.serving.service import PredictionService
from droneseg.serving.waiting import answers, unless_gone

MaskWish = Annotated[Literal["png", "none"], Query(description="none leaves the mask out.")]
PNG = "image/png"


class BatchAnswer(RootModel[list[PredictionAnswer | FailedItem]]):
    """One item per file, in order."""


def make_router(service: PredictionService, memory: BodyMemory) -> APIRouter:
    """Return the endpoints that predict and those that tell about the model and the service."""
    router = APIRouter()
    _add_predictions(router, service, memory)
    _add_facts(router, service)
    if service.settings.api_key:
        _add_admin(router, service)
    return router


def _add_predictions(router: APIRouter, service: PredictionService, memory: BodyMemory) -> None:
    settings = service.settings

    @router.post(
        "/predict",
        response_model=PredictionAnswer,
        responses=documentation.PREDICT,
        openapi_extra=documentation.ONE_FILE,
        tags=["predict"],
    )
    async def predict(request: Request, mask: MaskWish = "png") -> Response:
        """Say what is where in one photograph.

        With `Accept: image/png` the answer is the mask file itself.
        """
        service.require_room()
        with memory.lease() as lease:
            uploads = await read_files(request, settings, lease)
            if len(uploads) > 1:
                raise MissingInputError(f"There are {len(uploads)} files; send one here, or all to /batch_predict.")
            (answer,) = await unless_gone(answers(service, uploads), request.receive)
        if isinstance(answer, Exception):
            raise answer
        if _wants_png(request.headers.get("accept", "")):
            return Response(answer.mask_png, media_type=PNG, headers={"X-Model-ID": answer.model_id})
        return _json(answer.to_schema(with_mask=mask == "png").model_dump_json(exclude=_left_out(mask)))

    @router.post(
        "/batch_predict",
        response_model=BatchAnswer,
        responses=documentation.BATCH,
        openapi_extra=documentation.MANY_FILES,
        tags=["predict"],
    )
    async def batch_predict(request: Request, mask: MaskWish = "png") -> Response:
        """Say what is where in several photographs; one that cannot be used loses none of the others."""
        service.require_room()
        with memory.lease() as lease:
            uploads = await read_files(request, settings, lease)
            found = await unless_gone(answers(service, uploads), request.receive)
        items = []
        for upload, answer in zip(uploads, found, strict=True):
            if isinstance(answer, Answer):
                items.append(answer.to_schema(with_mask=mask == "png").model_dump_json(exclude=_left_out(mask)))
            else:
                items.append(service.failed_item(upload, answer).model_dump_json())
            await asyncio.sleep(0)  # a batch of large masks leaves the loop to others in between
        return _json("[" + ",".join(items) + "]")


def _add_facts(router: APIRouter, service: PredictionService) -> None:
    @router.get("/model_info", response_model=ModelAnswer, responses=documentation.MODEL, tags=["about"])
    async def model_info() -> ModelAnswer:
        """Describe the model that answers: its terms, its classes, and how good it is."""
        return service.model_answer()

    @router.get("/drift", response_model=DriftAnswer, responses=documentation.DRIFT, tags=["about"])
    async def drift(
        n: Annotated[int, Query(ge=FEWEST, le=MOST, description="How many of the last records, at most.")] = 200,
    ) -> DriftAnswer:
        """Hold the last records against the photographs the model was validated on, and write a report.

        While one is being made, that one is the answer. It takes some seconds; predictions go on.
        """
        found = await asyncio.shield(asyncio.wrap_future(service.drift.ask(n)))
        return DriftAnswer(url=found.url, message=found.message, drifted=found.drifted)

    @router.get("/livez", response_model=HealthAnswer, responses=documentation.LIVE, tags=["health"])
    async def livez() -> HealthAnswer:
        """Answer while the process lives."""
        return HealthAnswer(status="alive")

    @router.get("/readyz", response_model=HealthAnswer, responses=documentation.READY, tags=["health"])
    async def readyz() -> HealthAnswer:
        """Answer 200 once a real prediction has been made, 503 before."""
        service.model_answer()
        return HealthAnswer(status="ready")

    @router.get("/metrics", response_class=Response, responses=documentation.METRICS, tags=["health"])
    async def metrics(request: Request) -> Response:
        """Return the figures for Prometheus, in its text format or as OpenMetrics."""
        content, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    @router.get("/", response_model=StatusAnswer, responses=documentation.STATUS, tags=["about"])
    async def status(request: Request) -> Response:
        """Say what this is and where to go on; a browser is sent to the page."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/ui")
        return JSONResponse(service.status_answer(documentation.LINKS).model_dump())


def _add_admin(router: APIRouter, service: PredictionService) -> None:
    @router.post("/admin/reload", response_model=ReloadAnswer, responses=documentation.RELOAD, tags=["admin"])
    async def reload() -> ReloadAnswer:
        """Take up the model that stands where the settings say; if it does not verify, the old one goes on."""
        changed = await asyncio.wrap_future(service.reload_aside())
        return ReloadAnswer(model_id=service.model_answer().model_id, changed=changed)


def _wants_png(accept: str) -> bool:
    """Say whether a client asks for the mask file rather than JSON."""
    return PNG in accept and "application/json" not in accept


def _left_out(mask: str) -> set[str]:
    return {"segmentation_mask"} if mask == "none" else set()


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
