"""Generate the benchmarks page: tables and plots of the results that `benchmarks/record.py` has stored."""

import io
import json
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import yaml
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[2] / "benchmarks"
INTRODUCTION = """# Benchmarks

Speed of prediction, serving and data processing, measured with the commands that are shown.

- Each table comes from one run. Machine load varies, so compare ratios and medians within a table rather than seconds
  between tables.
- To measure on your machine, run `uv run python benchmarks/record.py NAME` in a clone. It stores the results from which
  the tables and plots of this page are generated.
- Other measurements: [Experiments](experiments.md) for all trials, the [model card](model-card.md) for quality,
  [Operations](operations.md#sensitivity) for drift and [Training](training.md#where-the-time-goes) for trainers.
"""


def look_up(row: dict[str, Any], key: str) -> Any:
    """Return a value of a row; dots in the key address nested values."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def shown(value: Any) -> str:
    """Format a number with three significant digits."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if 0.99 < value < 1:
        return f"{value:.5f}"  # three digits would round it to 1
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows_of(entry: dict[str, Any], found: Any) -> list[dict[str, Any]]:
    """Return the rows of a benchmark result."""
    rows = found[entry["rows"]] if "rows" in entry else found
    return rows if isinstance(rows, list) else [rows]


def plot(entry: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return a bar chart as SVG, readable on light and dark backgrounds."""
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
