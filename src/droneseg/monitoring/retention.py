"""Retention: delete old records, samples and reports, by age and by total size."""

import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from droneseg.monitoring.prediction_log import SAMPLES_FOLDER
from droneseg.monitoring.storage import is_local, open_url

_DATE, _MOMENT = r"\d{4}/\d\d/\d\d", r"\d{6}\.\d{3}-[0-9a-f]{8}"
_OWN_NAME = re.compile(
    rf"(?P<of_record>{_DATE})/{_MOMENT}\.jsonl"
    rf"|{SAMPLES_FOLDER}/(?P<of_sample>{_DATE})/{_MOMENT}\.(?:mask\.png|[a-z0-9]{{2,4}})"
    rf"|(?P<of_report>{_DATE})/drift-\d{{6}}-[0-9a-f]{{6}}/drift\.(?:html|json)"
)
_DELETERS = 16


@dataclass(frozen=True)
class Pruned:
    """Result of a deletion.

    Attributes:
        files: Number of files deleted.
        bytes_left: Total size of the files that remain.
    """

    files: int
    bytes_left: int


def prune(url: str, *, days: int, megabytes: int, today: date | None = None) -> Pruned:
    """Delete files that are too old, then the oldest remaining ones until the total size is within the limit.

    Only records, samples and reports are deleted; they are recognised by their names.

    Args:
        url: Folder or URL of records or reports.
        days: Maximum age in days; 0 for no limit.
        megabytes: Maximum total size in units of 10^6 bytes; 0 for no limit.
        today: Current date in UTC; None for today.
    """
    filesystem, root = open_url(url)
    filesystem.invalidate_cache()
    first_day = (today or datetime.now(UTC).date()) - timedelta(days=days)
    files = _own_files(filesystem, root)
    expired = [file for file in files if days and file.day < first_day]
    kept = files[len(expired) :]
    bytes_left = sum(file.size_bytes for file in kept)
    for file in kept:
        if not megabytes or bytes_left <= megabytes * 10**6:
            break
        expired.append(file)
        bytes_left -= file.size_bytes
    with ThreadPoolExecutor(_DELETERS) as pool:
        list(pool.map(partial(_delete, filesystem), (file.path for file in expired)))
    if is_local(filesystem):
        _remove_empty_folders({Path(file.path).parent for file in expired}, Path(root))
    return Pruned(len(expired), bytes_left)


@dataclass(frozen=True)
class _File:
    day: date
    name: str
    path: str
    size_bytes: int


def _own_files(filesystem: Any, root: str) -> list[_File]:
    """Return the records, samples and reports, oldest first."""
    files = []
    for path, info in filesystem.find(root, detail=True).items():
        name = str(path)[len(root) :].lstrip("/")
        match = _OWN_NAME.fullmatch(name)
        if match:
            try:
                day = datetime.strptime(match["of_record"] or match["of_sample"] or match["of_report"], "%Y/%m/%d")
            except ValueError:
                continue  # not a valid date, so not written by droneseg
            files.append(_File(day.date(), Path(name).name, str(path), int(info["size"])))
    return sorted(files, key=lambda file: (file.day, file.name))


def _delete(filesystem: Any, path: str) -> None:
    # one at a time: given several names, fsspec treats [1] in a folder name as a pattern
    with suppress(FileNotFoundError):  # deleted by another instance
        filesystem.rm_file(path)


def _remove_empty_folders(folders: Iterable[Path], root: Path) -> None:
    for folder in folders:
        for parent in (folder, *folder.parents):
            if parent == root or not parent.exists() or any(parent.iterdir()):
                break
            parent.rmdir()


def main() -> None:
    """Run `python -m droneseg.monitoring.retention URL DAYS MEGABYTES`; print the number of files deleted."""
    url, days, megabytes = sys.argv[1:]
    try:
        pruned = prune(url, days=int(days), megabytes=int(megabytes))
    except Exception as error:  # noqa: BLE001  # any storage error, reported in one line
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"{pruned.files}\n")


if __name__ == "__main__":
    main()
