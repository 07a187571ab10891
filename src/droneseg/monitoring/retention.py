"""How long records and samples are kept: by age, and by what they take in all."""

import re
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from droneseg.monitoring.places import open_place
from droneseg.monitoring.samples import FOLDER

_OWN = re.compile(rf"(?:{FOLDER}/)?(\d{{4}})/(\d\d)/(\d\d)/(\d{{6}}\.\d{{3}}-[0-9a-f]{{8}}\.\S+)")
_AT_ONCE = 1000


@dataclass(frozen=True)
class Pruned:
    """What was taken away, and what is left.

    Attributes:
        files: How many were.
        bytes_left: Of all records and samples.
    """

    files: int
    bytes_left: int


def prune(url: str, *, days: int, megabytes: int, today: date | None = None) -> Pruned:
    """Delete records and samples that are too old, then the oldest while all take too much; anything else stays.

    Args:
        url: Where they are.
        days: How long they are kept; 0 keeps them for ever.
        megabytes: What all may take, 10^6 bytes; 0 sets no limit.
        today: The date, in UTC; None for today's.
    """
    filesystem, root = open_place(url)
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
    for begin in range(0, len(gone), _AT_ONCE):
        _delete(filesystem, [file.path for file in gone[begin : begin + _AT_ONCE]])
    _forget_empty_folders(
        {Path(file.path).parent for file in gone}, Path(root)
    ) if "file" in filesystem.protocol else None
    return Pruned(len(gone), left)


@dataclass(frozen=True)
class _File:
    day: date
    name: str
    path: str
    size_bytes: int


def _own_files(filesystem: Any, root: str) -> list[_File]:
    """Return records and samples, the oldest first."""
    found = []
    for path, about in filesystem.find(root, detail=True).items():
        match = _OWN.fullmatch(str(path)[len(root) :].lstrip("/"))
        if match:
            year, month, day = (int(part) for part in match.groups()[:3])
            found.append(_File(date(year, month, day), match[4], str(path), int(about["size"])))
    return sorted(found, key=lambda file: (file.day, file.name))


def _delete(filesystem: Any, paths: list[str]) -> None:
    try:
        filesystem.rm(paths)
    except FileNotFoundError:
        # another instance was quicker with one of them
        for path in paths:
            if filesystem.exists(path):
                filesystem.rm_file(path)


def _forget_empty_folders(folders: set[Path], root: Path) -> None:
    for folder in folders:
        for each in (folder, *folder.parents):
            if each == root or any(each.iterdir()):
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
