"""From a prediction to its record, in the background: statistics of a photograph take a while, too."""

import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime

from droneseg.core.images import Image
from droneseg.core.prediction import Prediction
from droneseg.core.statistics import image_statistics
from droneseg.monitoring.records import Outcome, Record, RecordWriter

logger = logging.getLogger(__name__)

_AHEAD_BYTES = 256 * 2**20  # of photographs kept in memory until their statistics are taken


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
        self._lock = threading.Lock()
        self._ahead: dict[int, int] = {}  # bytes of each photograph that waits, by a number
        self._numbers = itertools.count()
        self._closed = False

    def keep(self, filename: str | None, image: Image, prediction: Prediction) -> None:
        """Leave a prediction to the background; one that finds no room there is dropped, and counted."""
        with self._lock:
            taken = sum(self._ahead.values())
            fits = not self._closed and (not taken or taken + image.nbytes <= _AHEAD_BYTES)
            if fits:
                number = next(self._numbers)
                self._ahead[number] = image.nbytes
                self._aside.submit(self._record, number, datetime.now(UTC), filename, image, prediction)
        if not fits:
            self._count("dropped", 1)

    def close(self, timeout_s: float) -> None:
        """Write what is left; what cannot be written in time is dropped, and counted."""
        end = time.monotonic() + timeout_s
        with self._lock:
            self._closed = True
            last = self._aside.submit(lambda: None)
        wait([last], timeout_s / 2)
        self._aside.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = len(self._ahead)
            self._ahead.clear()
        if left:
            self._count("dropped", left)
        self._writer.close(max(0.0, end - time.monotonic()))

    def _record(
        self, number: int, moment: datetime, filename: str | None, image: Image, prediction: Prediction
    ) -> None:
        try:
            height, width = prediction.mask.shape
            record = Record(
                time=moment,
                model_id=prediction.model_id,
                width=width,
                height=height,
                class_fractions={name: round(share, 6) for name, share in prediction.class_fractions.items()},
                confidence=round(prediction.confidence, 6),
                statistics=image_statistics(image),
                source=hashlib.sha256(filename.encode()).hexdigest() if filename else None,
            )
        except Exception:
            logger.exception("a record was lost")
            record = None
        with self._lock:
            counted_already = self._ahead.pop(number, None) is None
        if counted_already:
            return
        if record:
            self._writer.add(record)
        else:
            self._count("dropped", 1)
