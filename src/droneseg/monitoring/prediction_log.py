"""Write one record per prediction, and sampled images, in the background."""

import hashlib
import itertools
import logging
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Literal

from PIL import Image as pillow
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from droneseg.core.images import Image
from droneseg.core.prediction import Prediction, image_statistics
from droneseg.monitoring.storage import write_file

logger = logging.getLogger(__name__)

FLUSH_S = 0.5
_CAPACITY = 10_000
_LARGEST_FILE = 1_000
_LONGEST_PAUSE_S = 30.0
_LARGEST_SIDE = 1_000_000  # pixels

Outcome = Literal["written", "dropped"]


class Record(BaseModel):
    """What is kept of a prediction; by default neither the photograph nor its name is."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    time: AwareDatetime
    model_id: str
    width: int = Field(ge=0, le=_LARGEST_SIDE)
    height: int = Field(ge=0, le=_LARGEST_SIDE)
    class_fractions: dict[str, float]
    confidence: float
    statistics: dict[str, float]
    source: str | None = None
    """SHA-256 of the file's name; the name itself if the service is asked to keep names."""
    sample: str | None = None
    """Where the photograph is kept, below the records, if it is."""


class _RecordWriter:
    """Collects records and writes them, many to a file, within a second.

    Files are named by time, `YYYY/MM/DD/HHMMSS.mmm-RANDOM.jsonl`, so that the latest are found without reading others.
    While the store is away, records are kept up to a number and then the oldest dropped.

    Args:
        url: A folder or any place fsspec knows, such as gs://bucket/folder.
        count: Told how many records were written or dropped.
        capacity: How many are kept while they cannot be written.
    """

    def __init__(self, url: str, *, count: Callable[[Outcome, int], None], capacity: int = _CAPACITY) -> None:
        self._url, self._count, self._capacity = url, count, capacity
        self._waiting: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._writing = 0
        self._thread = threading.Thread(target=self._work, name="records", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Take a record; returns at once."""
        with self._changed:
            self._waiting.append(record)
            dropped = len(self._waiting) - self._capacity
            if dropped > 0:
                self._waiting.popleft()
            self._changed.notify_all()
        if dropped > 0:
            self._count("dropped", 1)

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was added is written, if it can be in that time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what is left; what cannot be written in time is dropped, and counted."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._waiting) + self._writing
            self._waiting.clear()
            self._writing = 0
        if left:
            logger.warning("%d records were dropped: %s was not there", left, self._url)
            self._count("dropped", left)

    def _work(self) -> None:
        pause_s = FLUSH_S
        while batch := self._next(pause_s):
            try:
                self._write(batch)
            except Exception as error:  # noqa: BLE001  # a store can fail in any way, and none may stop the service
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                logger.warning("records cannot be written to %s: %s", self._url, error)
                self._give_back(batch)
                if self._closing:
                    return
            else:
                pause_s = FLUSH_S
                with self._changed:
                    written, self._writing = self._writing, 0  # none, if they were given up meanwhile
                    self._changed.notify_all()
                self._count("written", written)

    def _next(self, pause_s: float) -> list[Record]:
        """Wait for records, and then a little for more; returns none when there will be no more."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, pause_s)
            self._writing = min(len(self._waiting), _LARGEST_FILE)
            return [self._waiting.popleft() for _ in range(self._writing)]

    def _give_back(self, batch: list[Record]) -> None:
        with self._changed:
            if not self._writing:
                return  # they were given up, and counted, meanwhile
            self._writing = 0
            room = max(0, self._capacity - len(self._waiting))
            self._waiting.extendleft(reversed(batch[len(batch) - min(room, len(batch)) :]))
        if len(batch) > room:
            self._count("dropped", len(batch) - room)

    def _write(self, batch: list[Record]) -> None:
        first = batch[0].time.astimezone(UTC)
        name = f"{first:%Y/%m/%d/%H%M%S}.{first.microsecond // 1000:03d}-{uuid.uuid4().hex[:8]}.jsonl"
        lines = "".join(record.model_dump_json() + "\n" for record in batch)
        write_file(self._url, name, lines.encode())


FOLDER = "samples"
MASK_SUFFIX = ".mask.png"
_SAMPLES_AHEAD_BYTES = 128 * 2**20  # of files that wait to be written
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


@dataclass(frozen=True)
class Sample:
    """A photograph and its mask.

    Attributes:
        data: The photograph's file as it was sent.
        mask_png: The mask file.
    """

    data: bytes
    mask_png: bytes


class _SampleWriter:
    """Writes samples in the background; those that come while too much waits are left out.

    Args:
        url: Where records are; samples go below it.
        count: Told how many were "written" or "dropped".
    """

    def __init__(self, url: str, *, count: Callable[[str, int], None]) -> None:
        self._url, self._count = url, count
        self._writing = ThreadPoolExecutor(1, "samples")
        self._lock = threading.Lock()
        self._ahead: dict[str, int] = {}  # bytes of each sample that waits

    def keep(self, moment: datetime, token: str, sample: Sample) -> str | None:
        """Take a sample, to be written soon.

        Args:
            moment: Of the prediction.
            token: What tells it from others of the same moment.
            sample: The files.

        Returns:
            The photograph's path below the records; None if there is no room.
        """
        name = f"{FOLDER}/{moment.astimezone(UTC):%Y/%m/%d/%H%M%S}.{moment.microsecond // 1000:03d}-{token}"
        photograph = f"{name}{_suffix(sample.data)}"
        size = len(sample.data) + len(sample.mask_png)
        with self._lock:
            fits = not self._ahead or sum(self._ahead.values()) + size <= _SAMPLES_AHEAD_BYTES
            if fits:
                self._ahead[photograph] = size
                self._writing.submit(self._write, photograph, f"{name}{MASK_SUFFIX}", sample)
        if not fits:
            self._count("dropped", 1)
        return photograph if fits else None

    def close(self, timeout_s: float) -> None:
        """Write what waits, within a time; what cannot be written in it is dropped, and counted."""
        last = self._writing.submit(lambda: None)
        wait([last], timeout_s)
        self._writing.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = len(self._ahead)
            self._ahead.clear()
        if left:
            self._count("dropped", left)

    def _write(self, photograph: str, mask: str, sample: Sample) -> None:
        try:
            write_file(self._url, mask, sample.mask_png)
            write_file(self._url, photograph, sample.data)
        except Exception as error:  # noqa: BLE001  # a store can fail in any way
            logger.warning("a sample cannot be written to %s: %s", self._url, error)
            result = "dropped"
        else:
            result = "written"
        with self._lock:
            counted_already = self._ahead.pop(photograph, None) is None
        if not counted_already:
            self._count(result, 1)


def _suffix(data: bytes) -> str:
    with pillow.open(BytesIO(data)) as opened:
        kind = opened.format or ""
    return _SUFFIXES.get(kind, f".{kind.lower()}")


_AHEAD_BYTES = 256 * 2**20  # of photographs kept in memory until their statistics are taken


@dataclass(frozen=True)
class _PendingRecord:
    """A prediction to be recorded."""

    moment: datetime
    filename: str | None
    image: Image
    prediction: Prediction
    sample: Sample | None


class PredictionLog:
    """Makes and writes a record of each prediction; never delays or fails one.

    Args:
        url: See `_RecordWriter`.
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
        self._writer = _RecordWriter(url, count=count)
        self._samples = _SampleWriter(url, count=count_samples)
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
        done = _PendingRecord(datetime.now(UTC), filename, image, prediction, sample)
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

    def _record(self, number: int, done: _PendingRecord) -> None:
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

    def _record_of(self, done: _PendingRecord) -> Record:
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
