"""Read recent records; least confident images; retention."""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from droneseg.core.errors import RecordsError
from droneseg.core.files import atomic_directory
from droneseg.monitoring.drift import record_features
from droneseg.monitoring.prediction_log import MASK_SUFFIX, SAMPLES_FOLDER, Record
from droneseg.monitoring.storage import open_url

logger = logging.getLogger(__name__)

_FIRST_FILES = 16
_MOST_FILES = 1024
_READERS = 16
_WASTED = 20
"""How many records are read, at most, for each that is wanted: those of other models are passed over."""


@dataclass
class RecordsPage:
    """The newest records of one model.

    Attributes:
        records: The oldest first.
        other_models: How many newer ones are of each other model.
        unreadable: Lines that are no record, as FILE:LINE, and files that could not be read.
        ahead: Days that are yet to come, of which none was read: a clock was wrong.
    """

    records: list[Record] = field(default_factory=list)
    other_models: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    future_days: list[str] = field(default_factory=list)


def read_recent_records(url: str, number: int, model_id: str | None = None) -> RecordsPage:
    """Read the newest records.

    Args:
        url: Where they are.
        number: How many, at most.
        model_id: Only those of this model; None for any.

    Raises:
        RecordsError: If the place cannot be read.
    """
    latest, looked_at = RecordsPage(), 0
    try:
        filesystem, root = open_url(url)
        names = _newest_first(filesystem, root, latest)
        files_read, unreadable, size = 0, 0, _FIRST_FILES
        while files := list(islice(names, size)):
            for name, content in _read(filesystem, files, latest):
                for record in _parse(name, content, latest):
                    looked_at += 1
                    if model_id in (None, record.model_id):
                        latest.records.append(record)
                    else:
                        latest.other_models[record.model_id] = latest.other_models.get(record.model_id, 0) + 1
            files_read += len(files)
            missing = number - len(latest.records)
            looked_at += len(latest.unreadable) - unreadable
            unreadable = len(latest.unreadable)
            if missing <= 0 or looked_at >= _WASTED * max(number, _FIRST_FILES):
                break
            # a file may hold one record or a thousand
            size = min(_MOST_FILES, math.ceil(missing * files_read / max(1, looked_at)))
    except Exception as error:  # a store can fail in any way
        raise RecordsError(f"The records at {url} cannot be read: {type(error).__name__}: {error}") from error
    # several instances write at the same time
    latest.records.sort(key=lambda record: record.time)
    latest.records = latest.records[-number:]
    return latest


def _newest_first(filesystem: Any, root: str, latest: RecordsPage) -> Iterator[str]:
    # an instance on the other side of the date line has no other UTC, but clocks differ
    last = f"{datetime.now(UTC) + timedelta(days=1):%Y/%m/%d}"
    for year in _numbered(filesystem, root, 4):
        for month in _numbered(filesystem, year, 2):
            for day in _numbered(filesystem, month, 2):
                if day[len(root) :].lstrip("/") > last:
                    latest.future_days.append(day)
                    continue
                names = [str(name) for name in filesystem.ls(day, detail=False)]
                yield from sorted((name for name in names if name.endswith(".jsonl")), reverse=True)


def _numbered(filesystem: Any, folder: str, digits: int) -> list[str]:
    """Return the folders whose names are numbers of so many digits, the largest first; none without the folder."""
    filesystem.invalidate_cache()  # what was there a moment ago says nothing
    try:
        names = [str(name).rstrip("/") for name in filesystem.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
    return sorted((name for name in names if re.fullmatch(rf"\d{{{digits}}}", name.rpartition("/")[2])), reverse=True)


def _read(filesystem: Any, files: list[str], latest: RecordsPage) -> Iterator[tuple[str, bytes]]:
    def read(name: str) -> bytes | Exception:
        try:
            return bytes(filesystem.cat_file(name))
        except Exception as error:  # noqa: BLE001  # a store can fail in any way
            return error

    # one by one: asked for several, fsspec takes [1] in a folder's name for a pattern
    with ThreadPoolExecutor(_READERS) as pool:
        for name, content in zip(files, pool.map(read, files), strict=True):
            if isinstance(content, bytes):
                yield name, content
            elif not isinstance(content, FileNotFoundError):  # taken away meanwhile: it was too old
                latest.unreadable.append(f"{name}: {content}")


def _parse(name: str, content: bytes, latest: RecordsPage) -> Iterator[Record]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = Record.model_validate_json(line)
            record_features(record)  # it may be of a version that had others
        except (ValidationError, KeyError):
            latest.unreadable.append(f"{name}:{number}")
        else:
            yield record


LIST_NAME = "hard-cases.json"
_KEPT = re.compile(rf"{SAMPLES_FOLDER}/\d{{4}}/\d\d/\d\d/[\w.-]+")  # nothing else of the store is copied


@dataclass(frozen=True)
class HardCase:
    """A photograph and how sure the model was.

    Attributes:
        confidence: Mean probability of the winning class, 0 to 1.
        time: Of the prediction.
        model_id: What predicted it.
        source: Its file's name or, by default, that name's SHA-256; None if it came without.
        sample: Where the photograph was kept, below the records; None if it was not.
    """

    confidence: float
    time: datetime
    model_id: str
    source: str | None
    sample: str | None


def find_hard_cases(url: str, number: int, *, last: int, sampled: bool = False) -> list[HardCase]:
    """Return the least confident of the last predictions, the least first; of one photograph its newest.

    Args:
        url: Where the records are.
        number: How many, at most.
        last: Of how many records, at most.
        sampled: Take only photographs that were kept.

    Raises:
        RecordsError: If the records cannot be read, or there are none.
    """
    records = read_recent_records(url, last).records
    if not records:
        raise RecordsError(f"There are no records at {url}. Services write them there: DRONESEG_RECORDS_URL.")
    # one that was sent twice looks the same; a name alone is none: every card of a drone begins with the same
    looks = {
        (record.source, record.width, record.height, *sorted(record.statistics.items())): record
        for record in records
        if record.sample or not sampled
    }
    chosen = list(looks.values())
    chosen.sort(key=lambda record: record.confidence)
    return [
        HardCase(record.confidence, record.time, record.model_id, record.source, record.sample)
        for record in chosen[:number]
    ]


def fetch_hard_cases(url: str, cases: list[HardCase], out: Path, *, replace: bool = False) -> int:
    """Copy photographs that were kept, and their masks, into a folder, numbered by how hard they are.

    Args:
        url: Where the records are.
        cases: Which.
        out: A new folder: `001.jpg`, and `001.mask.png` as a start for labelling.
        replace: Whether an older such folder may be replaced.

    Returns:
        How many were there; what is no longer kept is left out.

    Raises:
        OutputExistsError: If something is in the way.
        RecordsError: If none of them was kept.
    """
    filesystem, root = open_url(url)
    done = 0
    with atomic_directory(out, marker=LIST_NAME, replace=replace) as aside:
        for place, case in enumerate(cases, start=1):
            if case.sample is None or not _KEPT.fullmatch(case.sample):
                continue
            photograph = Path(case.sample)
            try:
                for source, suffix in (
                    (photograph, photograph.suffix),
                    (photograph.with_suffix(MASK_SUFFIX), MASK_SUFFIX),
                ):
                    with (
                        filesystem.open(f"{root}/{source}", "rb") as read,
                        (aside / f"{place:03d}{suffix}").open("wb") as write,
                    ):
                        shutil.copyfileobj(read, write)
            except FileNotFoundError:
                for half in aside.glob(f"{place:03d}.*"):
                    half.unlink()
                continue
            done += 1
        if not done:
            raise RecordsError(
                f"None of these photographs was kept at {url}. Set DRONESEG_SAMPLE_SHARE to keep some, such as 0.05."
            )
        (aside / LIST_NAME).write_text(_as_json(cases), encoding="utf-8")
    return done


def row_of(case: HardCase) -> dict[str, Any]:
    """Return a case as JSON has it."""
    return asdict(case) | {"time": case.time.isoformat()}


def _as_json(cases: list[HardCase]) -> str:
    return json.dumps([row_of(case) for case in cases], indent=1) + "\n"
