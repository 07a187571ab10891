"""The benchmark as a picture."""

from pathlib import Path
from typing import Any

from droneseg.core.errors import MissingDependencyError


def plot_benchmark(found: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory of each row into `path` (PNG, SVG or PDF).

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train") from error
    rows = found["rows"]
    names = [row["name"] for row in rows]
    tints = ["#6b7280" if name.startswith("stock") else "#0e87cc" for name in names]
    figure = Figure(figsize=(11, 0.45 * len(rows) + 1.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    bars = seconds.barh(names, [row["seconds_median"] for row in rows], color=tints)
    labels = [f"{row['seconds_median']:.2f} s   {row['ratio_to_stock_tta']:.1f}x" for row in rows]
    seconds.bar_label(bars, labels, padding=4)
    seconds.set(title="File to mask, log scale; factor against nnU-Net with mirroring", xlabel="seconds", xscale="log")
    seconds.margins(x=0.35)
    seconds.invert_yaxis()
    bars = memory.barh(names, [row["peak_mb"] for row in rows], color=tints)
    memory.bar_label(bars, [f"{row['peak_mb']:.0f}" for row in rows], padding=4)
    memory.set(title="Peak memory", xlabel="MB")
    memory.margins(x=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
