"""Prediction log: one JSON line per prediction, and sampled images, written in the background."""

import hashlib
import logging
import queue
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import islice
from typing import Literal, TypeAlias

from PIL import Image as pillow
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from droneseg.core.camera import Ground
from droneseg.core.prediction import Prediction
from droneseg.inference.landing import LandingAnswer
from droneseg.monitoring.storage import write_file

logger = logging.getLogger(__name__)

SAMPLES_FOLDER = "samples"
MASK_SUFFIX = ".mask.png"
_FLUSH_S = 0.5
_MAX_PAUSE_S = 30.0
_MAX_SAMPLE_BYTES = 128 * 2**20  # total size of samples that wait to be written
_MAX_RECORDS = 10_000  # in memory while the storage is unavailable
_MAX_RECORDS_PER_FILE = 1_000
_MAX_SIDE = 1_000_000  # pixels
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}

Outcome = Literal["written", "dropped"]
Count: TypeAlias = Callable[[Outcome, int], None]


class LandingRecord(BaseModel):
    """Landing decision of one image, with the best site if there is one.

    Attributes:
        decision: `site` or `no_safe_site`.
        reason: Why there is no site.
        x_px: Column of the centre of the best site.
        y_px: Row of its centre.
        radius_px: Radius of the largest disc around its centre.
        radius_m: The same in metres, if the ground resolution is known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    decision: str
    reason: str | None = None
    x_px: float | None = None
    y_px: float | None = None
    radius_px: float | None = None
    radius_m: float | None = None

    @classmethod
    def of(cls, answer: LandingAnswer) -> "LandingRecord":
        """Return the record of an answer."""
        if not answer.sites:
            return cls(decision=answer.decision, reason=answer.reason)
        best = answer.sites[0]
        return cls(
            decision=answer.decision,
            x_px=best.x_px,
            y_px=best.y_px,
            radius_px=best.radius_px,
            radius_m=best.radius_m,
        )


class Record(BaseModel):
    """Log entry of one prediction. It contains neither the image nor, by default, the file name.

    Attributes:
        time: Time of the prediction.
        model_id: Id of the model.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        seen_width: Width of the image as resampled for the model; None in records of earlier versions.
        seen_height: Height of the image as resampled for the model; None in records of earlier versions.
        ground: Ground resolution and warnings; None in records of earlier versions.
        class_fractions: Share of the predicted pixels by class name, 0 to 1.
        confidence: Mean probability of the predicted class, 0 to 1.
        statistics: Statistics of the image as resampled for the model, see `image_statistics`.
        source: SHA-256 of the file name, or the name itself if names are kept; None for an upload without a name.
        sample: Path of the stored image, relative to the log; None if the image was not sampled.
        landing: Landing decision; None if no landing sites were requested.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    time: AwareDatetime
    model_id: str
    width: int = Field(ge=0, le=_MAX_SIDE)
    height: int = Field(ge=0, le=_MAX_SIDE)
    seen_width: int | None = Field(None, ge=0, le=_MAX_SIDE)
    seen_height: int | None = Field(None, ge=0, le=_MAX_SIDE)
    ground: Ground | None = None
    class_fractions: dict[str, float]
    confidence: float
    statistics: dict[str, float]
    source: str | None = None
    sample: str | None = None
    landing: LandingRecord | None = None


@dataclass(frozen=True)
class Sample:
    """An image and its predicted mask, to be stored beside the records.

    Attributes:
        data: Content of the image file as uploaded.
        mask_png: Content of the mask file.
    """

    data: bytes
    mask_png: bytes

    @property
    def size_bytes(self) -> int:
        """Size of both files."""
        return len(self.data) + len(self.mask_png)


class PredictionLog:
    """Log of predictions, written by one background thread. Logging neither delays nor fails a prediction.

    Records are collected for half a second and written together, one JSON line each, to files named by time
    (`YYYY/MM/DD/HHMMSS.mmm-RANDOM.jsonl`), so that the newest are found without reading others. While the storage is
    unavailable, writing is retried with growing pauses; up to `max_records` records stay in memory, and the oldest are
    dropped beyond that. Samples are written to separate files below `samples/`; they are written while no record is
    waiting and are dropped if they take too much memory or cannot be written.

    Args:
        url: Local folder or any URL that fsspec supports, such as gs://bucket/folder.
        count_records: Callback with an outcome and a number of records.
        count_samples: Callback with an outcome and a number of samples.
        sample_share: Share of the images to store with their masks, 0 to 1.
        keep_names: Whether to keep file names instead of their SHA-256.
        max_records: Number of records kept in memory while they cannot be written.
    """

    def __init__(
        self,
        url: str,
        *,
        count_records: Count,
        count_samples: Count = lambda _outcome, _number: None,
        sample_share: float = 0.0,
        keep_names: bool = False,
        max_records: int = _MAX_RECORDS,
    ) -> None:
        self._url, self._sample_share, self._keep_names = url, sample_share, keep_names
        self._record_count, self._sample_count = _OutcomeCounter(count_records), _OutcomeCounter(count_samples)
        self._records = _RecordWriter(url, self._record_count, capacity=max_records)
        self._samples = _SampleWriter(url, self._sample_count)
        # an event requests a flush, None ends the thread
        self._queue: queue.Queue[Record | threading.Event | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._worker.start()

    def log(
        self,
        filename: str | None,
        prediction: Prediction,
        sample: Sample | None = None,
        landing: LandingAnswer | None = None,
    ) -> None:
        """Queue a prediction and return immediately.

        Args:
            filename: Name of the uploaded file, if any.
            prediction: Prediction for the image.
            sample: Files to store if this image is sampled.
            landing: Landing sites, if they were requested.
        """
        if random.random() >= self._sample_share:
            sample = None
        with self._lock:
            # the queue grows only while a write takes long
            if self._closed or self._queue.qsize() >= _MAX_RECORDS:
                self._record_count.reject()
                return
            self._record_count.accept()
            try:
                self._queue.put(self._create_record(filename, prediction, sample, landing))
            except Exception:
                logger.exception("dropped a record: it cannot be created")
                self._record_count.settle("dropped", 1)

    def flush(self, timeout_s: float) -> None:
        """Write all records logged so far, or return after `timeout_s` seconds."""
        written = threading.Event()
        with self._lock:
            if self._closed:
                return
            self._queue.put(written)
        written.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write all queued records and samples; drop and count those that cannot be written in time.

        Args:
            timeout_s: Time limit in seconds.
        """
        with self._lock:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        self._worker.join(timeout_s)
        self._sample_count.drop_unsettled()
        if dropped := self._record_count.drop_unsettled():
            logger.warning("dropped %d records: cannot write to %s", dropped, self._url)

    def _work(self) -> None:
        while True:
            if self._records.wait_s() == 0:
                self._records.write()
            try:
                item = self._queue.get(timeout=0 if self._samples.pending else self._records.wait_s())
            except queue.Empty:
                if self._samples.pending:
                    self._samples.write()
                continue
            if item is None:
                break
            if isinstance(item, threading.Event):
                self._records.flush(item)
            else:
                self._records.add(item)
        while self._records.pending and self._records.write():
            pass
        while self._samples.pending:
            self._samples.write()

    def _create_record(
        self, filename: str | None, prediction: Prediction, sample: Sample | None, landing: LandingAnswer | None
    ) -> Record:
        now = datetime.now(UTC)
        height, width = prediction.mask.shape
        seen_height, seen_width = prediction.seen_size or (height, width)
        return Record(
            time=now,
            model_id=prediction.model_id,
            width=width,
            height=height,
            seen_width=seen_width,
            seen_height=seen_height,
            ground=prediction.ground,
            class_fractions={name: round(share, 6) for name, share in prediction.class_fractions.items()},
            confidence=round(prediction.confidence, 6),
            statistics=prediction.statistics,
            source=self._source(filename),
            sample=self._samples.add(now, sample) if sample else None,
            landing=LandingRecord.of(landing) if landing else None,
        )

    def _source(self, filename: str | None) -> str | None:
        if not filename:
            return None
        return filename if self._keep_names else hashlib.sha256(filename.encode()).hexdigest()


class _OutcomeCounter:
    """Counts each item once, as written or dropped. Thread-safe."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._unsettled = 0
        self._closed = False

    def accept(self) -> None:
        """Expect one more item to be settled."""
        with self._lock:
            self._unsettled += 1

    def reject(self) -> None:
        """Count an item as dropped without accepting it."""
        self._count("dropped", 1)

    def settle(self, outcome: Outcome, number: int) -> None:
        """Count accepted items as written or dropped; no effect after `drop_unsettled`, which has counted them."""
        with self._lock:
            if self._closed:
                return
            self._unsettled -= number
        self._count(outcome, number)

    def drop_unsettled(self) -> int:
        """Count all unsettled items as dropped and ignore later outcomes; return their number."""
        with self._lock:
            number, self._unsettled, self._closed = self._unsettled, 0, True
        if number:
            self._count("dropped", number)
        return number


class _RecordWriter:
    """Batches records and writes them; used only by the worker thread."""

    def __init__(self, url: str, count: _OutcomeCounter, *, capacity: int) -> None:
        self._url, self._count, self._capacity = url, count, capacity
        self._records: deque[Record] = deque()
        self._flushes: list[threading.Event] = []
        self._pause_s = _FLUSH_S
        self._due = 0.0

    @property
    def pending(self) -> bool:
        """Whether records wait to be written."""
        return bool(self._records)

    def wait_s(self) -> float | None:
        """Return the seconds until the next write is due; None if no record waits."""
        return max(0.0, self._due - time.monotonic()) if self._records else None

    def add(self, record: Record) -> None:
        """Add a record to the next batch; drop the oldest record if the capacity is exceeded."""
        if not self._records:
            self._due = time.monotonic() + self._pause_s
        self._records.append(record)
        if len(self._records) > self._capacity:
            self._records.popleft()
            self._count.settle("dropped", 1)

    def flush(self, written: threading.Event) -> None:
        """Write as soon as possible, and set the event once no record waits."""
        self._flushes.append(written)
        if self._pause_s == _FLUSH_S:  # after a failure, the longer pause still applies
            self._due = 0.0
        self._finish_flushes()

    def write(self) -> bool:
        """Write one file; return False if the storage is unavailable."""
        batch = list(islice(self._records, _MAX_RECORDS_PER_FILE))
        lines = "".join(record.model_dump_json() + "\n" for record in batch)
        try:
            write_file(self._url, f"{_name_by_time(batch[0].time)}.jsonl", lines.encode())
        except Exception as error:  # noqa: BLE001  # any storage error; none may stop the service
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
            self._due = time.monotonic() + self._pause_s
            logger.warning("cannot write records to %s: %s", self._url, error)
            return False
        for _ in batch:
            self._records.popleft()
        self._pause_s = _FLUSH_S
        self._due = 0.0 if self._flushes else time.monotonic() + _FLUSH_S
        self._count.settle("written", len(batch))
        self._finish_flushes()
        return True

    def _finish_flushes(self) -> None:
        if not self._records:
            for written in self._flushes:
                written.set()
            self._flushes.clear()


class _SampleWriter:
    """Writes samples one by one. Samples are added by any thread and written by the worker thread."""

    def __init__(self, url: str, count: _OutcomeCounter) -> None:
        self._url, self._count = url, count
        self._lock = threading.Lock()
        self._samples: deque[tuple[str, str, Sample]] = deque()
        self._size_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether samples wait to be written."""
        return bool(self._samples)

    def add(self, moment: datetime, sample: Sample) -> str | None:
        """Queue a sample.

        Args:
            moment: Time of the prediction, which names the files.
            sample: Image file and mask file.

        Returns:
            The image's path below the log; None if the sample was dropped because too many wait.
        """
        name = f"{SAMPLES_FOLDER}/{_name_by_time(moment)}"
        image_name = f"{name}{_suffix(sample.data)}"
        with self._lock:
            if self._samples and self._size_bytes + sample.size_bytes > _MAX_SAMPLE_BYTES:
                self._count.reject()
                return None
            self._count.accept()
            self._samples.append((image_name, f"{name}{MASK_SUFFIX}", sample))
            self._size_bytes += sample.size_bytes
        return image_name

    def write(self) -> None:
        """Write the oldest sample; drop it if the storage is unavailable."""
        with self._lock:
            image_name, mask_name, sample = self._samples.popleft()
            self._size_bytes -= sample.size_bytes
        try:
            write_file(self._url, mask_name, sample.mask_png)
            write_file(self._url, image_name, sample.data)
        except Exception as error:  # noqa: BLE001  # any storage error; none may stop the service
            logger.warning("dropped a sample: cannot write to %s: %s", self._url, error)
            self._count.settle("dropped", 1)
        else:
            self._count.settle("written", 1)


def _name_by_time(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment:%Y/%m/%d/%H%M%S}.{moment.microsecond // 1000:03d}-{uuid.uuid4().hex[:8]}"


def _suffix(data: bytes) -> str:
    with pillow.open(BytesIO(data)) as opened:  # reads the header only
        kind = opened.format or ""
    return _SUFFIXES.get(kind, f".{kind.lower()}")
