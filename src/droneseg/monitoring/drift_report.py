"""Drift report: HTML page, plots, JSON."""

import base64
import io
import json
import sys
import uuid
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from droneseg.core.errors import DriftError, DronesegError, MissingDependencyError, RecordsError
from droneseg.model.bundle import read_bundle
from droneseg.monitoring.drift import (
    FALSE_ALARMS,
    METHOD,
    MIN_RECORDS,
    NAMES,
    THRESHOLD,
    Drift,
    FeatureDrift,
    Reference,
    find_drift,
    read_reference,
    record_features,
)
from droneseg.monitoring.log_reader import RecordsPage, read_recent_records
from droneseg.monitoring.prediction_log import Record
from droneseg.monitoring.storage import DISABLED, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHANGED, _SAME, _REFERENCE = "#c0392b", "#2c7a4b", "#b8c0c8"
_MOST_OVER_TIME = 6
_COLUMNS = 2
_LOW, _HIGH = 5, 95  # percentiles shown


def plot_figures(drift: Drift, reference: Reference, records: Sequence[Record]) -> bytes:
    """Draw where each figure lay at validation and where it lies now, in units of its own spread.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.42 * len(drift.features) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    rows = [record_features(record) for record in records]
    for place, each in enumerate(reversed(drift.features)):
        name = each.feature.name
        values = np.array(reference.table[name])
        now = np.array([row[name] for row in rows])
        low, high = np.percentile(values, (_LOW, _HIGH))
        spread = max(high - low, 0.02 * abs(each.reference), 1e-6)
        scaled = np.clip((np.percentile(now, (_LOW, 50, _HIGH)) - each.reference) / spread, -3.5, 3.5)
        colour = _CHANGED if each.drifted else _SAME
        ends = (np.array([low, high]) - each.reference) / spread
        axes.plot(ends, [place, place], color=_REFERENCE, linewidth=11, solid_capstyle="butt")
        axes.plot(scaled[[0, 2]], [place, place], color=colour, linewidth=2.5)
        axes.plot(scaled[1], place, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(drift.features)), [each.feature.name for each in reversed(drift.features)])
    axes.set_xlim(-3.6, 3.6)
    axes.set_xlabel("distance from the median at validation, in widths of the grey range (beyond 3.5: at the edge)")
    axes.set_title(
        "grey: 90 % of the photographs at validation; line and dot: 90 % and median of those now", fontsize=10
    )
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def plot_over_time(drift: Drift, reference: Reference, records: Sequence[Record]) -> bytes | None:
    """Draw the figures that changed most over time, against where they lay at validation.

    Returns:
        A PNG; None if nothing changed.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    shown = drift.changed[:_MOST_OVER_TIME]
    if not shown:
        return None
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(10, 2.5 * rows), layout="constrained")
    for index, each in enumerate(shown):
        axes = figure.add_subplot(rows, _COLUMNS, index + 1)
        _draw(axes, each, reference, records)
        locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return _png(figure)


def _draw(axes: "Axes", each: FeatureDrift, reference: Reference, records: Sequence[Record]) -> None:
    from matplotlib.dates import date2num

    name = each.feature.name
    values = [record_features(record)[name] for record in records]
    times = [date2num(record.time.astimezone(UTC)) for record in records]  # type: ignore[no-untyped-call]
    low, high = np.percentile(reference.table[name], (_LOW, _HIGH))
    axes.axhspan(low, high, color=_REFERENCE, alpha=0.6, linewidth=0)
    axes.plot(times, values, ".", color=_CHANGED, alpha=0.35, markersize=5)
    days: dict[object, list[int]] = {}
    for place, record in enumerate(records):
        days.setdefault(record.time.astimezone(UTC).date(), []).append(place)
    for places in days.values():
        ends = [times[places[0]], times[places[-1]]]
        axes.plot(ends, [median(values[place] for place in places)] * 2, color="black", linewidth=2)
    axes.set_title(f"{name} ({each.feature.meaning})", fontsize=10)
    axes.grid(alpha=0.3)


def _png(figure: "Figure") -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.verdict{border-left:.5rem solid;padding:.6rem 1rem;background:#f4f6f8}
.drift{border-color:#c0392b}.same{border-color:#2c7a4b}
table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #dde3e8}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}tr.drifted{background:#fbeceb}
td{white-space:nowrap}img{max-width:100%}.note{color:#5b6875;font-size:.9rem}
iframe{width:min(1300px,96vw);margin-left:calc(50% - min(650px,48vw));height:70rem;border:1px solid #dde3e8}
"""


def sentences(drift: Drift) -> list[str]:
    """Say what changed, the clearest first; nothing if nothing did."""
    return [f"{_sentence(each)}{_since(each, drift)}." for each in drift.changed]


def verdict(drift: Drift) -> str:
    """Say in a sentence whether the photographs drifted."""
    counted = f"{len(drift.changed)} of {len(drift.features)} figures differ"
    if drift.drifted:
        return f"Drift: the last {drift.records} photographs are not like those the model was validated on ({counted})."
    return f"No drift: the last {drift.records} photographs are like those the model was validated on."


def make_page(drift: Drift, reference: Reference, latest: RecordsPage, *, model_id: str, evidently: str) -> str:
    """Return the report as HTML that needs no other file.

    Args:
        drift: What was found.
        reference: What it was held against.
        latest: The records.
        model_id: The model.
        evidently: Evidently's report, HTML.
    """
    parts = [
        f"<h1>Drift of model {escape(model_id)}</h1>",
        f'<div class="verdict {"drift" if drift.drifted else "same"}"><strong>{escape(verdict(drift))}</strong>',
        _list(sentences(drift)),
        "</div>",
        _facts(drift, reference, latest, model_id),
        "<h2>Each figure now and at validation</h2>",
        _image(plot_figures(drift, reference, latest.records), "Range of each figure now and at validation"),
        _over_time(drift, reference, latest),
        "<h2>All figures</h2>",
        _table(drift),
        _method(drift),
        "<h2>Evidently's report</h2>",
        f'<iframe title="Evidently" srcdoc="{escape(evidently, quote=True)}"></iframe>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Drift of model {escape(model_id)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>"
    )


def _over_time(drift: Drift, reference: Reference, latest: RecordsPage) -> str:
    png = plot_over_time(drift, reference, latest.records)
    if png is None:
        return ""
    return (
        f"<h2>What changed, over time (UTC)</h2>{_image(png, 'The changed figures over time')}"
        '<p class="note">Grey: where 90 % of the photographs at validation lay. Black: the median of a day.</p>'
    )


def _sentence(each: FeatureDrift) -> str:
    feature = each.feature
    figures = f"{feature.name} {_number(each.now)} instead of {_number(each.reference)}"
    # a median may stay while the width or the shape changes
    change = feature.higher if each.now > each.reference else feature.lower if each.now < each.reference else ""
    return f"They {change}: {figures}" if change else f"They are spread differently in {feature.name} ({figures})"


def _since(each: FeatureDrift, drift: Drift) -> str:
    if each.since is None or len(drift.days) == 1:
        return ""
    if each.since == next(iter(drift.days)):
        return f", on all days looked at, since {each.since} or before"
    return f", since {each.since}"


def _facts(drift: Drift, reference: Reference, latest: RecordsPage, model_id: str) -> str:
    days = ", ".join(f"{day} ({number})" for day, number in drift.days.items())
    lines = [
        f"{drift.records} records from {_time(drift.first)} to {_time(drift.last)} UTC: {days}.",
        f"Held against {reference.images} photographs: {reference.source}.",
    ]
    if latest.other_models:
        others = ", ".join(f"{number} of {other}" for other, number in latest.other_models.items())
        lines.append(f"Passed over, since another model than {model_id} made them: {others}.")
    if latest.unreadable:
        shown = ", ".join(latest.unreadable[:5]) + (" ..." if len(latest.unreadable) > 5 else "")
        lines.append(f"{len(latest.unreadable)} records could not be read: {shown}.")
    if latest.future_days:
        lines.append(
            f"Passed over, since a clock was wrong: records of days to come, {', '.join(latest.future_days[:5])}."
        )
    if drift.drifted:
        lines.append(
            "Photographs of new places differ, too: look at some before you act. A camera that is out of focus, dirty "
            "or set wrongly, another height or light can cost accuracy: a few labelled photographs tell how much."
        )
    return _list(lines)


def _table(drift: Drift) -> str:
    rows = "".join(
        f'<tr class="{"drifted" if each.drifted else ""}"><td>{escape(each.feature.name)}</td>'
        f'<td>{escape(each.feature.meaning)}</td><td class="number">{_number(each.reference)}</td>'
        f'<td class="number">{_number(each.now)}</td><td class="number">{each.p:.2g}</td>'
        f"<td>{'differs' if each.drifted else ''}</td><td>{_day(each, drift)}</td></tr>"
        for each in drift.features
    )
    return (
        '<table><tr><th>figure</th><th>what it is</th><th class="number">median at validation</th>'
        f'<th class="number">median now</th><th class="number">p</th><th></th><th>since</th></tr>{rows}</table>'
    )


def _day(each: FeatureDrift, drift: Drift) -> str:
    if not each.drifted or each.since is None:
        return ""
    return f"{each.since} or before" if each.since == next(iter(drift.days)) else str(each.since)


def _method(drift: Drift) -> str:
    return (
        f'<p class="note">p: two-sample Kolmogorov-Smirnov test. A figure differs if p is below {FALSE_ALARMS} / '
        f"{len(drift.features)} = {THRESHOLD:.2g} (Bonferroni), so that fewer than {FALSE_ALARMS:.0%} of the reports "
        "on unchanged photographs call drift. Drift is called if any figure differs.</p>"
    )


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _image(png: bytes, alternative: str) -> str:
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _number(value: float) -> str:
    return f"{value:.3g}"


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


PAGE_NAME, FIGURES_NAME = "drift.html", "drift.json"
MAX_RECORDS = 20_000
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
    latest = read_recent_records(records_url, number, bundle.model_id)
    _require_enough(latest, records_url, bundle.model_id)
    drift = find_drift(reference, latest.records)
    now = datetime.now(UTC)
    folder = f"{now:%Y/%m/%d}/drift-{now:%H%M%S}-{uuid.uuid4().hex[:6]}"
    page = make_page(drift, reference, latest, model_id=bundle.model_id, evidently=_evidently(reference, latest))
    message = " ".join([verdict(drift), *sentences(drift)])
    # the page is last: who sees it sees all
    about = {"time": now.isoformat(timespec="seconds"), "model_id": bundle.model_id, "message": message}
    text = json.dumps(about | _as_json(drift, reference, latest), indent=1) + "\n"
    try:
        write_file(reports_url, f"{folder}/{FIGURES_NAME}", text.encode())
        url = write_file(reports_url, f"{folder}/{PAGE_NAME}", page.encode())
    except Exception as error:  # a store can fail in any way
        raise RecordsError(f"The report cannot be written to {reports_url}: {type(error).__name__}: {error}") from error
    return DriftResult(url=url, message=message, drifted=drift.drifted, share=drift.share, records=drift.records)


def require_somewhere(records_url: str, reports_url: str) -> None:
    """Raise `DriftError` if no records are kept, or a report has nowhere to go."""
    for variable, url in (("RECORDS_URL", records_url), ("REPORTS_URL", reports_url)):
        if url == DISABLED:
            raise DriftError(f"DRONESEG_{variable} is none: name a folder or a bucket for a report.")


def _require_enough(latest: RecordsPage, url: str, model_id: str) -> None:
    found = len(latest.records)
    if found >= MIN_RECORDS:
        return
    others = ", ".join(f"{number} of model {other}" for other, number in latest.other_models.items())
    notes = [f"passed over: {others}"] if others else []
    notes += (
        [f"{len(latest.unreadable)} could not be read, such as {latest.unreadable[0]}"] if latest.unreadable else []
    )
    notes += [f"passed over: days to come, such as {latest.future_days[0]}"] if latest.future_days else []
    notes += ["is that where the service writes them?"] if not (found or notes) else []
    said = f" ({'; '.join(notes)})" if notes else ""
    raise DriftError(f"{url} holds {found} records of model {model_id}{said}; a report needs {MIN_RECORDS}.")


def _evidently(reference: Reference, latest: RecordsPage) -> str:
    """Return Evidently's report, HTML, with the same test and threshold."""
    # of figures that do not vary, of pandas to come
    with warnings.catch_warnings(action="ignore"):
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        columns = list(NAMES)
        definition = DataDefinition(numerical_columns=columns)
        tables = (pd.DataFrame([record_features(record) for record in latest.records]), pd.DataFrame(reference.table))
        current, before = (Dataset.from_pandas(table[columns], data_definition=definition) for table in tables)
        # its verdict is ours: one figure is enough
        preset = DataDriftPreset(
            columns=columns, num_method=METHOD, num_threshold=THRESHOLD, drift_share=1 / len(columns)
        )
        report = Report([preset])
        return str(report.run(current_data=current, reference_data=before).get_html_str(as_iframe=False))


def _as_json(drift: Drift, reference: Reference, latest: RecordsPage) -> dict[str, Any]:
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
        "ahead": latest.future_days,
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
