"""Framework-independent prediction service."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from importlib.metadata import version

import numpy as np

from droneseg.core import errors
from droneseg.core.camera import Ground, read_ground
from droneseg.core.classes import ClassTable
from droneseg.core.images import decode_image, open_image
from droneseg.core.masks import encode_mask
from droneseg.core.prediction import Prediction, Segmenter
from droneseg.core.settings import Settings
from droneseg.inference.landing import allowed_roles, find_sites
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving import schemas
from droneseg.serving.background import DriftReporter, PredictionLogger
from droneseg.serving.error_responses import client_message, error_spec
from droneseg.serving.queue import WorkQueue

logger = logging.getLogger(__name__)

# Cloud Run kills a container 10 s after SIGTERM
START_S = 1.0  # to wait for an unfinished start-up
DRAIN_S = 7.5  # to finish the admitted requests
GRACEFUL_S = 8  # to send the last responses; unfinished request bodies are abandoned
STOP_S = 9.0  # to write the last records

_BAD_INPUT_STATUSES = frozenset({400, 408, 413, 415, 422})
_MIN_ALLOWED_TILES = 4  # always allowed, regardless of the pixel limit
_SHAPE_MARGIN = 2  # an image may need this many times the tiles of a square of the largest size


@dataclass(frozen=True)
class _Job:
    """An admitted upload and its ground resolution, from the client or the metadata."""

    upload: schemas.Upload
    ground: Ground


class PredictionService:
    """Predicts with one model, which can be replaced while the service runs.

    Args:
        settings: Application settings.
        load: Function that loads the model named by the settings.
        metrics: Prometheus metrics.
        fetch: Function that downloads the model; called once when the service starts.

    Raises:
        ConfigurationError: If the URL of the records or the reports is not supported.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Segmenter],
        metrics: ServiceMetrics,
        *,
        fetch: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self._load, self.metrics, self._fetch = settings, load, metrics, fetch
        self._segmenter: Segmenter | None = None
        self._queue: WorkQueue[_Job, schemas.PredictionResult] | None = None
        self._unavailable_reason = "the model is loading."
        self._reload_lock = threading.Lock()
        self._inference_lock = threading.Lock()
        self._prediction_logger = PredictionLogger(settings, metrics)
        self.drift = DriftReporter(
            settings, metrics, flush=self._prediction_logger.flush, model_id=lambda: self._require_model().model_id
        )
        self._reload_thread = ThreadPoolExecutor(1, "reload")
        self._stop_deadline: float | None = None
        self._drain_thread: threading.Thread | None = None

    def start(self) -> None:
        """Load the model and make a test prediction. On failure the service stays up and responds with 503."""
        self._prediction_logger.start()
        try:
            self._fetch()
            self.reload()
        except errors.DronesegError as error:
            self._unavailable_reason = str(error)
            logger.error("the model is not available: %s", error)
        # the objects created so far are permanent: if they were not frozen, the garbage collector would scan them
        # repeatedly and pause all threads
        gc.collect()
        gc.freeze()

    def start_shutdown(self) -> None:
        """Start the shutdown: reject new requests and fail requests that do not finish in time."""
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + STOP_S
            self.drift.stop()
            if self._queue:
                self._queue.stop_accepting()
                self._drain_thread = threading.Thread(target=self._queue.close, args=(DRAIN_S,), name="drain")
                self._drain_thread.start()

    def stop(self) -> None:
        """Finish accepted requests and flush records within `STOP_S` seconds of the start of the shutdown."""
        self.start_shutdown()
        if self._drain_thread:
            self._drain_thread.join()
        self._prediction_logger.stop(max(1.0, (self._stop_deadline or 0.0) - time.monotonic()))
        self._reload_thread.shutdown(wait=False, cancel_futures=True)

    def reload_async(self) -> Future[bool]:
        """Reload the model in a background thread; see `reload`."""
        return self._reload_thread.submit(self.reload)

    def reload(self) -> bool:
        """Load the model named by the settings and activate it. Return False if it is already active.

        Requests continue with the current model, which stays active if the new one fails.

        Raises:
            ModelRefusedError: If the model fails verification or its test prediction.
        """
        with self._reload_lock:
            loaded = self._load_if_new()
            if loaded is None:
                return False
            segmenter, seconds_per_unit = loaded
            if self._segmenter:
                self.metrics.count_reload("taken")
            self._segmenter = segmenter
            if self._queue is None:
                self._queue = self._create_queue(seconds_per_unit)
            self._queue.reset_rate(seconds_per_unit)
            self.metrics.set_model(segmenter.model_id, segmenter.profile, segmenter.classes.names)
            logger.info("model %s is active, profile %s", segmenter.model_id, segmenter.profile)
            return True

    @property
    def model_id(self) -> str | None:
        """Id of the active model; None if there is none."""
        return self._segmenter.model_id if self._segmenter else None

    def check_capacity(self) -> None:
        """Raise if no request can be admitted now; called before a request body is read.

        Raises:
            NotReadyError: If no verified model is loaded.
            QueueFullError: If the queue is full.
        """
        self._require_queue().check_capacity()

    async def predict(self, uploads: Sequence[schemas.Upload]) -> list[schemas.PredictionResult | Exception]:
        """Return the result or the error of each upload, in order.

        Uploads that have not started after the timeout are removed from the queue, because its estimate can be wrong,
        for example for an image that takes minutes to decode. They are also removed if the caller is cancelled.

        Raises:
            NotReadyError: If no verified model is loaded.
            QueueFullError: If the queue has no room for the uploads.
        """
        futures = await asyncio.to_thread(self.submit, uploads)
        waiting = [asyncio.wrap_future(future) for future in futures]
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=self.settings.timeout_seconds)
                for future in futures:
                    future.cancel()  # has no effect on a job that has started
                await asyncio.wait(waiting)
        finally:
            for future, wrapped in zip(futures, waiting, strict=True):
                future.cancel()
                wrapped.cancel()
        return [_outcome(wrapped, self.settings.timeout_seconds) for wrapped in waiting]

    def submit(self, uploads: Sequence[schemas.Upload]) -> list[Future[schemas.PredictionResult]]:
        """Admit all uploads of a request or none. Uploads that cannot be opened get a failed future.

        Args:
            uploads: Image files, of which only the headers are read here.

        Returns:
            One future per upload, in order. Cancel a future that is no longer needed.

        Raises:
            NotReadyError: If no verified model is loaded.
            QueueFullError: If the queue has no room for the uploads.
        """
        queue, segmenter = self._require_queue(), self._require_model()
        futures: list[Future[schemas.PredictionResult]] = [Future() for _ in uploads]
        jobs: dict[int, tuple[_Job, float]] = {}
        for index, upload in enumerate(uploads):
            options = upload.options
            ground = read_ground(upload.data, gsd_m=options.gsd_m, height_m=options.height_m)
            try:
                if upload.landing:
                    allowed_roles(upload.landing.allow, segmenter.classes)
                jobs[index] = _Job(upload, ground), count_tiles(upload, ground, segmenter, self.settings.max_pixels)
            except (errors.ImageError, errors.LandingRoleError) as error:
                futures[index].set_exception(error)
        admitted = queue.submit(list(jobs.values()))
        for index, future in zip(jobs, admitted, strict=True):
            futures[index] = future
        return futures

    def error_detail(self, error: Exception) -> schemas.ErrorDetail:
        """Return code and message of an error for the client. Count invalid input; count and log internal errors."""
        spec = error_spec(error)
        if spec.status in _BAD_INPUT_STATUSES:
            self.metrics.count_bad_input(spec.code)
        elif spec.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.metrics.count_fault(spec.code)
            logger.error("a request failed: %s", error, exc_info=error)
        return schemas.ErrorDetail(code=spec.code, message=client_message(error))

    def batch_item_error(self, upload: schemas.Upload, error: Exception) -> schemas.BatchItemError:
        """Return the batch item of an upload that failed."""
        return schemas.BatchItemError(filename=upload.filename, error=self.error_detail(error))

    def model_info(self) -> schemas.ModelResponse:
        """Return the description of the active model.

        Raises:
            NotReadyError: If no verified model is loaded.
        """
        self._require_queue()
        return schemas.model_response(self._require_model())

    @property
    def model(self) -> Segmenter | None:
        """The active model; None if there is none."""
        return self._segmenter

    def require_classes(self) -> ClassTable:
        """Return the classes of the active model.

        Raises:
            NotReadyError: If no verified model is loaded.
        """
        return self._require_model().classes

    def status(self, links: Mapping[str, str]) -> schemas.StatusResponse:
        """Return version and readiness of the service and links to its pages."""
        return schemas.StatusResponse(
            service="droneseg",
            version=version("droneseg"),
            ready=self.model_id is not None,
            model_id=self.model_id,
            links=dict(links),
        )

    def _load_if_new(self) -> tuple[Segmenter, float] | None:
        """Load the model and measure its seconds per unit of work. Return None if it is already active."""
        try:
            segmenter = self._load()
            active = self._segmenter
            if active and (active.model_id, active.profile) == (segmenter.model_id, segmenter.profile):
                return None
            return segmenter, measure_seconds_per_unit(segmenter)
        except Exception as error:
            self.metrics.count_reload("refused")
            if isinstance(error, errors.DronesegError):
                raise errors.ModelRefusedError(str(error)) from error
            logger.exception("the model failed to load")
            raise errors.ModelRefusedError(
                f"The model failed to load ({type(error).__name__}). See the server log."
            ) from error

    def _require_model(self) -> Segmenter:
        if self._segmenter is None:
            raise errors.NotReadyError(f"No verified model is loaded: {self._unavailable_reason}")
        return self._segmenter

    def _require_queue(self) -> WorkQueue[_Job, schemas.PredictionResult]:
        if self._stop_deadline is not None:
            raise errors.NotReadyError("The service is shutting down. Retry with another instance.")
        self._require_model()
        if self._queue is None:
            raise errors.NotReadyError("The model is still warming up. Retry in a few seconds.")
        return self._queue

    def _create_queue(self, seconds_per_unit: float) -> WorkQueue[_Job, schemas.PredictionResult]:
        queue = WorkQueue(
            self._predict,
            limit_s=self.settings.queue_seconds,
            timeout_s=self.settings.timeout_seconds,
            seconds_per_unit=seconds_per_unit,
        )
        self.metrics.watch_queue(lambda: queue.waiting, lambda: queue.seconds)
        return queue

    def _predict(self, job: _Job, waited_s: float) -> schemas.PredictionResult:
        started_at, upload = time.perf_counter(), job.upload
        image = decode_image(upload.data, max_pixels=self.settings.max_pixels)
        decode_s = time.perf_counter() - started_at
        # one image is in the network while another is decoded or encoded; waiting for the lock counts as queueing
        with self._inference_lock:
            waited_s += time.perf_counter() - started_at - decode_s
            segmenter, requirements = self._require_model(), upload.landing
            prediction = segmenter.segment(
                image, job.ground, plain=upload.options.plain, landing=requirements is not None
            )
        landing = find_sites(prediction, segmenter.landing_policy, requirements) if requirements else None
        predicted_at = time.perf_counter()
        mask_png = encode_mask(prediction.mask, prediction.classes)
        encode_s = time.perf_counter() - predicted_at
        prediction = _with_timings(prediction, queue=waited_s, decode=decode_s, encode=encode_s)
        self.metrics.count_prediction(prediction)
        if landing:
            self.metrics.count_landing(landing.decision, landing.reason)
        self._prediction_logger.log(upload, prediction, mask_png, landing)
        return schemas.PredictionResult.of(upload.filename, prediction, mask_png, landing)


def count_tiles(upload: schemas.Upload, ground: Ground, segmenter: Segmenter, max_pixels: int) -> int:
    """Return the number of tiles that the network has to process for an image: its size in the queue.

    Raises:
        ImageError: If the file is not an image or is too large.
    """
    width, height = open_image(upload.data, max_pixels=max_pixels).size
    plain, side = upload.options.plain, math.isqrt(max_pixels)
    tiles = segmenter.count_tiles((height, width), ground, plain=plain)
    # a strip that is one pixel wide has few pixels, but is padded to many tiles
    limit = max(_MIN_ALLOWED_TILES, _SHAPE_MARGIN * segmenter.count_tiles((side, side), ground, plain=plain))
    if tiles > limit:
        raise errors.ImageTooLargeError(
            f"Image is {width}x{height} and needs {tiles:,} tiles; the limit is {limit:,}. "
            "Send parts that are less narrow."
        )
    return tiles


def measure_seconds_per_unit(segmenter: Segmenter) -> float:
    """Run two predictions and return the seconds per unit of work of the second, because the first is slower."""
    height, width, _ = segmenter.info.input_shape
    image = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    segmenter.segment(image)
    started_at = time.perf_counter()
    segmenter.segment(image)
    return time.perf_counter() - started_at


def _with_timings(prediction: Prediction, *, queue: float, decode: float, encode: float) -> Prediction:
    timings_s = {"queue": round(queue, 5), "decode": round(decode, 5), **prediction.timings_s}
    return replace(prediction, timings_s=timings_s | {"encode": round(encode, 5)})


def _outcome(done: asyncio.Future[schemas.PredictionResult], timeout_s: float) -> schemas.PredictionResult | Exception:
    if done.cancelled():
        return errors.TooLateError(f"The request timed out after {timeout_s:g} s in the queue. Retry later.")
    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, Exception):
        return error
    raise error
