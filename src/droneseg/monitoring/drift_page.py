"""The report on drift as one HTML file: what changed in words and pictures first, Evidently's own report below."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from droneseg.monitoring.drift import FALSE_ALARMS, THRESHOLD, Drift, FeatureDrift
from droneseg.monitoring.drift_plots import plot_figures, plot_over_time
from droneseg.monitoring.latest import Latest
from droneseg.monitoring.reference import Reference

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


def make_page(drift: Drift, reference: Reference, latest: Latest, *, model_id: str, evidently: str) -> str:
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


def _over_time(drift: Drift, reference: Reference, latest: Latest) -> str:
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


def _facts(drift: Drift, reference: Reference, latest: Latest, model_id: str) -> str:
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
    if latest.ahead:
        lines.append(f"Passed over, since a clock was wrong: records of days to come, {', '.join(latest.ahead[:5])}.")
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
