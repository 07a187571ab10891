"""The page of the benchmarks: tables and plots of what `benchmarks/record.py` has kept."""

import io
import json
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import yaml
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[2] / "benchmarks"
INTRODUCTION = """# Benchmarks

Every figure is from one run of the command beside it, which compares things within that run: machines are noisy, so
trust ratios and medians more than seconds. With a clone and `uv run python benchmarks/record.py NAME` you get your own;
the tables and plots of this page are made of what that keeps. What else was measured, failed trials too, is in the
[experiments](experiments.md), quality in the [model card](model-card.md), drift in
[Operations](operations.md#sensitivity) and training in [Training](training.md#where-the-time-goes).
"""


def look_up(row: dict[str, Any], key: str) -> Any:
    """Return a value of a row, in which dots lead inwards."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def shown(value: Any) -> str:
    """Return a figure with three digits that count."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if 0.99 < value < 1:
        return f"{value:.5f}"  # nearly all is not all
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows_of(entry: dict[str, Any], found: Any) -> list[dict[str, Any]]:
    """Return the rows of what a benchmark said."""
    rows = found[entry["rows"]] if "rows" in entry else found
    return rows if isinstance(rows, list) else [rows]


def plot(entry: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return a bar chart as SVG, readable on light and on dark ground."""
    what = entry["plot"]
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names, values = [str(row[what["by"]]) for row in rows], [row[what["of"]] for row in rows]
    bars = axes.barh(names, values, color="#4c78a8")
    axes.bar_label(bars, [shown(value) for value in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(what["label"])
    if what.get("log"):
        axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", facecolor="white")
    return drawn.getvalue()


with mkdocs_gen_files.open("benchmarks.md", "w") as page:
    page.write(INTRODUCTION)
    for name, entry in yaml.safe_load((FOLDER / "catalogue.yaml").read_text(encoding="utf-8")).items():
        kept = json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
        rows = rows_of(entry, kept["found"])
        page.write(f"\n## {entry['title']}\n{entry['about']}\n\n```bash\nuv run {kept['command']}\n```\n\n")
        columns = entry["columns"]
        page.write(f"| {' | '.join(columns.values())} |\n|{'---|' * len(columns)}\n")
        for row in rows:
            page.write(f"| {' | '.join(shown(look_up(row, key)) for key in columns)} |\n")
        if "plot" in entry:
            with mkdocs_gen_files.open(f"benchmarks-{name}.svg", "w") as picture:
                picture.write(plot(entry, rows))
            page.write(f"\n![{entry['title']}: {entry['plot']['label']}](benchmarks-{name}.svg)\n")
        machine = ", ".join(f"{key} {value}" for key, value in kept["machine"].items())
        page.write(f"\n{kept['date']}, revision {kept['revision']}; {machine}.\n")
