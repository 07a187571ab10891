"""Plots and image grids."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from droneseg.core.classes import CLASSES
from droneseg.core.errors import MissingDependencyError
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.metrics import Confusion
from droneseg.core.overlay import blend, draw_overlay
from droneseg.core.prediction import class_fractions
from droneseg.evaluation.bootstrap import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TINT = "#0e87cc"


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train") from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_confusion(counts: Confusion, path: Path) -> None:
    """Draw what each true class was called, as shares of its pixels, into a PNG."""
    # background is called now and then where no truth has it
    true = [entry for entry in CLASSES if counts[entry.id].sum()]
    called = [entry for entry in CLASSES if entry in true or counts[:, entry.id].sum()]
    part = counts[np.ix_([entry.id for entry in true], [entry.id for entry in called])].astype(float)
    shares = part / part.sum(axis=1, keepdims=True)
    figure = _figure(1.1 * len(called) + 2.2, 0.8 * len(true) + 1.4)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        axes.text(
            column, row, f"{shares[row, column]:.1%}", ha="center", va="center",
            color="white" if shares[row, column] > 0.55 else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(called)), [entry.name for entry in called], rotation=25, ha="right")
    axes.set_yticks(range(len(true)), [entry.name for entry in true])
    axes.set(xlabel="called", ylabel="truly", title="Share of the pixels of each true class")
    figure.savefig(path, dpi=120)


def plot_intervals(intervals: Mapping[str, Interval], path: Path, *, title: str) -> None:
    """Draw values with their intervals, one line each, into a PNG."""
    known = {name: interval for name, interval in intervals.items() if interval.value is not None}
    figure = _figure(8, 0.42 * len(known) + 1.1)
    axes = figure.subplots()
    for place, interval in enumerate(known.values()):
        if interval.low is not None and interval.high is not None:
            ends = (interval.low, interval.high)
            axes.plot(ends, (place, place), color=_TINT, linewidth=5, alpha=0.35, solid_capstyle="butt")
        value = interval.value or 0.0
        axes.plot([value], [place], "o", color=_TINT)
        axes.annotate(
            f"{value:.3f}",
            (value, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
        )
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.4, -0.7)
    axes.grid(axis="x", alpha=0.3)
    if any((interval.low or 0) < 0 for interval in known.values()):
        axes.axvline(0, color="black", linewidth=1)
    axes.set_title(title)
    figure.savefig(path, dpi=120)


def plot_calibration(images: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw each image's accuracy against its confidence into a PNG."""
    known = [image for image in images if image["confidence"] is not None]
    figure = _figure(5, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.scatter([i["confidence"] for i in known], [i["pixel_accuracy"] for i in known], color=_TINT, alpha=0.7)
    low = max(0.0, min(min(i["confidence"], i["pixel_accuracy"]) for i in known) - 0.05)
    axes.set(
        xlim=(low, 1), ylim=(low, 1), xlabel="mean confidence of the image", ylabel="share of right pixels",
        title="Below the line: surer than right",
    )  # fmt: skip
    figure.savefig(path, dpi=120)


def contact_sheet(rows: Sequence[tuple[Image, Mask, Mask]], *, caption: str) -> Image:
    """Draw one row per photograph, with one legend for all below.

    Args:
        rows: Photograph, shape (H, W, 3), true and predicted mask, shape (H, W) each; all of one size.
        caption: A line below the legend.

    Returns:
        RGB, shape (rows x H + legend, 3 x W, 3), dtype uint8.
    """
    sheet = np.vstack([np.hstack([image, blend(image, truth), blend(image, mask)]) for image, truth, mask in rows])
    shares = class_fractions(np.hstack([np.ravel(mask) for _, _, mask in rows]))
    below = draw_overlay(
        sheet,
        np.zeros(sheet.shape[:2], np.uint8),
        shares,
        caption=f"photograph | truth | prediction     {caption}",
    )
    return np.vstack([sheet, below[sheet.shape[0] :]])
