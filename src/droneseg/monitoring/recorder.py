"""From a prediction to its record, in the background: statistics of a photograph take a while, too."""

import hashlib
import itertools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime

from droneseg.core.images import Image
from droneseg.core.prediction import Prediction, image_statistics
from droneseg.monitoring.records import Outcome, Record, RecordWriter
from droneseg.monitoring.samples import Sample, SampleKeeper

logger = logging.getLogger(__name__)

_AHEAD_BYTES = 256 * 2**20  # of photographs kept in memory until their statistics are taken


@dataclass(frozen=True)
class _Done:
    """A prediction to be recorded."""

    moment: datetime
    filename: str | None
    image: Image
    prediction: Prediction
    sample: Sample | None


class Recorder:
    """Makes and writes a record of each prediction; never delays or fails one.

    Args:
        url: See `RecordWriter`.
        count: Told how many records were written or dropped.
        count_samples: Told the same of samples.
        sample_share: Share of the photographs that are kept with their masks, 0 to 1.
        names: Whether to keep the names of files as they are, rather than their SHA-256.
    """

    def __init__(
        self,
        url: str,
        *,
        count: Callable[[Outcome, int], None],
        count_samples: Callable[[str, int], None] = lambda _result, _number: None,
        sample_share: float = 0.0,
        names: bool = False,
    ) -> None:
        self._writer = RecordWriter(url, count=count)
        self._samples = SampleKeeper(url, count=count_samples)
        self._count, self._share, self._names = count, sample_share, names
        self._aside = ThreadPoolExecutor(1, "statistics")
        self._lock = threading.Lock()
        self._ahead: dict[int, int] = {}  # bytes of each photograph that waits, by a number
        self._numbers = itertools.count()
        self._closed = False

    def keep(self, filename: str | None, image: Image, prediction: Prediction, sample: Sample | None = None) -> None:
        """Leave a prediction to the background; one that finds no room there is dropped, and counted."""
        if random.random() >= self._share:
            sample = None
        done = _Done(datetime.now(UTC), filename, image, prediction, sample)
        size = image.nbytes + (len(sample.data) + len(sample.mask_png) if sample else 0)
        with self._lock:
            taken = sum(self._ahead.values())
            fits = not self._closed and (not taken or taken + size <= _AHEAD_BYTES)
            if fits:
                number = next(self._numbers)
                self._ahead[number] = size
                self._aside.submit(self._record, number, done)
        if not fits:
            self._count("dropped", 1)

    def flush(self, timeout_s: float) -> None:
        """Wait until what was predicted so far is written, if it can be in that time."""
        end = time.monotonic() + timeout_s
        with self._lock:
            if self._closed:
                return
            last = self._aside.submit(lambda: None)
        wait([last], timeout_s)
        self._writer.flush(max(0.0, end - time.monotonic()))

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
        self._samples.close(max(0.0, end - time.monotonic()) / 2)
        self._writer.close(max(0.0, end - time.monotonic()))

    def _record(self, number: int, done: _Done) -> None:
        try:
            record = self._record_of(done)
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

    def _record_of(self, done: _Done) -> Record:
        prediction = done.prediction
        height, width = prediction.mask.shape
        statistics = image_statistics(done.image)
        kept = self._samples.keep(done.moment, uuid.uuid4().hex[:8], done.sample) if done.sample else None
        return Record(
            time=done.moment,
            model_id=prediction.model_id,
            width=width,
            height=height,
            class_fractions={name: round(share, 6) for name, share in prediction.class_fractions.items()},
            confidence=round(prediction.confidence, 6),
            statistics=statistics,
            source=self._source_of(done.filename),
            sample=kept,
        )

    def _source_of(self, filename: str | None) -> str | None:
        if not filename:
            return None
        return filename if self._names else hashlib.sha256(filename.encode()).hexdigest()
