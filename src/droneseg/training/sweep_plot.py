"""Plot of a sweep: Dice over epochs, and Dice over each searched key."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from droneseg.core.files import write_bytes
from droneseg.training.sweep import SweepResult, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_BEST, _PRESET, _OTHER = "#d62728", "#1f77b4", "#999999"


def plot_sweep(result: SweepResult, path: Path) -> None:
    """Plot the smoothed Dice of all trials over the epochs, and their final Dice over each searched key.

    Args:
        result: Result of a sweep with at least one trial.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    keys = sorted({key for trial in result.trials for key in trial.values})
    rows = 1 + -(-len(keys) // _COLUMNS)
    figure = Figure(figsize=(11, 4 + 2.6 * (rows - 1)), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS, height_ratios=[1.5, *[1] * (rows - 1)])
    _plot_epochs(figure.add_subplot(grid[0, :]), result)
    for index, key in enumerate(keys):
        _plot_key(figure.add_subplot(grid[1 + index // _COLUMNS, index % _COLUMNS]), result, key)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_bytes(path, data.getvalue())


def _plot_epochs(axes: Axes, result: SweepResult) -> None:
    for trial in reversed(result.trials):
        colour, label = _style(trial, result)
        axes.plot(
            range(1, len(trial.dices) + 1),
            trial.dices,
            color=colour,
            linewidth=2.0 if label else 1.0,
            label=label,
            linestyle="-" if trial.state == "complete" else ":",
        )
    axes.set(
        xlabel="epoch", ylabel="smoothed Dice", title=f"{result.name}: {len(result.trials)} trials (dotted: pruned)"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _plot_key(axes: Axes, result: SweepResult, key: str) -> None:
    for trial in reversed(result.trials):
        if trial.dice is not None and key in trial.values:
            value = trial.values[key]
            position = str(value) if isinstance(value, str | bool) else value
            marker = "o" if trial.state == "complete" else "x"
            axes.scatter([position], [trial.dice], color=_style(trial, result)[0], marker=marker, s=28)
    values = [trial.values.get(key) for trial in result.trials]
    numbers = [float(value) for value in values if isinstance(value, float | int)]
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 20:
        axes.set_xscale("log")
    axes.set(xlabel=key, ylabel="Dice")
    axes.grid(alpha=0.3)


def _style(trial: Trial, result: SweepResult) -> tuple[str, str | None]:
    """Return the colour of a trial and its label in the legend, or None for no label."""
    if result.best and trial.number == result.best.number:
        return _BEST, f"best: trial {trial.number}" + (", the preset" if trial.preset else "")
    return (_PRESET, "the preset") if trial.preset else (_OTHER, None)
