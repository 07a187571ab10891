"""Drift report: HTML page, plots, JSON."""

import base64
import io
import json
import sys
import uuid
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from droneseg.core.errors import DriftError, DronesegError, MissingDependencyError, RecordsError
from droneseg.model.bundle import Bundle, read_bundle
from droneseg.monitoring import drift as drift_test
from droneseg.monitoring.log_reader import RecordsPage, read_recent_records
from droneseg.monitoring.prediction_log import Record
from droneseg.monitoring.storage import DISABLED, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_NAME, FIGURES_NAME = "drift.html", "drift.json"
MAX_RECORDS = 20_000
"""Maximum number of records in one report."""

_CHANGED, _SAME, _REFERENCE = "#c0392b", "#2c7a4b", "#b8c0c8"
_MAX_OVER_TIME = 6  # features plotted over time
_COLUMNS = 2
_LOW, _HIGH = 5, 95  # percentiles shown
_MAX_SHIFT = 3.5  # largest shift shown in the plot, in widths of the feature's reference range
_MAX_LISTED = 5  # unreadable records and future days named on the page


class DriftResult(BaseModel):
    """Result of a drift report.

    Attributes:
        url: URL of the HTML page; `drift.json` is in the same folder.
        message: Verdict and changes in words.
        drifted: Whether drift was found.
        share: Share of the features that differ, 0 to 1.
        records: Number of records compared.
    """

    model_config = ConfigDict(frozen=True)
    url: str
    message: str
    drifted: bool
    share: float
    records: int


def make_report(
    model: Path, records_url: str, reports_url: str, number: int, *, active_id: str | None = None
) -> DriftResult:
    """Compare the latest records of a model with its reference and write a report.

    Args:
        model: Bundle of the model.
        records_url: Folder or URL of the prediction log.
        reports_url: Folder or URL to which the report is written.
        number: Maximum number of records.
        active_id: Id that the model must have, such as that of the service's active model; None accepts any model.

    Raises:
        BundleError: If the verification of the bundle fails.
        DriftError: If the bundle has no reference, there are too few records, or a URL is disabled.
        RecordsError: If the records cannot be read or the report cannot be written.
        MissingDependencyError: If Evidently is not installed.
    """
    if find_spec("evidently") is None:
        raise MissingDependencyError("evidently", "drift")
    require_enabled(records_url, reports_url)
    bundle = _read_model(model, active_id)
    reference = drift_test.read_reference(bundle)
    page = read_recent_records(records_url, number, bundle.model_id, reference.features)
    _require_enough(page, records_url, bundle.model_id)
    drift = drift_test.find_drift(reference, page.records)
    html = render_page(drift, reference, page, model_id=bundle.model_id, evidently=_evidently(reference, page))
    message = " ".join([verdict(drift), *sentences(drift)])
    url = _write(reports_url, html, _as_json(drift, reference, page, model_id=bundle.model_id, message=message))
    return DriftResult(url=url, message=message, drifted=drift.drifted, share=drift.share, records=drift.records)


def require_enabled(records_url: str, reports_url: str) -> None:
    """Raise `DriftError` if the prediction log or the reports are disabled."""
    for variable, url in (("RECORDS_URL", records_url), ("REPORTS_URL", reports_url)):
        if url == DISABLED:
            raise DriftError(
                f"DRONESEG_{variable} is none, but a drift report needs it. Set it to a folder or a bucket URL."
            )


def _read_model(folder: Path, active_id: str | None) -> Bundle:
    bundle = read_bundle(folder)
    if active_id not in (None, bundle.model_id):
        raise DriftError(
            f"The service runs model {active_id}, but {folder} now holds model {bundle.model_id}. Reload it with "
            "POST /admin/reload or restart the service."
        )
    return bundle


def _require_enough(page: RecordsPage, url: str, model_id: str) -> None:
    number = len(page.records)
    if number >= drift_test.MIN_RECORDS:
        return
    notes = []
    if page.other_models:
        notes.append("skipped: " + ", ".join(f"{count} of model {other}" for other, count in page.other_models.items()))
    if page.unreadable:
        notes.append(f"{len(page.unreadable)} cannot be read, for example {page.unreadable[0]}")
    if page.future_days:
        notes.append(f"skipped: days in the future, for example {page.future_days[0]}")
    if not number and not notes:
        notes.append("check that the service writes its records there")
    note = f" ({'; '.join(notes)})" if notes else ""
    raise DriftError(
        f"{url} holds {number} records of model {model_id}{note}; a report needs at least {drift_test.MIN_RECORDS}."
    )


def _write(reports_url: str, html: str, figures: dict[str, object]) -> str:
    """Write both files of a report; return the URL of the page."""
    now = datetime.now(UTC)
    folder = f"{now:%Y/%m/%d}/drift-{now:%H%M%S}-{uuid.uuid4().hex[:6]}"
    text = json.dumps({"time": now.isoformat(timespec="seconds"), **figures}, indent=1) + "\n"
    try:
        write_file(reports_url, f"{folder}/{FIGURES_NAME}", text.encode())
        # the page is written last: once it is visible, the report is complete
        return write_file(reports_url, f"{folder}/{PAGE_NAME}", html.encode())
    except Exception as error:  # any storage error
        raise RecordsError(
            f"Cannot write the report to {reports_url} ({type(error).__name__}: {error}). "
            "Check the URL and its permissions."
        ) from error


def verdict(drift: drift_test.Drift) -> str:
    """Return whether the images drifted, as a sentence."""
    if drift.drifted:
        return (
            f"Drift: the last {drift.records} images differ from the validation images in {len(drift.changed)} of "
            f"{len(drift.features)} features."
        )
    return f"No drift: the last {drift.records} images are similar to the validation images."


def sentences(drift: drift_test.Drift) -> list[str]:
    """Return one sentence per changed feature, the clearest change first."""
    return [f"{_change(item)}{_since(item, drift)}." for item in drift.changed]


def _change(item: drift_test.FeatureDrift) -> str:
    feature = item.feature
    values = f"{feature.name} {_short(item.median)} instead of {_short(item.reference_median)}"
    # the median may stay the same while the width or the shape of the distribution changes
    if item.median == item.reference_median:
        return f"The distribution of {feature.name} has changed ({values})"
    return f"The images {feature.higher if item.median > item.reference_median else feature.lower}: {values}"


def _since(item: drift_test.FeatureDrift, drift: drift_test.Drift) -> str:
    if item.since is None or len(drift.days) == 1:
        return ""
    return f", since {_first_day(item, drift)}"


def _first_day(item: drift_test.FeatureDrift, drift: drift_test.Drift) -> str:
    """Return the day since which a feature has differed every day, as text; empty if there is no such day."""
    if not item.drifted or item.since is None:
        return ""
    return f"{item.since} or earlier" if item.since == next(iter(drift.days)) else str(item.since)


def render_page(
    drift: drift_test.Drift, reference: drift_test.Reference, page: RecordsPage, *, model_id: str, evidently: str
) -> str:
    """Return the report as a self-contained HTML page.

    Args:
        drift: Result of the drift test.
        reference: Features of the validation images.
        page: Records that were compared.
        model_id: Id of the model.
        evidently: Evidently's report as HTML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("droneseg.monitoring"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"short": _short, "first_day": partial(_first_day, drift=drift)}
    over_time = plot_over_time(drift, reference, page.records)
    return environment.get_template("drift_report.html.jinja").render(
        model_id=model_id,
        drift=drift,
        verdict=verdict(drift),
        sentences=sentences(drift),
        notes=_notes(drift, reference, page),
        ranges_png=_data_url(plot_ranges(drift, reference, page.records)),
        over_time_png=_data_url(over_time) if over_time else None,
        false_alarms=drift_test.FALSE_ALARMS,
        threshold=reference.threshold,
        evidently=evidently,
    )


def _notes(drift: drift_test.Drift, reference: drift_test.Reference, page: RecordsPage) -> list[str]:
    """Return sentences about the data: the compared images, the reference and the skipped records."""
    days = ", ".join(f"{day} ({number})" for day, number in drift.days.items())
    notes = [
        f"{drift.records} records from {_minute(drift.first)} to {_minute(drift.last)} UTC: {days}.",
        f"Reference: {reference.images} validation images ({reference.source}).",
    ]
    if page.other_models:
        others = ", ".join(f"{number} of {model}" for model, number in page.other_models.items())
        notes.append(f"Skipped records of other models: {others}.")
    if page.unreadable:
        listed = ", ".join(page.unreadable[:_MAX_LISTED]) + (" ..." if len(page.unreadable) > _MAX_LISTED else "")
        notes.append(f"Skipped {len(page.unreadable)} unreadable records: {listed}.")
    if page.future_days:
        listed = ", ".join(page.future_days[:_MAX_LISTED])
        notes.append(f"Skipped records dated in the future, because of a wrong clock: {listed}.")
    if drift.drifted:
        notes.append(
            "Images of a new place differ as well, so look at some of them first. A camera that is out of focus, dirty "
            "or misconfigured, another altitude or other light can reduce the accuracy. Evaluate a few labelled images "
            "to measure by how much."
        )
    return notes


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def plot_ranges(drift: drift_test.Drift, reference: drift_test.Reference, records: Sequence[Record]) -> bytes:
    """Plot the range of each feature now and at validation, in units of the validation range.

    Returns:
        PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.42 * len(drift.features) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    rows = [drift_test.record_features(record, reference.features) for record in records]
    for index, item in enumerate(reversed(drift.features)):
        _plot_range(axes, index, item, reference, [row[item.feature.name] for row in rows])
    axes.set_yticks(range(len(drift.features)), [item.feature.name for item in reversed(drift.features)])
    axes.set_xlim(-_MAX_SHIFT - 0.1, _MAX_SHIFT + 0.1)
    axes.set_xlabel(f"difference from the validation median, in widths of the grey range (clipped to {_MAX_SHIFT})")
    axes.set_title(
        "grey: 90 % of the validation images; line and dot: 90 % and median of the recent images", fontsize=10
    )
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def _plot_range(
    axes: "Axes", index: int, item: drift_test.FeatureDrift, reference: drift_test.Reference, values: list[float]
) -> None:
    low, high = np.percentile(reference.table[item.feature.name], (_LOW, _HIGH))
    spread = max(high - low, 0.02 * abs(item.reference_median), 1e-6)
    ends = (np.array([low, high]) - item.reference_median) / spread
    shifts = (np.percentile(values, (_LOW, 50, _HIGH)) - item.reference_median) / spread
    shifts = np.clip(shifts, -_MAX_SHIFT, _MAX_SHIFT)
    colour = _CHANGED if item.drifted else _SAME
    axes.plot(ends, [index, index], color=_REFERENCE, linewidth=11, solid_capstyle="butt")
    axes.plot(shifts[[0, 2]], [index, index], color=colour, linewidth=2.5)
    axes.plot(shifts[1], index, "o", color=colour, markersize=7)


def plot_over_time(drift: drift_test.Drift, reference: drift_test.Reference, records: Sequence[Record]) -> bytes | None:
    """Plot the most changed features over time, with their ranges at validation.

    Returns:
        PNG file; None if no feature changed.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    plotted = drift.changed[:_MAX_OVER_TIME]
    if not plotted:
        return None
    rows = -(-len(plotted) // _COLUMNS)
    figure = Figure(figsize=(10, 2.5 * rows), layout="constrained")
    for index, item in enumerate(plotted, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, index)
        _plot_feature(axes, item, reference, records)
        locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return _png(figure)


def _plot_feature(
    axes: "Axes", item: drift_test.FeatureDrift, reference: drift_test.Reference, records: Sequence[Record]
) -> None:
    from matplotlib.dates import date2num

    name = item.feature.name
    values = [drift_test.record_features(record, reference.features)[name] for record in records]
    times = [date2num(record.time.astimezone(UTC)) for record in records]  # type: ignore[no-untyped-call]
    low, high = np.percentile(reference.table[name], (_LOW, _HIGH))
    axes.axhspan(low, high, color=_REFERENCE, alpha=0.6, linewidth=0)
    axes.plot(times, values, ".", color=_CHANGED, alpha=0.35, markersize=5)
    days: dict[object, list[int]] = {}
    for index, record in enumerate(records):
        days.setdefault(record.time.astimezone(UTC).date(), []).append(index)
    for indices in days.values():
        ends = [times[indices[0]], times[indices[-1]]]
        axes.plot(ends, [median(values[index] for index in indices)] * 2, color="black", linewidth=2)
    axes.set_title(f"{name} ({item.feature.meaning})", fontsize=10)
    axes.grid(alpha=0.3)


def _png(figure: "Figure") -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


def _evidently(reference: drift_test.Reference, page: RecordsPage) -> str:
    """Return Evidently's report as HTML, computed with the same test and threshold."""
    # Evidently warns about features that do not vary and about future pandas versions
    with warnings.catch_warnings(action="ignore"):
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        columns = [feature.name for feature in reference.features]
        definition = DataDefinition(numerical_columns=columns)
        tables = (
            pd.DataFrame([drift_test.record_features(record, reference.features) for record in page.records]),
            pd.DataFrame(reference.table),
        )
        current, before = (Dataset.from_pandas(table[columns], data_definition=definition) for table in tables)
        # as in `verdict`, one feature that differs is drift
        preset = DataDriftPreset(
            columns=columns,
            num_method=drift_test.METHOD,
            num_threshold=reference.threshold,
            drift_share=1 / len(columns),
        )
        report = Report([preset])
        return str(report.run(current_data=current, reference_data=before).get_html_str(as_iframe=False))


def _as_json(
    drift: drift_test.Drift, reference: drift_test.Reference, page: RecordsPage, *, model_id: str, message: str
) -> dict[str, object]:
    return {
        "model_id": model_id,
        "message": message,
        "drifted": drift.drifted,
        "share": drift.share,
        "since": drift.since.isoformat() if drift.since else None,
        "records": drift.records,
        "first": drift.first.isoformat(),
        "last": drift.last.isoformat(),
        "days": {day.isoformat(): number for day, number in drift.days.items()},
        "reference": {"data": reference.source, "images": reference.images},
        "method": drift_test.METHOD,
        "threshold": reference.threshold,
        "features": {
            item.feature.name: {
                "p": item.p_value,
                "drifted": item.drifted,
                "median_reference": item.reference_median,
                "median_now": item.median,
                "since": item.since.isoformat() if item.since else None,
            }
            for item in drift.features
        },
        "other_models": page.other_models,
        "unreadable": page.unreadable,
        "ahead": page.future_days,
    }


def main() -> None:
    """Run `python -m droneseg.monitoring.drift_report MODEL RECORDS REPORTS NUMBER MODEL_ID`.

    It writes one line of JSON to stdout: a `DriftResult`, or the class (`error`) and the message (`message`) of an
    expected error.
    """
    model, records_url, reports_url, number, active_id = sys.argv[1:]
    result: dict[str, object]
    try:
        result = make_report(Path(model), records_url, reports_url, int(number), active_id=active_id).model_dump()
    except DronesegError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
