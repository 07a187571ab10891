"""Prometheus metrics of the service and of drift reports."""

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, write_to_textfile
from prometheus_client.exposition import choose_encoder

from droneseg.core.camera import WarningCode
from droneseg.core.prediction import Prediction
from droneseg.inference.landing import NoSiteReason

STAGES = ("queue", "decode", "preprocess", "network", "postprocess", "encode")
_SECONDS = (0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 1.5, 2.5, 4, 6, 10, 15, 25, 40, 60)
_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, *_SECONDS)
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


class DriftMetrics:
    """Results of the latest drift report; NaN until the first report exists."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(Gauge, registry=registry)
        self._drift = gauge(
            "droneseg_drift", "1 if the latest drift report of this instance found drift, else 0; NaN before the first."
        )
        self._share = gauge("droneseg_drift_share", "Share of the features that differ in the latest drift report.")
        self._time = gauge(
            "droneseg_drift_report_timestamp_seconds", "Time of the latest drift report; 0 if there is none."
        )
        self._drift.set(math.nan)
        self._share.set(math.nan)

    def set(self, *, drifted: bool, share: float) -> None:
        """Set the gauges to the result of a drift report, and the gauge of its time to the current time."""
        self._drift.set(drifted)
        self._share.set(share)
        self._time.set_to_current_time()


def write_drift(file: Path, *, drifted: bool, share: float) -> None:
    """Write the result of a drift report atomically, for the textfile collector of Prometheus."""
    registry = CollectorRegistry()
    DriftMetrics(registry).set(drifted=drifted, share=share)
    write_to_textfile(str(file), registry)


class ServiceMetrics:
    """Metrics of one service, in a registry separate from Prometheus' global one."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._active_model: tuple[str, str] | None = None
        self._class_names: tuple[str, ...] = ()
        self._class_lock = threading.Lock()
        self._add_request_metrics()
        self._add_prediction_metrics()
        self._add_model_metrics()
        self._add_log_metrics()
        self._start_at_zero()

    def _add_request_metrics(self) -> None:
        counter, gauge = partial(Counter, registry=self._registry), partial(Gauge, registry=self._registry)
        self._requests = counter("droneseg_requests", "HTTP requests, by endpoint and status.", ("endpoint", "status"))
        self._request_seconds = Histogram(
            "droneseg_request_seconds",
            "Time from the headers of a request to the last byte of its response.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._bad_inputs = counter("droneseg_bad_inputs", "Rejected inputs, by error code.", ("reason",))
        self._faults = counter("droneseg_faults", "Internal errors, by error code.", ("code",))
        self._queue_images = gauge("droneseg_queue_images", "Images that wait in the queue.")
        self._queue_seconds = gauge("droneseg_queue_seconds", "Estimated seconds of work admitted to the queue.")

    def _add_prediction_metrics(self) -> None:
        counter, histogram = partial(Counter, registry=self._registry), partial(Histogram, registry=self._registry)
        self._stage_seconds = histogram(
            "droneseg_stage_seconds", "Time of each stage of a prediction.", ("stage",), buckets=_STAGE_SECONDS
        )
        self._images = counter("droneseg_images", "Images predicted.")
        self._pixels = counter("droneseg_pixels", "Pixels predicted.")
        self._shares = histogram(
            "droneseg_class_share", "Share of the pixels of an image, by class.", ("class_name",), buckets=_SHARES
        )
        self._confidence = histogram(
            "droneseg_confidence", "Mean probability of the predicted class of an image.", buckets=_CONFIDENCES
        )
        self._warnings = counter("droneseg_prediction_warnings", "Warnings about predictions, by code.", ("code",))
        self._landings = counter(
            "droneseg_landing_decisions",
            "Answers to requests for landing sites, by decision and reason; the reason is empty if there is a site.",
            ("decision", "reason"),
        )

    def _add_model_metrics(self) -> None:
        gauge = partial(Gauge, registry=self._registry)
        self._model = gauge(
            "droneseg_model_info", "1 for the active model, 0 for earlier ones.", ("model_id", "profile")
        )
        self._ready = gauge("droneseg_ready", "1 if a verified model is loaded, else 0.")
        self._reloads = Counter(
            "droneseg_reloads",
            "Model reloads, taken or refused.",
            ("result",),
            registry=self._registry,
        )

    def _add_log_metrics(self) -> None:
        counter = partial(Counter, registry=self._registry)
        self._records = counter("droneseg_records", "Prediction records, written or dropped.", ("result",))
        self._samples = counter("droneseg_samples", "Sampled images, written or dropped.", ("result",))
        self._drift = DriftMetrics(self._registry)
        self._drift_reports = counter("droneseg_drift_reports", "Drift reports, done or failed.", ("result",))

    def _start_at_zero(self) -> None:
        """Create the counters of all label values at 0, so that alert rules notice the first event."""
        for stage in STAGES:
            self._stage_seconds.labels(stage)
        for result in ("written", "dropped"):
            self._records.labels(result)
            self._samples.labels(result)
        for result in ("done", "failed"):
            self._drift_reports.labels(result)
        for result in ("taken", "refused"):
            self._reloads.labels(result)
        for code in ("internal_error", "model_failed"):
            self._faults.labels(code)
        for warning in WarningCode:
            self._warnings.labels(warning.value)
        self._landings.labels("site", "")
        for reason in NoSiteReason:
            self._landings.labels("no_safe_site", reason.value)

    def watch_queue(self, waiting: Callable[[], float], seconds: Callable[[], float]) -> None:
        """Register functions that report the state of the queue whenever the metrics are read.

        Args:
            waiting: Function that returns the number of images in the queue.
            seconds: Function that returns the estimated seconds of admitted work.
        """
        self._queue_images.set_function(waiting)
        self._queue_seconds.set_function(seconds)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a finished request.

        Args:
            endpoint: Route of the request, not its path, so that the number of series is bounded.
            status: HTTP status code.
            seconds: Time from the headers of the request to the last byte of the response.
        """
        self._requests.labels(endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def count_bad_input(self, reason: str) -> None:
        """Count a rejected input.

        Args:
            reason: Code of the error.
        """
        self._bad_inputs.labels(reason).inc()

    def count_fault(self, code: str) -> None:
        """Count an internal error.

        Args:
            code: Code of the error.
        """
        self._faults.labels(code).inc()

    def count_prediction(self, prediction: Prediction) -> None:
        """Count a prediction with its class shares, confidence, stage times and warnings."""
        self._images.inc()
        self._pixels.inc(prediction.mask.size)
        self._confidence.observe(prediction.confidence)
        with self._class_lock:
            # after a reload, a prediction of the previous model must not bring its classes back
            if self._class_names in ((), prediction.classes.names):
                for name, share in prediction.class_fractions.items():
                    self._shares.labels(name).observe(share)
        for stage, seconds in prediction.timings_s.items():
            self._stage_seconds.labels(stage).observe(seconds)
        for code in prediction.ground.warnings:
            self._warnings.labels(code.value).inc()

    def count_landing(self, decision: str, reason: str | None) -> None:
        """Count an answer to a request for landing sites."""
        self._landings.labels(decision, reason or "").inc()

    def count_records(self, result: str, number: int) -> None:
        """Count records; `result` is "written" or "dropped"."""
        self._records.labels(result).inc(number)

    def count_samples(self, result: str, number: int) -> None:
        """Count sampled images; `result` is "written" or "dropped"."""
        self._samples.labels(result).inc(number)

    def count_drift_report(self, result: str) -> None:
        """Count a drift report; `result` is "done" or "failed"."""
        self._drift_reports.labels(result).inc()

    def set_drift(self, *, drifted: bool, share: float) -> None:
        """Set the drift gauges and count the report as done."""
        self._drift.set(drifted=drifted, share=share)
        self.count_drift_report("done")

    def count_reload(self, result: str) -> None:
        """Count a reload of the model; `result` is "taken" or "refused"."""
        self._reloads.labels(result).inc()

    def set_model(self, model_id: str, profile: str, class_names: Sequence[str]) -> None:
        """Set the active model and mark the service as ready.

        There are only the series of its classes: those of another table are removed.
        """
        with self._class_lock:
            if self._class_names != tuple(class_names):
                self._shares.clear()
            self._class_names = tuple(class_names)
            for name in class_names:
                self._shares.labels(name)
        if self._active_model:
            self._model.labels(*self._active_model).set(0)
        self._active_model = (model_id, profile)
        self._model.labels(*self._active_model).set(1)
        self._ready.set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        Args:
            accept: `Accept` header of the request, which selects OpenMetrics or the Prometheus text format.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the header contains a version that is not a number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type
