"""What a service keeps of its predictions, as the settings say: records and samples, and for how long."""

import logging
import subprocess
import threading

from droneseg.core.background import background_command, background_environment
from droneseg.core.images import Image
from droneseg.core.prediction import Prediction
from droneseg.core.settings import Settings
from droneseg.monitoring.prediction_log import Recorder, Sample
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.monitoring.storage import NOWHERE, require_place
from droneseg.serving.answers import Upload

logger = logging.getLogger(__name__)

_FIRST_PRUNING_S = 60.0
_PRUNING_S = 3600.0
_PRUNING_TAKES_S = 900.0


class Keeping:
    """Records, samples and their retention.

    Args:
        settings: Where, what and how long.
        metrics: What is counted.

    Raises:
        ConfigurationError: If nothing here can write where the settings say.
    """

    def __init__(self, settings: Settings, metrics: ServiceMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._recorder: Recorder | None = None
        self._ended = threading.Event()
        for name in ("records_url", "reports_url"):
            if (url := getattr(settings, name)) != NOWHERE:
                require_place(f"DRONESEG_{name.upper()}", url)

    def start(self) -> None:
        """Begin; does nothing if no records are wanted."""
        settings = self._settings
        if settings.records_url == NOWHERE:
            return
        self._recorder = Recorder(
            settings.records_url,
            count=self._metrics.count_records,
            count_samples=self._metrics.count_samples,
            sample_share=settings.sample_share,
            names=settings.record_names,
        )
        if settings.retention_days or settings.retention_mb:
            threading.Thread(target=self._prune_now_and_then, name="retention", daemon=True).start()

    def keep(self, upload: Upload, image: Image, prediction: Prediction, mask_png: bytes) -> None:
        """Leave a prediction to the background."""
        if self._recorder:
            self._recorder.keep(upload.filename, image, prediction, Sample(upload.data, mask_png))

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
            for url in {self._settings.records_url, self._settings.reports_url} - {NOWHERE}:
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
