"""Sweep plot."""

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
    """Draw running Dice against epochs of all trials, and the Dice of complete ones against each key searched.

    Args:
        result: Of a sweep with at least one trial.
        path: A PNG file.
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


def _plot_epochs(axes: "Axes", result: SweepResult) -> None:
    for trial in reversed(result.trials):
        colour, label = _look(trial, result)
        axes.plot(
            range(1, len(trial.dices) + 1),
            trial.dices,
            color=colour,
            linewidth=2.0 if label else 1.0,
            label=label,
            linestyle="-" if trial.state == "complete" else ":",
        )
    axes.set(
        xlabel="epoch", ylabel="running Dice", title=f"{result.name}: {len(result.trials)} trials (dotted: ended early)"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _plot_key(axes: "Axes", result: SweepResult, key: str) -> None:
    for trial in reversed(result.trials):
        if trial.dice is not None and key in trial.values:
            value = trial.values[key]
            shown = str(value) if isinstance(value, str | bool) else value
            look = "o" if trial.state == "complete" else "x"
            axes.scatter([shown], [trial.dice], color=_look(trial, result)[0], marker=look, s=28)
    tried = [trial.values.get(key) for trial in result.trials]
    numbers = [float(value) for value in tried if isinstance(value, float | int)]
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 20:
        axes.set_xscale("log")
    axes.set(xlabel=key, ylabel="Dice")
    axes.grid(alpha=0.3)


def _look(trial: Trial, result: SweepResult) -> tuple[str, str | None]:
    """Return the colour of a trial, and its name in the legend if it has one."""
    if result.best and trial.number == result.best.number:
        return _BEST, f"best: trial {trial.number}" + (", the preset" if trial.preset else "")
    return (_PRESET, "the preset") if trial.preset else (_OTHER, None)
