"""PredictionService: model lifecycle, admission, predict, status; shutdown times."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus
from importlib.metadata import version

import numpy as np

from droneseg.core.errors import DronesegError, ImageError, ImageTooLargeError, ModelRefusedError, NotReadyError
from droneseg.core.images import decode_image, open_image
from droneseg.core.masks import encode_mask
from droneseg.core.prediction import Segmenter
from droneseg.core.settings import Settings
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.background import DriftReporter, PredictionLogger
from droneseg.serving.error_responses import error_spec, message_of
from droneseg.serving.queue import WorkQueue
from droneseg.serving.schemas import (
    BatchItemError,
    ErrorDetail,
    ModelResponse,
    PredictionResult,
    StatusResponse,
    Upload,
    describe,
)

START_S = 1.0  # for a start that is not over
DRAIN_S = 7.5  # for what was admitted
GRACEFUL_S = 8  # for the last answers to be sent; bodies that do not come are given up
STOP_S = 9.0  # for the last records


_FEW_TILES = 4  # are always allowed, however low the limit of pixels


def estimate_work(upload: Upload, segmenter: Segmenter, max_pixels: int) -> float:
    """Return the work of a photograph in units of what the network takes at a time; smaller ones cost as much.

    Raises:
        ImageError: If the photograph is no image, or too large.
    """
    width, height = open_image(upload.data, max_pixels=max_pixels).size
    patch_height, patch_width, _ = segmenter.info.input_shape
    seen_height, seen_width = max(height, patch_height), max(width, patch_width)
    # a strip one pixel wide is no larger than a photograph, but as much work as its tiles
    if seen_height * seen_width > max(max_pixels, _FEW_TILES * patch_height * patch_width):
        raise ImageTooLargeError(
            f"Image is {width}x{height}; in tiles of {patch_width}x{patch_height} that is as much work as "
            f"{seen_height * seen_width:,} pixels, and the limit is {max_pixels:,}. Send parts of another shape."
        )
    return seen_height * seen_width / (patch_height * patch_width)


def measure_seconds_per_unit(segmenter: Segmenter) -> float:
    """Predict twice, as the first time is slower; return the seconds that a unit of work takes."""
    height, width, _ = segmenter.info.input_shape
    image = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    segmenter.segment(image)
    begin = time.perf_counter()
    segmenter.segment(image)
    return time.perf_counter() - begin


logger = logging.getLogger(__name__)

_BAD_INPUT = frozenset({400, 408, 413, 415, 422})


class PredictionService:
    """Predicts with one model, which can be exchanged while it serves.

    Args:
        settings: Limits, places and the model.
        load: Makes the segmenter that the settings name.
        metrics: What is counted.
        fetch: Brings the model to where the settings say, once, as the service starts.

    Raises:
        ConfigurationError: If nothing here can write records or reports where the settings say.
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
        self._queue: WorkQueue[Upload, PredictionResult] | None = None
        self._unavailable_reason = "it is being loaded"
        self._loading = threading.Lock()
        self._keeping = PredictionLogger(settings, metrics)
        self.drift = DriftReporter(
            settings, metrics, flush=self._keeping.flush, answering=lambda: self._require_model().model_id
        )
        self._loader = ThreadPoolExecutor(1, "loader")
        self._inference_lock = threading.Lock()
        self._stop_by: float | None = None
        self._draining: threading.Thread | None = None

    def start(self) -> None:
        """Load the model and predict once; without a model the service stays up and says why it cannot answer."""
        self._keeping.start()
        try:
            self._fetch()
            self.reload()
        except DronesegError as error:
            self._unavailable_reason = str(error)  # the service stays up, so that health and metrics tell of it
            logger.error("no model: %s", error)
        # what is there by now stays: looking through it again and again holds up every thread
        gc.collect()
        gc.freeze()

    def start_shutdown(self) -> None:
        """Take nothing more in, and be ready no more; what was admitted and is not done in time is answered so."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_S
            self.drift.stop()
            if self._queue:
                self._queue.stop_accepting()
                self._draining = threading.Thread(target=self._queue.close, args=(DRAIN_S,), name="drain")
                self._draining.start()

    def stop(self) -> None:
        """Finish what was admitted, then write the last records, both within `STOP_S` of the first word of the end."""
        self.start_shutdown()
        if self._draining:
            self._draining.join()
        self._keeping.stop(max(1.0, (self._stop_by or 0.0) - time.monotonic()))
        self._loader.shutdown(wait=False, cancel_futures=True)

    def reload_async(self) -> "Future[bool]":
        """Reload in a thread of its own, one after the other; see `reload`."""
        return self._loader.submit(self.reload)

    def reload(self) -> bool:
        """Take up the model that the settings name, if it verifies and makes a prediction; return whether it is new.

        Requests go on meanwhile with the old one, which also stays if the new one is refused.

        Raises:
            ModelRefusedError: If it is.
        """
        with self._loading:
            try:
                segmenter = self._load()
                if self._answers_already(segmenter):
                    return False
                seconds_per_unit = measure_seconds_per_unit(segmenter)
            except Exception as error:
                self.metrics.count_reload("refused")
                if isinstance(error, DronesegError):
                    raise ModelRefusedError(str(error)) from error
                logger.exception("a model could not be loaded")
                raise ModelRefusedError(f"It cannot be loaded ({type(error).__name__}); the log says more.") from error
            if self._segmenter:
                self.metrics.count_reload("taken")
            self._segmenter = segmenter
            if self._queue is None:
                self._queue = self._open_queue(seconds_per_unit)
            self._queue.reset_rate(seconds_per_unit)
            self.metrics.show_model(segmenter.model_id, segmenter.profile)
            logger.info("model %s answers, profile %s", segmenter.model_id, segmenter.profile)
            return True

    @property
    def model_id(self) -> str | None:
        """The model that answers, if there is one."""
        return self._segmenter.model_id if self._segmenter else None

    def check_capacity(self) -> None:
        """Refuse what would not be admitted whatever its size: asked before a request is read.

        Raises:
            NotReadyError: If there is no verified model.
            QueueFullError: If the queue is full.
        """
        self._ready()[1].check_capacity()

    def submit(self, uploads: Sequence[Upload]) -> "list[Future[PredictionResult]]":
        """Admit the photographs of one request, all or none; those that cannot be opened fail by themselves.

        Args:
            uploads: The files; of each only the header is read here.

        Returns:
            For each its future answer, in order. Cancel those that nobody waits for any more.

        Raises:
            NotReadyError: If there is no verified model.
            QueueFullError: If the queue has no room for them.
        """
        segmenter, queue = self._ready()
        futures: list[Future[PredictionResult]] = [Future() for _ in uploads]
        sizes = {}
        for place, upload in enumerate(uploads):
            try:
                sizes[place] = estimate_work(upload, segmenter, self.settings.max_pixels)
            except ImageError as error:
                futures[place].set_exception(error)
        admitted = queue.submit([(uploads[place], size) for place, size in sizes.items()])
        for place, future in zip(sizes, admitted, strict=True):
            futures[place] = future
        return futures

    def failed(self, error: Exception) -> ErrorDetail:
        """Return what a client is told of an error; count what was bad input, and count and log what is our fault."""
        failure = error_spec(error)
        if failure.status in _BAD_INPUT:
            self.metrics.count_bad_input(failure.code)
        elif failure.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.metrics.count_fault(failure.code)
            logger.error("a request failed: %s", error, exc_info=error)
        return ErrorDetail(code=failure.code, message=message_of(error))

    def failed_item(self, upload: Upload, error: Exception) -> BatchItemError:
        """Return what stands in a batch's answer for a file that failed."""
        return BatchItemError(filename=upload.filename, error=self.failed(error))

    def model_answer(self) -> ModelResponse:
        """Describe the model that answers.

        Raises:
            NotReadyError: If there is no verified model.
        """
        segmenter, _ = self._ready()
        return describe(segmenter)

    def status_answer(self, links: Mapping[str, str]) -> StatusResponse:
        """Say what this is and whether it can answer."""
        return StatusResponse(
            service="droneseg",
            version=version("droneseg"),
            ready=self.model_id is not None,
            model_id=self.model_id,
            links=dict(links),
        )

    def _answers_already(self, segmenter: Segmenter) -> bool:
        now = self._segmenter
        return now is not None and (now.model_id, now.profile) == (segmenter.model_id, segmenter.profile)

    def _ready(self) -> "tuple[Segmenter, WorkQueue[Upload, PredictionResult]]":
        if self._stop_by is not None:
            raise NotReadyError("The service is stopping. Send it again, to another instance.")
        segmenter = self._require_model()
        if self._queue is None:
            raise NotReadyError("The model is being tried.")
        return segmenter, self._queue

    def _open_queue(self, seconds_per_unit: float) -> "WorkQueue[Upload, PredictionResult]":
        queue = WorkQueue(
            self._predict,
            limit_s=self.settings.queue_seconds,
            timeout_s=self.settings.timeout_seconds,
            seconds_per_unit=seconds_per_unit,
        )
        self.metrics.watch_queue(lambda: queue.waiting, lambda: queue.seconds)
        return queue

    def _predict(self, upload: Upload, waited_s: float) -> PredictionResult:
        begin = time.perf_counter()
        image = decode_image(upload.data, max_pixels=self.settings.max_pixels)
        decode_s = time.perf_counter() - begin
        # one photograph is in the network while another is decoded or encoded; waiting for that is waiting, too
        with self._inference_lock:
            waited_s += time.perf_counter() - begin - decode_s
            prediction = self._require_model().segment(image)
        predicted = time.perf_counter()
        mask_png = encode_mask(prediction.mask)
        encode_s = time.perf_counter() - predicted
        timings_s = {"queue": round(waited_s, 5), "decode": round(decode_s, 5), **prediction.timings_s}
        prediction = replace(prediction, timings_s=timings_s | {"encode": round(encode_s, 5)})
        self.metrics.count_prediction(prediction)
        self._keeping.keep(upload, image, prediction, mask_png)
        return PredictionResult.of(upload.filename, prediction, mask_png)

    def _require_model(self) -> Segmenter:
        if self._segmenter is None:
            raise NotReadyError(f"There is no verified model: {self._unavailable_reason}")
        return self._segmenter
