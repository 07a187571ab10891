"""Background work: prediction log, retention, drift reports."""

import json
import logging
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec

from droneseg.core import errors
from droneseg.core.images import Image
from droneseg.core.prediction import Prediction
from droneseg.core.settings import Settings
from droneseg.core.system import background_command, background_environment
from droneseg.monitoring.drift_report import DriftResult, require_somewhere
from droneseg.monitoring.prediction_log import PredictionLog, Sample
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.monitoring.storage import DISABLED, check_url
from droneseg.serving.schemas import Upload

logger = logging.getLogger(__name__)

_FLUSH_S = 3.0
_TIMEOUT_S = 600.0  # a busy machine leaves little to the lowest priority
_EXPECTED: dict[str, type[errors.DronesegError]] = {
    kind.__name__: kind for kind in (errors.DriftError, errors.RecordsError, errors.BundleError)
}


class DriftReporter:
    """Makes reports.

    Args:
        settings: Model and places.
        metrics: What is counted and shown.
        flush: Writes the records that wait, within a number of seconds.
        answering: Returns the model that answers; raises `NotReadyError` without one.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: ServiceMetrics,
        *,
        flush: Callable[[float], None],
        answering: Callable[[], str],
    ) -> None:
        self._settings, self._metrics, self._flush, self._answering = settings, metrics, flush, answering
        self._stopped = False
        self._worker = ThreadPoolExecutor(1, "drift")
        self._lock = threading.Lock()
        self._report: Future[DriftResult] | None = None
        self._process: subprocess.Popen[str] | None = None

    def request_report(self, number: int) -> "Future[DriftResult]":
        """Begin a report on the last records; while one is being made, that one is the answer.

        Args:
            number: How many records, at most.

        Raises:
            MissingDependencyError: If Evidently is not installed.
            DriftError: If no records are kept, or a report has nowhere to go.
            NotReadyError: If there is no verified model, or the service stops.
        """
        if find_spec("evidently") is None:
            raise errors.MissingDependencyError("evidently", "drift")
        require_somewhere(self._settings.records_url, self._settings.reports_url)
        answering = self._answering()
        with self._lock:
            if self._stopped:
                raise errors.NotReadyError("The service is stopping.")
            if self._report is None or self._report.done():
                self._report = self._worker.submit(self._make, number, answering)
            return self._report

    def stop(self) -> None:
        """Give up the report that is being made."""
        with self._lock:
            self._stopped = True
            if self._process:
                self._process.kill()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _make(self, number: int, answering: str) -> DriftResult:
        try:
            self._flush(_FLUSH_S)
            found = self._run(number, answering)
        except BaseException:
            self._metrics.count_drift_report("failed")
            raise
        self._metrics.show_drift(drifted=found.drifted, share=found.share)
        logger.info("drift report: %s %s", found.url, found.message)
        return found

    def _run(self, number: int, answering: str) -> DriftResult:
        settings = self._settings
        arguments = [str(settings.model), settings.records_url, settings.reports_url, str(number), answering]
        with self._lock:
            if self._stopped:
                raise errors.NotReadyError("The service is stopping.")
            self._process = subprocess.Popen(
                background_command("droneseg.monitoring.drift_report", arguments),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=background_environment(),
            )
        try:
            said, log = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise errors.TooLateError(
                f"The report was not done within {_TIMEOUT_S:.0f} s: the machine is busy."
            ) from None
        if self._stopped:
            raise errors.NotReadyError("The service is stopping.")
        if self._process.returncode < 0:
            signal = -self._process.returncode
            raise errors.RecordsError(
                f"The report's process was ended by signal {signal}, perhaps for want of memory. Ask again."
            )
        if self._process.returncode:
            raise RuntimeError(f"the report ended with {self._process.returncode}: {log[-2000:]}")
        found = json.loads(said)
        if "error" in found:
            raise _EXPECTED.get(found["error"], errors.DronesegError)(found["message"])
        return DriftResult.model_validate(found)


_FIRST_PRUNING_S = 60.0
_PRUNING_S = 3600.0
_PRUNING_TAKES_S = 900.0


class PredictionLogger:
    """Records, samples and their retention.

    Args:
        settings: Where, what and how long.
        metrics: What is counted.

    Raises:
        ConfigurationError: If nothing here can write where the settings say.
    """

    def __init__(self, settings: Settings, metrics: ServiceMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._recorder: PredictionLog | None = None
        self._ended = threading.Event()
        for name in ("records_url", "reports_url"):
            if (url := getattr(settings, name)) != DISABLED:
                check_url(f"DRONESEG_{name.upper()}", url)

    def start(self) -> None:
        """Begin; does nothing if no records are wanted."""
        settings = self._settings
        if settings.records_url == DISABLED:
            return
        self._recorder = PredictionLog(
            settings.records_url,
            count_records=self._metrics.count_records,
            count_samples=self._metrics.count_samples,
            sample_share=settings.sample_share,
            keep_names=settings.record_names,
        )
        if settings.retention_days or settings.retention_mb:
            threading.Thread(target=self._prune_now_and_then, name="retention", daemon=True).start()

    def keep(self, upload: Upload, image: Image, prediction: Prediction, mask_png: bytes) -> None:
        """Leave a prediction to the background."""
        if self._recorder:
            self._recorder.log(upload.filename, image, prediction, Sample(upload.data, mask_png))

    def flush(self, timeout_s: float) -> None:
        """Wait until what was predicted so far is written, if it can be in that time."""
        if self._recorder:
            self._recorder.flush(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Write what is left; what cannot be written in time is dropped, and counted."""
        self._ended.set()
        if self._recorder:
            self._recorder.close(timeout_s)

    def _prune_now_and_then(self) -> None:
        pause_s = _FIRST_PRUNING_S
        while not self._ended.wait(pause_s):
            pause_s = _PRUNING_S
            for url in {self._settings.records_url, self._settings.reports_url} - {DISABLED}:
                self._prune(url)

    def _prune(self, url: str) -> None:
        """Prune in a process of the lowest priority: a store may hold very many files."""
        settings = self._settings
        arguments = [url, str(settings.retention_days), str(settings.retention_mb)]
        try:
            done = subprocess.run(
                background_command("droneseg.monitoring.retention", arguments), env=background_environment(),
                capture_output=True, text=True, timeout=_PRUNING_TAKES_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            logger.warning("old records were not all deleted within %.0f s", _PRUNING_TAKES_S)
            return
        if done.returncode:
            logger.warning("old records cannot be deleted: %s", done.stderr.strip()[-500:])
        elif done.stdout.strip() != "0":
            logger.info("%s old files of %s were deleted", done.stdout.strip(), url)
