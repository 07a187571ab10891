"""Drift as pictures: all figures beside each other, and those that changed over time."""

import io
from collections.abc import Sequence
from datetime import UTC
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from droneseg.monitoring.drift import Drift, FeatureDrift
from droneseg.monitoring.features import figures_of
from droneseg.monitoring.records import Record
from droneseg.monitoring.reference import Reference

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
    rows = [figures_of(record) for record in records]
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
    values = [figures_of(record)[name] for record in records]
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
