"""Prometheus metrics of the service and of drift reports."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, write_to_textfile
from prometheus_client.exposition import choose_encoder

from droneseg.core.prediction import Prediction

STAGES = ("queue", "decode", "preprocess", "network", "postprocess", "encode")
_SECONDS = (0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 1.5, 2.5, 4, 6, 10, 15, 25, 40, 60)
_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, *_SECONDS)
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


class DriftMetrics:
    """What the last report on drift found; NaN before the first: that nobody looked is not that there is none."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(Gauge, registry=registry)
        self._drift = gauge(
            "droneseg_drift", "1 if the last report of this instance found drift; NaN before the first."
        )
        self._share = gauge("droneseg_drift_share", "Share of the figures that differ, by the same report.")
        self._time = gauge("droneseg_drift_report_timestamp_seconds", "When that report was made; 0 before it.")
        self._drift.set(math.nan)
        self._share.set(math.nan)

    def show(self, *, drifted: bool, share: float) -> None:
        """Show what a report found."""
        self._drift.set(drifted)
        self._share.set(share)
        self._time.set_to_current_time()


def write_drift(file: Path, *, drifted: bool, share: float) -> None:
    """Write what a report found for Prometheus' textfile collector, in one step."""
    registry = CollectorRegistry()
    DriftMetrics(registry).show(drifted=drifted, share=share)
    write_to_textfile(str(file), registry)


class ServiceMetrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self._requests = counter("droneseg_requests", "Requests answered.", ("endpoint", "status"))
        self._request_seconds = histogram(
            "droneseg_request_seconds",
            "A whole request, from its head to the last byte of the answer.",
            ("endpoint",),
            buckets=_SECONDS,
        )
        self._stage_seconds = histogram(
            "droneseg_stage_seconds", "Parts of a prediction.", ("stage",), buckets=_STAGE_SECONDS
        )
        self._images = counter("droneseg_images", "Photographs predicted.")
        self._pixels = counter("droneseg_pixels", "Pixels predicted.")
        self._bad_inputs = counter("droneseg_bad_inputs", "Inputs refused or failed.", ("reason",))
        self._shares = histogram(
            "droneseg_class_share", "Share of a photograph's pixels.", ("class_name",), buckets=_SHARES
        )
        self._confidence = histogram("droneseg_confidence", "Mean winning probability.", buckets=_CONFIDENCES)
        self._model = gauge(
            "droneseg_model_info", "1 for the model that answers, 0 for those before.", ("model_id", "profile")
        )
        self._shown: tuple[str, str] | None = None
        self._ready = gauge("droneseg_ready", "1 if there is a model that has made a prediction.")
        self._reloads = counter("droneseg_reloads", "New models, taken up or refused.", ("result",))
        self._faults = counter("droneseg_faults", "Faults of the service itself.", ("code",))
        self._records = counter("droneseg_records", "Records of predictions.", ("result",))
        self._samples = counter("droneseg_samples", "Photographs kept beside the records.", ("result",))
        self._drift = DriftMetrics(registry)
        self._drift_reports = counter("droneseg_drift_reports", "Reports on drift.", ("result",))
        self._queue_images = gauge("droneseg_queue_images", "Photographs that wait.")
        self._queue_seconds = gauge("droneseg_queue_seconds", "Seconds of work that was admitted.")
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Show what never happened yet as 0: alarms need it."""
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

    def watch_queue(self, waiting: Callable[[], float], seconds: Callable[[], float]) -> None:
        """Read the length of the queue whenever the metrics are read."""
        self._queue_images.set_function(waiting)
        self._queue_seconds.set_function(seconds)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            endpoint: The route, not the path that was asked for, so that their number is bounded.
            status: HTTP status.
            seconds: From its head to the last byte of the answer.
        """
        self._requests.labels(endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def count_bad_input(self, reason: str) -> None:
        """Count an input that was refused or failed, by the code of its error."""
        self._bad_inputs.labels(reason).inc()

    def count_fault(self, code: str) -> None:
        """Count a fault of the service itself, by the code of its error."""
        self._faults.labels(code).inc()

    def count_prediction(self, prediction: Prediction) -> None:
        """Count a prediction, what it found and what its parts took."""
        self._images.inc()
        self._pixels.inc(prediction.mask.size)
        self._confidence.observe(prediction.confidence)
        for name, share in prediction.class_fractions.items():
            self._shares.labels(name).observe(share)
        for stage, seconds in prediction.timings_s.items():
            self._stage_seconds.labels(stage).observe(seconds)

    def count_records(self, result: str, number: int) -> None:
        """Count records that were written or dropped."""
        self._records.labels(result).inc(number)

    def count_samples(self, result: str, number: int) -> None:
        """Count samples that were written or dropped."""
        self._samples.labels(result).inc(number)

    def count_drift_report(self, result: str) -> None:
        """Count a report on drift that was done or failed."""
        self._drift_reports.labels(result).inc()

    def show_drift(self, *, drifted: bool, share: float) -> None:
        """Show what a report on drift found."""
        self._drift.show(drifted=drifted, share=share)
        self.count_drift_report("done")

    def count_reload(self, result: str) -> None:
        """Count a new model that was taken up or refused."""
        self._reloads.labels(result).inc()

    def show_model(self, model_id: str, profile: str) -> None:
        """Say which model answers."""
        if self._shown:
            self._model.labels(*self._shown).set(0)
        self._shown = (model_id, profile)
        self._model.labels(*self._shown).set(1)
        self._ready.set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics, as OpenMetrics or in Prometheus' text format, and the content type: `accept` decides."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # of a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type
