"""A share of the photographs, kept with their masks beside the records: to look at, and to label."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO

from PIL import Image as pillow

from droneseg.monitoring.places import write_place

logger = logging.getLogger(__name__)

FOLDER = "samples"
MASK_SUFFIX = ".mask.png"
_WAITING = 16
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
    """Writes samples in the background; those that come while too many wait are left out.

    Args:
        url: Where records are; samples go below it.
        count: Told how many were "written" or "dropped".
    """

    def __init__(self, url: str, *, count: Callable[[str, int], None]) -> None:
        self._url, self._count = url, count
        self._writing = ThreadPoolExecutor(1, "samples")
        self._room = threading.BoundedSemaphore(_WAITING)

    def keep(self, moment: datetime, token: str, sample: Sample) -> str | None:
        """Take a sample, to be written soon.

        Args:
            moment: Of the prediction.
            token: What tells it from others of the same moment.
            sample: The files.

        Returns:
            The photograph's path below the records; None if there is no room.
        """
        if not self._room.acquire(blocking=False):
            self._count("dropped", 1)
            return None
        name = f"{FOLDER}/{moment.astimezone(UTC):%Y/%m/%d/%H%M%S}.{moment.microsecond // 1000:03d}-{token}"
        photograph = f"{name}{_suffix(sample.data)}"
        self._writing.submit(self._write, photograph, f"{name}{MASK_SUFFIX}", sample)
        return photograph

    def close(self) -> None:
        """Begin nothing more."""
        self._writing.shutdown(wait=False, cancel_futures=True)

    def _write(self, photograph: str, mask: str, sample: Sample) -> None:
        try:
            write_place(self._url, mask, sample.mask_png)
            write_place(self._url, photograph, sample.data)
        except Exception as error:  # noqa: BLE001  # a store can fail in any way
            logger.warning("a sample cannot be written to %s: %s", self._url, error)
            self._count("dropped", 1)
        else:
            self._count("written", 1)
        finally:
            self._room.release()


def _suffix(data: bytes) -> str:
    with pillow.open(BytesIO(data)) as opened:
        kind = opened.format or ""
    return _SUFFIXES.get(kind, f".{kind.lower()}")
