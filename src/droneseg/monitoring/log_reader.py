"""Read recent records and find the images with the least confident predictions."""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from droneseg.core.errors import RecordsError
from droneseg.core.files import atomic_directory
from droneseg.monitoring.drift import IMAGE_FEATURES, Feature, record_features
from droneseg.monitoring.prediction_log import MASK_SUFFIX, SAMPLES_FOLDER, Record
from droneseg.monitoring.storage import open_url

logger = logging.getLogger(__name__)

_FIRST_FILES = 16
_MAX_FILES = 1024
_READERS = 16
_MAX_READ_PER_WANTED = 20  # records read per requested one, because those of other models are skipped

LIST_NAME = "hard-cases.json"
_SAMPLE_PATH = re.compile(rf"{SAMPLES_FOLDER}/\d{{4}}/\d\d/\d\d/[\w.-]+")  # nothing else is ever copied


@dataclass
class RecordsPage:
    """Newest records of one model.

    Attributes:
        records: Records of the model, oldest first.
        other_models: Number of newer records of other models, by model id.
        unreadable: Invalid lines as FILE:LINE, and files that could not be read.
        future_days: Folders of days in the future, which were skipped because a clock was wrong.
    """

    records: list[Record] = field(default_factory=list)
    other_models: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    future_days: list[str] = field(default_factory=list)

    @property
    def lines_read(self) -> int:
        """Number of lines read: records of all models, and unreadable ones."""
        return len(self.records) + sum(self.other_models.values()) + len(self.unreadable)

    def add(self, record: Record, *, model_id: str | None) -> None:
        """Add a record if it is of the given model; otherwise increase the count of records of its model."""
        if model_id in (None, record.model_id):
            self.records.append(record)
        else:
            self.other_models[record.model_id] = self.other_models.get(record.model_id, 0) + 1


def read_recent_records(
    url: str, number: int, model_id: str | None = None, features: Sequence[Feature] = IMAGE_FEATURES
) -> RecordsPage:
    """Read the newest records.

    Files are named by time, so only the newest files are read.

    Args:
        url: Folder or URL of the prediction log.
        number: Maximum number of records.
        model_id: Read only records of this model; None for any model.
        features: Features that records of this model must have, such as the shares of its classes.

    Raises:
        RecordsError: If the log cannot be read.
    """
    page = RecordsPage()
    try:
        filesystem, root = open_url(url)
        _read_newest(filesystem, root, page, number, model_id, features)
    except Exception as error:  # any storage error
        raise RecordsError(
            f"Cannot read the records at {url} ({type(error).__name__}: {error}). Check the URL and its permissions."
        ) from error
    # several instances write at the same time, so the times in different files overlap
    page.records.sort(key=lambda record: record.time)
    page.records = page.records[-number:]
    return page


def _read_newest(
    filesystem: Any, root: str, page: RecordsPage, number: int, model_id: str | None, features: Sequence[Feature]
) -> None:
    names = _newest_first(filesystem, root, page)
    files_read, size = 0, _FIRST_FILES
    while files := list(islice(names, size)):
        for name, content in _read(filesystem, files, page):
            for record in _parse(name, content, page, model_id, features):
                page.add(record, model_id=model_id)
        files_read += len(files)
        missing = number - len(page.records)
        if missing <= 0 or page.lines_read >= _MAX_READ_PER_WANTED * max(number, _FIRST_FILES):
            return
        # a file may contain one record or a thousand
        size = min(_MAX_FILES, math.ceil(missing * files_read / max(1, page.lines_read)))


def _newest_first(filesystem: Any, root: str, page: RecordsPage) -> Iterator[str]:
    # all times are UTC, but clocks differ
    last = f"{datetime.now(UTC) + timedelta(days=1):%Y/%m/%d}"
    for year in _numbered(filesystem, root, 4):
        for month in _numbered(filesystem, year, 2):
            for day in _numbered(filesystem, month, 2):
                if day[len(root) :].lstrip("/") > last:
                    page.future_days.append(day)
                    continue
                names = [str(name) for name in filesystem.ls(day, detail=False)]
                yield from sorted((name for name in names if name.endswith(".jsonl")), reverse=True)


def _numbered(filesystem: Any, folder: str, digits: int) -> list[str]:
    """Return the subfolders whose names are numbers of `digits` digits, largest first; none if `folder` is missing."""
    filesystem.invalidate_cache()  # another process may have written since the last listing
    try:
        names = [str(name).rstrip("/") for name in filesystem.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
    return sorted((name for name in names if re.fullmatch(rf"\d{{{digits}}}", name.rpartition("/")[2])), reverse=True)


def _read(filesystem: Any, files: list[str], page: RecordsPage) -> Iterator[tuple[str, bytes]]:
    def read(name: str) -> bytes | Exception:
        try:
            return bytes(filesystem.cat_file(name))
        except Exception as error:  # noqa: BLE001  # any storage error
            return error

    # one at a time: given several names, fsspec treats [1] in a folder name as a pattern
    with ThreadPoolExecutor(_READERS) as pool:
        for name, content in zip(files, pool.map(read, files), strict=True):
            if isinstance(content, bytes):
                yield name, content
            elif not isinstance(content, FileNotFoundError):  # a missing file was pruned since it was listed
                page.unreadable.append(f"{name}: {content}")


def _parse(
    name: str, content: bytes, page: RecordsPage, model_id: str | None, features: Sequence[Feature]
) -> Iterator[Record]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = Record.model_validate_json(line)
            # fails for a record from a version with other features
            record_features(record, features if record.model_id == model_id else IMAGE_FEATURES)
        except (ValidationError, KeyError):
            page.unreadable.append(f"{name}:{number}")
        else:
            yield record


@dataclass(frozen=True)
class HardCase:
    """An image that the model predicted with low confidence.

    Attributes:
        confidence: Mean probability of the predicted class, 0 to 1.
        time: Time of the prediction.
        model_id: Id of the model.
        source: File name or, by default, its SHA-256; None for an upload without a name.
        sample: Path of the stored image, relative to the log; None if the image was not sampled.
    """

    confidence: float
    time: datetime
    model_id: str
    source: str | None
    sample: str | None


def find_hard_cases(url: str, number: int, *, last: int, sampled: bool = False) -> list[HardCase]:
    """Return the images predicted with the lowest confidence, lowest first.

    Of several predictions of the same image, only the newest counts.

    Args:
        url: Folder or URL of the prediction log.
        number: Maximum number of images.
        last: Number of newest records to search.
        sampled: Whether to consider sampled images only.

    Raises:
        RecordsError: If the records cannot be read or there are none.
    """
    records = read_recent_records(url, last).records
    if not records:
        raise RecordsError(f"There are no records at {url}. Use the service's DRONESEG_RECORDS_URL.")
    # the statistics identify an image; file names do not, because every drone starts numbering at the same one
    by_content = {
        (record.source, record.width, record.height, *sorted(record.statistics.items())): record
        for record in records
        if record.sample or not sampled
    }
    return [
        HardCase(record.confidence, record.time, record.model_id, record.source, record.sample)
        for record in sorted(by_content.values(), key=lambda record: record.confidence)[:number]
    ]


def fetch_hard_cases(url: str, cases: list[HardCase], out: Path, *, replace: bool = False) -> int:
    """Copy sampled images and their masks to a folder, numbered by confidence, lowest first.

    Args:
        url: Folder or URL of the prediction log.
        cases: Images to copy.
        out: Folder to create, with `001.jpg`, `001.mask.png` and so on.
        replace: Whether to replace the folder of an earlier call.

    Returns:
        Number of images copied; images that are no longer stored are skipped.

    Raises:
        OutputExistsError: If the folder exists and may not be replaced.
        RecordsError: If none of the images is stored.
    """
    filesystem, root = open_url(url)
    with atomic_directory(out, marker=LIST_NAME, replace=replace) as staging_dir:
        copied = sum(
            _copy_sample(filesystem, root, case, staging_dir / f"{number:03d}")
            for number, case in enumerate(cases, start=1)
        )
        if not copied:
            raise RecordsError(
                f"None of these images is stored at {url}. Set DRONESEG_SAMPLE_SHARE, for example to 0.05, to store "
                "a share of the images."
            )
        text = json.dumps([row_of(case) for case in cases], indent=1) + "\n"
        (staging_dir / LIST_NAME).write_text(text, encoding="utf-8")
    return copied


def _copy_sample(filesystem: Any, root: str, case: HardCase, target: Path) -> bool:
    """Copy an image and its mask to `target` with their suffixes; return False if it is not stored."""
    if case.sample is None or not _SAMPLE_PATH.fullmatch(case.sample):
        return False
    image = Path(case.sample)
    copies = {
        image: target.with_suffix(image.suffix),
        image.with_suffix(MASK_SUFFIX): target.with_suffix(MASK_SUFFIX),
    }
    try:
        for source, copy in copies.items():
            with filesystem.open(f"{root}/{source}", "rb") as reader, copy.open("wb") as writer:
                shutil.copyfileobj(reader, writer)
    except FileNotFoundError:
        for copy in copies.values():
            copy.unlink(missing_ok=True)
        return False
    return True


def row_of(case: HardCase) -> dict[str, Any]:
    """Return a hard case as a JSON object."""
    return asdict(case) | {"time": case.time.isoformat()}
