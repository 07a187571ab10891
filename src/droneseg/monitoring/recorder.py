"""From a prediction to its record, in the background: statistics of a photograph take a while, too."""

import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from droneseg.core.images import Image
from droneseg.core.prediction import Prediction
from droneseg.core.statistics import image_statistics
from droneseg.monitoring.records import Outcome, Record, RecordWriter

logger = logging.getLogger(__name__)

_AHEAD = 32  # photographs kept in memory until their statistics are taken


class Recorder:
    """Makes and writes a record of each prediction; never delays or fails one.

    Args:
        url: See `RecordWriter`.
        count: Told how many records were written or dropped.
    """

    def __init__(self, url: str, *, count: Callable[[Outcome, int], None]) -> None:
        self._writer = RecordWriter(url, count=count)
        self._count = count
        self._aside = ThreadPoolExecutor(1, "statistics")
        self._room = threading.Semaphore(_AHEAD)

    def keep(self, filename: str | None, image: Image, prediction: Prediction) -> None:
        """Leave a prediction to the background; one that finds no room there is dropped, and counted."""
        if self._room.acquire(blocking=False):
            self._aside.submit(self._record, datetime.now(UTC), filename, image, prediction)
        else:
            self._count("dropped", 1)

    def close(self, timeout_s: float) -> None:
        """Write what is left; what cannot be written in time is dropped, and counted."""
        self._aside.shutdown(wait=True)
        self._writer.close(timeout_s)

    def _record(self, time: datetime, filename: str | None, image: Image, prediction: Prediction) -> None:
        try:
            height, width = prediction.mask.shape
            record = Record(
                time=time,
                model_id=prediction.model_id,
                width=width,
                height=height,
                class_fractions={name: round(share, 6) for name, share in prediction.class_fractions.items()},
                confidence=round(prediction.confidence, 6),
                statistics=image_statistics(image),
                source=hashlib.sha256(filename.encode()).hexdigest() if filename else None,
            )
            self._writer.add(record)
        except Exception:
            logger.exception("a record was lost")
            self._count("dropped", 1)
        finally:
            self._room.release()
