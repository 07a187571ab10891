"""The BentoML service: the other adapter on the service core, with the answers, limits and errors of FastAPI's."""

import asyncio
from functools import partial
from ipaddress import ip_address
from typing import Annotated, cast

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.validators import ContentType
from starlette.responses import Response
from starlette.types import Scope

from droneseg.core.errors import ConfigurationError
from droneseg.core.logs import configure_logging
from droneseg.core.settings import load_settings, warn_of_misspelt
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.store import fetch_model
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.answers import Upload
from droneseg.serving.door import PHOTOGRAPH, TOLD, Door
from droneseg.serving.envelopes import Base64Image, from_image, from_json
from droneseg.serving.gate import METRICS, Gate
from droneseg.serving.refusals import refusal
from droneseg.serving.schemas import LoadedPredictionAnswer, ModelAnswer
from droneseg.serving.service import PredictionService
from droneseg.serving.times import START_S
from droneseg.serving.waiting import answers
from droneseg.serving.worker import bound_server

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
        bound_server(SERVICE)
        self._starting = asyncio.get_running_loop().run_in_executor(None, SERVICE.start)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Finish what was admitted."""
        await asyncio.wait([self._starting], timeout=START_S)
        await asyncio.to_thread(SERVICE.stop)

    @bentoml.api(route=_BASE64)
    async def predict_base64(self, req: Base64Image) -> LoadedPredictionAnswer:  # noqa: ARG002  # see the door
        """Say what is where in one photograph, sent in JSON."""
        return await _predict()

    @bentoml.api(route=_BYTES)
    async def predict_image_bytes(self, image: Annotated[bytes, ContentType("image/*")], /) -> LoadedPredictionAnswer:  # noqa: ARG002
        """Say what is where in one photograph, which is the body itself."""
        return await _predict()

    @bentoml.api(route=_MODEL)
    async def model_info(self) -> ModelAnswer:
        """Describe the model that answers."""
        try:
            return SERVICE.model_answer()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is answered in our words
            return cast(ModelAnswer, _refuse(error))


async def _predict() -> LoadedPredictionAnswer:
    # the door has taken it out of the body, within bounds and once
    upload = Upload(None, _scope().pop(PHOTOGRAPH))
    try:
        (answer,) = await answers(SERVICE, [upload])
    except Exception as error:  # noqa: BLE001  # as above
        answer = error
    if isinstance(answer, Exception):
        return cast(LoadedPredictionAnswer, _refuse(answer))
    return answer.to_loaded_schema()


def _refuse(error: Exception) -> Response:
    """Return a response, which BentoML passes on; an error it would put into its own form."""
    _scope()[TOLD] = True
    return refusal(error, SERVICE.failed(error))


def _scope() -> Scope:
    return cast(Scope, DroneSegService.context.request.scope)  # type: ignore[attr-defined]  # it is a service now


DroneSegService.add_asgi_middleware(  # type: ignore[attr-defined]  # it is a service now
    Gate,
    settings=_SETTINGS,
    metrics=SERVICE.metrics,
    failed=SERVICE.failed,
    known=(*_OPEN, _BASE64, _BYTES, _MODEL, METRICS),
    open_paths=_OPEN,
)
DroneSegService.add_asgi_middleware(  # type: ignore[attr-defined]
    Door, service=SERVICE, bodies={_BASE64: from_json, _BYTES: from_image}, links=_LINKS
)
