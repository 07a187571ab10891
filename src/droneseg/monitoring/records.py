"""One line per prediction, kept for drift: written in the background, never in the way of an answer."""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable
from datetime import UTC
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from droneseg.monitoring.places import write_place

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


class RecordWriter:
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
        write_place(self._url, name, lines.encode())
