"""How long records, samples and reports are kept: by age, and by what they take in all."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from droneseg.monitoring.prediction_log import SAMPLES_FOLDER
from droneseg.monitoring.storage import is_folder, open_url

_DATE, _MOMENT = r"\d{4}/\d\d/\d\d", r"\d{6}\.\d{3}-[0-9a-f]{8}"
_OWN = re.compile(
    rf"(?P<day>{_DATE})/{_MOMENT}\.jsonl"
    rf"|{SAMPLES_FOLDER}/(?P<in_samples>{_DATE})/{_MOMENT}\.(?:mask\.png|[a-z0-9]{{2,4}})"
    rf"|(?P<of_report>{_DATE})/drift-\d{{6}}-[0-9a-f]{{6}}/drift\.(?:html|json)"
)
_DELETERS = 16


@dataclass(frozen=True)
class Pruned:
    """What was taken away, and what is left.

    Attributes:
        files: How many were.
        bytes_left: Of all that is left.
    """

    files: int
    bytes_left: int


def prune(url: str, *, days: int, megabytes: int, today: date | None = None) -> Pruned:
    """Delete records, samples and reports that are too old, then the oldest while all take too much.

    Whatever else lies there stays.

    Args:
        url: Where they are.
        days: How long they are kept; 0 keeps them for ever.
        megabytes: What all may take, 10^6 bytes; 0 sets no limit.
        today: The date, in UTC; None for today's.
    """
    filesystem, root = open_url(url)
    filesystem.invalidate_cache()
    own = _own_files(filesystem, root)
    first_kept = (today or datetime.now(UTC).date()) - timedelta(days=days)
    gone = [file for file in own if days and file.day < first_kept]
    kept = own[len(gone) :]
    left = sum(file.size_bytes for file in kept)
    for file in kept:
        if not megabytes or left <= megabytes * 10**6:
            break
        gone.append(file)
        left -= file.size_bytes
    with ThreadPoolExecutor(_DELETERS) as pool:
        list(pool.map(partial(_delete, filesystem), (file.path for file in gone)))
    if is_folder(filesystem):
        _forget_empty_folders({Path(file.path).parent for file in gone}, Path(root))
    return Pruned(len(gone), left)


@dataclass(frozen=True)
class _File:
    day: date
    name: str
    path: str
    size_bytes: int


def _own_files(filesystem: Any, root: str) -> list[_File]:
    """Return what services wrote, the oldest first."""
    found = []
    for path, about in filesystem.find(root, detail=True).items():
        below = str(path)[len(root) :].lstrip("/")
        match = _OWN.fullmatch(below)
        if match:
            try:
                day = datetime.strptime(match["day"] or match["in_samples"] or match["of_report"], "%Y/%m/%d").date()
            except ValueError:
                continue  # no date, so not ours
            found.append(_File(day, Path(below).name, str(path), int(about["size"])))
    return sorted(found, key=lambda file: (file.day, file.name))


def _delete(filesystem: Any, path: str) -> None:
    # one by one: asked for several, fsspec takes [1] in a folder's name for a pattern
    with suppress(FileNotFoundError):  # another instance was quicker
        filesystem.rm_file(path)


def _forget_empty_folders(folders: set[Path], root: Path) -> None:
    for folder in folders:
        for each in (folder, *folder.parents):
            if each == root or not each.exists() or any(each.iterdir()):
                break
            each.rmdir()


def main() -> None:
    """Prune: `python -m droneseg.monitoring.retention URL DAYS MEGABYTES`; an error is one line."""
    url, days, megabytes = sys.argv[1:]
    try:
        pruned = prune(url, days=int(days), megabytes=int(megabytes))
    except Exception as error:  # noqa: BLE001  # a store can fail in any way
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"{pruned.files}\n")


if __name__ == "__main__":
    main()
