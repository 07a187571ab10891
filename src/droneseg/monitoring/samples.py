"""A share of the photographs, kept with their masks beside the records: to look at, and to label."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO

from PIL import Image as pillow

from droneseg.monitoring.places import write_place

logger = logging.getLogger(__name__)

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


class SampleKeeper:
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
            write_place(self._url, mask, sample.mask_png)
            write_place(self._url, photograph, sample.data)
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
