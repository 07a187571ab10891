"""Background work: prediction log, retention, drift reports."""

import json
import logging
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec

from droneseg.core import errors
from droneseg.core.prediction import Prediction
from droneseg.core.settings import Settings
from droneseg.core.system import background_command, background_environment
from droneseg.inference.landing import LandingAnswer
from droneseg.monitoring.drift_report import DriftResult, require_enabled
from droneseg.monitoring.prediction_log import PredictionLog, Sample
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.monitoring.storage import DISABLED, check_url
from droneseg.serving.schemas import Upload

logger = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 3.0
_REPORT_TIMEOUT_S = 600.0  # a process of the lowest priority gets little CPU time on a busy machine
_REPORT_ERRORS: dict[str, type[errors.DronesegError]] = {
    kind.__name__: kind for kind in (errors.DriftError, errors.RecordsError, errors.BundleError)
}
_FIRST_RETENTION_S = 60.0
_RETENTION_INTERVAL_S = 3600.0
_RETENTION_TIMEOUT_S = 900.0


def check_storage(settings: Settings) -> None:
    """Check the URLs of records and reports.

    Raises:
        ConfigurationError: If no installed file system supports a URL.
    """
    for name in ("records_url", "reports_url"):
        if (url := getattr(settings, name)) != DISABLED:
            check_url(f"DRONESEG_{name.upper()}", url)


class PredictionLogger:
    """Logs predictions and deletes old records, as configured in the settings.

    Args:
        settings: Storage locations, sampling rate and retention.
        metrics: Metrics that count written and dropped records.

    Raises:
        ConfigurationError: If no installed file system supports the URL of the records or the reports.
    """

    def __init__(self, settings: Settings, metrics: ServiceMetrics) -> None:
        check_storage(settings)
        self._settings, self._metrics = settings, metrics
        self._prediction_log: PredictionLog | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the background threads unless logging is disabled."""
        settings = self._settings
        if settings.records_url == DISABLED:
            return
        self._prediction_log = PredictionLog(
            settings.records_url,
            count_records=self._metrics.count_records,
            count_samples=self._metrics.count_samples,
            sample_share=settings.sample_share,
            keep_names=settings.record_names,
        )
        if settings.retention_days or settings.retention_mb:
            threading.Thread(target=self._run_retention, name="retention", daemon=True).start()

    def log(
        self, upload: Upload, prediction: Prediction, mask_png: bytes, landing: LandingAnswer | None = None
    ) -> None:
        """Log a prediction, and its landing sites if requested, in the background."""
        if self._prediction_log:
            self._prediction_log.log(upload.filename, prediction, Sample(upload.data, mask_png), landing)

    def flush(self, timeout_s: float) -> None:
        """Wait until the records of all earlier predictions are written, at most `timeout_s` seconds."""
        if self._prediction_log:
            self._prediction_log.flush(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Write the remaining records. Drop and count those that cannot be written in time."""
        self._stopped.set()
        if self._prediction_log:
            self._prediction_log.close(timeout_s)

    def _run_retention(self) -> None:
        pause_s = _FIRST_RETENTION_S
        while not self._stopped.wait(pause_s):
            pause_s = _RETENTION_INTERVAL_S
            for url in {self._settings.records_url, self._settings.reports_url} - {DISABLED}:
                self._delete_old_files(url)

    def _delete_old_files(self, url: str) -> None:
        """Delete old files in a process of the lowest priority, because there may be many of them."""
        arguments = [url, str(self._settings.retention_days), str(self._settings.retention_mb)]
        try:
            completed = subprocess.run(
                background_command("droneseg.monitoring.retention", arguments),
                env=background_environment(),
                capture_output=True,
                text=True,
                timeout=_RETENTION_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            logger.warning("deleting old files of %s timed out after %.0f s", url, _RETENTION_TIMEOUT_S)
            return
        if completed.returncode:
            logger.warning("old files of %s cannot be deleted: %s", url, completed.stderr.strip()[-500:])
        elif completed.stdout.strip() != "0":
            logger.info("deleted %s old files of %s", completed.stdout.strip(), url)


class DriftReporter:
    """Creates drift reports, one at a time, in a process of the lowest priority.

    Args:
        settings: Model folder and storage locations.
        metrics: Metrics of the latest report.
        flush: Function that writes pending records, given a timeout in seconds.
        model_id: Function that returns the id of the active model; raises `NotReadyError` if there is none.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: ServiceMetrics,
        *,
        flush: Callable[[float], None],
        model_id: Callable[[], str],
    ) -> None:
        self._settings, self._metrics, self._flush, self._model_id = settings, metrics, flush, model_id
        self._stopped = False
        self._worker = ThreadPoolExecutor(1, "drift")
        self._lock = threading.Lock()
        self._report: Future[DriftResult] | None = None
        self._process: subprocess.Popen[str] | None = None

    def request_report(self, number: int) -> Future[DriftResult]:
        """Return the future of the report in progress, or of a new one.

        Args:
            number: Maximum number of recent records in a new report.

        Raises:
            MissingDependencyError: If Evidently is not installed.
            DriftError: If the prediction log or the reports are disabled.
            NotReadyError: If no verified model is loaded or the service shuts down.
        """
        if find_spec("evidently") is None:
            raise errors.MissingDependencyError("evidently", "drift")
        require_enabled(self._settings.records_url, self._settings.reports_url)
        model_id = self._model_id()
        with self._lock:
            self._check_running()
            if self._report is None or self._report.done():
                self._report = self._worker.submit(self._create_report, number, model_id)
            return self._report

    def stop(self) -> None:
        """Reject further requests and kill the report in progress."""
        with self._lock:
            self._stopped = True
            if self._process:
                self._process.kill()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _check_running(self) -> None:
        if self._stopped:
            raise errors.NotReadyError("The service is shutting down. Retry with another instance.")

    def _create_report(self, number: int, model_id: str) -> DriftResult:
        try:
            self._flush(_FLUSH_TIMEOUT_S)
            result = self._run(number, model_id)
        except BaseException:
            self._metrics.count_drift_report("failed")
            raise
        self._metrics.set_drift(drifted=result.drifted, share=result.share)
        logger.info("drift report: %s %s", result.url, result.message)
        return result

    def _run(self, number: int, model_id: str) -> DriftResult:
        """Run the report process and return its result."""
        with self._lock:
            self._check_running()
            self._process = process = self._start_process(number, model_id)
        try:
            stdout, stderr = process.communicate(timeout=_REPORT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise errors.TooLateError(
                f"The drift report timed out after {_REPORT_TIMEOUT_S:.0f} s, possibly because the machine is busy. "
                "Retry later."
            ) from None
        self._check_running()
        if process.returncode < 0:
            raise errors.RecordsError(
                f"The drift report process was killed by signal {-process.returncode}, possibly because memory "
                "ran out. Retry later."
            )
        if process.returncode:
            raise RuntimeError(f"the drift report failed with exit code {process.returncode}: {stderr[-2000:]}")
        result = json.loads(stdout)
        if "error" in result:
            raise _REPORT_ERRORS.get(result["error"], errors.DronesegError)(result["message"])
        return DriftResult.model_validate(result)

    def _start_process(self, number: int, model_id: str) -> subprocess.Popen[str]:
        settings = self._settings
        arguments = [str(settings.model), settings.records_url, settings.reports_url, str(number), model_id]
        return subprocess.Popen(
            background_command("droneseg.monitoring.drift_report", arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=background_environment(),
        )
