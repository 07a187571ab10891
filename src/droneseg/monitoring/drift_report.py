"""A report on drift from end to end: records read, held against the reference, written where reports are kept."""

import json
import sys
import uuid
import warnings
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from droneseg.core.errors import DriftError, DronesegError, MissingDependencyError, RecordsError
from droneseg.model.bundle import read_bundle
from droneseg.monitoring.drift import FEWEST, METHOD, THRESHOLD, Drift, find_drift
from droneseg.monitoring.features import figures_of
from droneseg.monitoring.latest import Latest, read_latest
from droneseg.monitoring.places import NOWHERE, write_place
from droneseg.monitoring.reference import NAMES, Reference, read_reference

PAGE_NAME, FIGURES_NAME = "drift.html", "drift.json"
MOST = 20_000
"""Records of one report."""


class DriftResult(BaseModel):
    """What a report found, and where it is.

    Attributes:
        url: Of the page; its figures lie beside it, `drift.json`.
        message: The verdict and what changed, in words.
        drifted: The verdict.
        share: Share of the figures that differ.
        records: How many were looked at.
    """

    model_config = ConfigDict(frozen=True)
    url: str
    message: str
    drifted: bool
    share: float
    records: int


def make_report(
    model: Path, records_url: str, reports_url: str, number: int, *, answering: str | None = None
) -> DriftResult:
    """Write a report on the last records of a model.

    Args:
        model: Its bundle.
        records_url: Where the records are.
        reports_url: Where the report goes.
        number: How many records, at most.
        answering: The model that a service answers with, if it must be this one.

    Raises:
        BundleError: If the model does not verify.
        DriftError: If it has no reference, there are no or too few records, or a report has nowhere to go.
        RecordsError: If the records cannot be read, or the report cannot be written.
        MissingDependencyError: If Evidently is not installed.
    """
    if find_spec("evidently") is None:
        raise MissingDependencyError("evidently", "drift")
    require_somewhere(records_url, reports_url)
    bundle = read_bundle(model)
    if answering not in (None, bundle.model_id):
        raise DriftError(
            f"The service answers with model {answering}, and {model} is {bundle.model_id} by now. POST /admin/reload, "
            "or start it anew."
        )
    reference = read_reference(bundle)
    latest = read_latest(records_url, number, bundle.model_id)
    _require_enough(latest, records_url, bundle.model_id)
    drift = find_drift(reference, latest.records)
    now = datetime.now(UTC)
    folder = f"{now:%Y/%m/%d}/drift-{now:%H%M%S}-{uuid.uuid4().hex[:6]}"
    from droneseg.monitoring.drift_page import make_page, sentences, verdict

    page = make_page(drift, reference, latest, model_id=bundle.model_id, evidently=_evidently(reference, latest))
    message = " ".join([verdict(drift), *sentences(drift)])
    # the page is last: who sees it sees all
    about = {"time": now.isoformat(timespec="seconds"), "model_id": bundle.model_id, "message": message}
    text = json.dumps(about | _as_json(drift, reference, latest), indent=1) + "\n"
    try:
        write_place(reports_url, f"{folder}/{FIGURES_NAME}", text.encode())
        url = write_place(reports_url, f"{folder}/{PAGE_NAME}", page.encode())
    except Exception as error:  # a store can fail in any way
        raise RecordsError(f"The report cannot be written to {reports_url}: {type(error).__name__}: {error}") from error
    return DriftResult(url=url, message=message, drifted=drift.drifted, share=drift.share, records=drift.records)


def require_somewhere(records_url: str, reports_url: str) -> None:
    """Raise `DriftError` if no records are kept, or a report has nowhere to go."""
    for variable, url in (("RECORDS_URL", records_url), ("REPORTS_URL", reports_url)):
        if url == NOWHERE:
            raise DriftError(f"DRONESEG_{variable} is none: name a folder or a bucket for a report.")


def _require_enough(latest: Latest, url: str, model_id: str) -> None:
    found = len(latest.records)
    if found >= FEWEST:
        return
    others = ", ".join(f"{number} of model {other}" for other, number in latest.other_models.items())
    notes = [f"passed over: {others}"] if others else []
    notes += (
        [f"{len(latest.unreadable)} could not be read, such as {latest.unreadable[0]}"] if latest.unreadable else []
    )
    notes += [f"passed over: days to come, such as {latest.ahead[0]}"] if latest.ahead else []
    notes += ["is that where the service writes them?"] if not (found or notes) else []
    said = f" ({'; '.join(notes)})" if notes else ""
    raise DriftError(f"{url} holds {found} records of model {model_id}{said}; a report needs {FEWEST}.")


def _evidently(reference: Reference, latest: Latest) -> str:
    """Return Evidently's report, HTML, with the same test and threshold."""
    # of figures that do not vary, of pandas to come
    with warnings.catch_warnings(action="ignore"):
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        columns = list(NAMES)
        definition = DataDefinition(numerical_columns=columns)
        tables = (pd.DataFrame([figures_of(record) for record in latest.records]), pd.DataFrame(reference.table))
        current, before = (Dataset.from_pandas(table[columns], data_definition=definition) for table in tables)
        # its verdict is ours: one figure is enough
        preset = DataDriftPreset(
            columns=columns, num_method=METHOD, num_threshold=THRESHOLD, drift_share=1 / len(columns)
        )
        report = Report([preset])
        return str(report.run(current_data=current, reference_data=before).get_html_str(as_iframe=False))


def _as_json(drift: Drift, reference: Reference, latest: Latest) -> dict[str, Any]:
    return {
        "drifted": drift.drifted,
        "share": drift.share,
        "since": drift.since.isoformat() if drift.since else None,
        "records": drift.records,
        "first": drift.first.isoformat(),
        "last": drift.last.isoformat(),
        "days": {day.isoformat(): number for day, number in drift.days.items()},
        "reference": {"data": reference.source, "images": reference.images},
        "method": METHOD,
        "threshold": THRESHOLD,
        "features": {
            each.feature.name: {
                "p": each.p,
                "drifted": each.drifted,
                "median_reference": each.reference,
                "median_now": each.now,
                "since": each.since.isoformat() if each.since else None,
            }
            for each in drift.features
        },
        "other_models": latest.other_models,
        "unreadable": latest.unreadable,
        "ahead": latest.ahead,
    }


def main() -> None:
    """Write a report: `python -m droneseg.monitoring.drift_report MODEL RECORDS REPORTS NUMBER MODEL_ID`.

    The result is a line of JSON: a `DriftResult`, or `error` with the kind and the words of what is expected to fail.
    """
    model, records_url, reports_url, number, answering = sys.argv[1:]
    try:
        found: dict[str, Any] = make_report(
            Path(model), records_url, reports_url, int(number), answering=answering
        ).model_dump()
    except DronesegError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
