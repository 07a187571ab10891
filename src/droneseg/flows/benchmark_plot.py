"""Benchmarks as pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from droneseg.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS, _STOCK, _PRETRAINED = "#0e87cc", "#6b7280", "#c2410c"
_PART_TINTS = ("#94a3b8", "#c084fc", "#0e87cc", "#1e5f8a", "#f59e0b", "#d1d5db")


def plot_benchmark(found: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory of each row of `run_benchmark` into `path` (PNG, SVG or PDF).

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    rows = found["rows"]
    names = [row["name"] for row in rows]
    tints = [_STOCK if name.startswith("stock") else _OURS for name in names]
    figure = _figure(0.45 * len(rows) + 1.4)
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
    _save(figure, path)


def plot_training_benchmark(found: dict[str, Any], path: Path) -> None:
    """Draw the parts of an iteration and Dice against time of `benchmark_training` into `path` (PNG, SVG or PDF).

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    trainers = found["trainers"]
    names = [row["name"] for row in trainers]
    figure = _figure(3.8)
    figure.suptitle(f"{found['configuration']}, {found['machine']['cores']} cores")
    parts, dice = figure.subplots(1, 2, width_ratios=(1, 1))
    left = [0.0] * len(trainers)
    for part, tint in zip(trainers[0]["parts_s"], _PART_TINTS, strict=False):
        widths = [row["parts_s"][part] for row in trainers]
        parts.barh(names, widths, left=left, color=tint, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    parts.set(title="One iteration", xlabel="seconds")
    parts.invert_yaxis()
    parts.margins(y=0.35)
    parts.legend(loc="lower center", ncols=3, frameon=False, fontsize="small", handlelength=1, columnspacing=0.8)
    for row, tint in zip(trainers, (_STOCK, _OURS, _PRETRAINED), strict=True):
        minutes = [epoch["seconds"] / 60 for epoch in row["dice"]]
        dice.plot(minutes, [epoch["dice"] for epoch in row["dice"]], "o-", markersize=3, color=tint, label=row["name"])
    if found["target_dice"] is not None:
        dice.axhline(found["target_dice"], color=_STOCK, linewidth=0.8, linestyle="--")
    dice.set(title="Patches of the validation part", xlabel="minutes", ylabel="pseudo Dice", ylim=(0, 1))
    dice.set_xlim(left=0)
    dice.legend(loc="lower right", frameon=False)
    _save(figure, path)


def _figure(height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train") from error
    return Figure(figsize=(11, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
