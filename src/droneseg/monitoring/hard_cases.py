"""The photographs a model is least sure of: what to label next."""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from droneseg.core.errors import RecordsError
from droneseg.core.files import new_folder
from droneseg.monitoring.latest import read_latest
from droneseg.monitoring.places import open_place
from droneseg.monitoring.samples import FOLDER, MASK_SUFFIX

LIST_NAME = "hard-cases.json"
_KEPT = re.compile(rf"{FOLDER}/\d{{4}}/\d\d/\d\d/[\w.-]+")  # nothing else of the store is copied


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
    records = read_latest(url, last).records
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
    filesystem, root = open_place(url)
    done = 0
    with new_folder(out, marker=LIST_NAME, replace=replace) as aside:
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
