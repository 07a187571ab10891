"""Reports on drift for a service: one at a time, in a process of the lowest priority, so that predictions go on."""

import json
import logging
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec

from droneseg.core import errors
from droneseg.core.background import background_command, background_environment
from droneseg.core.settings import Settings
from droneseg.monitoring.drift_report import DriftResult, require_somewhere
from droneseg.monitoring.prometheus import ServiceMetrics

logger = logging.getLogger(__name__)

_FLUSH_S = 3.0
_TIMEOUT_S = 600.0  # a busy machine leaves little to the lowest priority
_EXPECTED: dict[str, type[errors.DronesegError]] = {
    kind.__name__: kind for kind in (errors.DriftError, errors.RecordsError, errors.BundleError)
}


class DriftReports:
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

    def ask(self, number: int) -> "Future[DriftResult]":
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
