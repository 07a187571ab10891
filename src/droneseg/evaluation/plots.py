"""Plots and image grids of the evaluation reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from droneseg.core.classes import BACKGROUND_ID, ClassTable
from droneseg.core.errors import optional_import
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.metrics import Confusion
from droneseg.core.overlay import blend, draw_overlay
from droneseg.core.prediction import class_fractions
from droneseg.evaluation.bootstrap import Interval
from droneseg.evaluation.landing_risk import LandingRisk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TINT = "#0e87cc"


def _figure(width: float, height: float) -> "Figure":
    with optional_import("matplotlib", "train"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def plot_confusion(counts: Confusion, names: Sequence[str], path: Path) -> None:
    """Plot a confusion matrix as shares of the pixels of each true class.

    Args:
        counts: Pixel counts, shape (C, C); rows are true classes, columns predicted ones.
        names: Names of the C classes.
        path: PNG file to write.
    """
    true = [i for i in range(len(names)) if counts[i].sum()]
    # background may be predicted although no true mask contains it
    predicted = [i for i in range(len(names)) if i in true or counts[:, i].sum()]
    part = counts[np.ix_(true, predicted)].astype(float)
    shares = part / part.sum(axis=1, keepdims=True)
    figure = _figure(1.1 * len(predicted) + 2.2, 0.8 * len(true) + 1.4)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        colour = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{share:.1%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(predicted)), [names[i] for i in predicted], rotation=25, ha="right")
    axes.set_yticks(range(len(true)), [names[i] for i in true])
    axes.set(xlabel="Predicted class", ylabel="True class", title="Share of the pixels of each true class")
    figure.savefig(path, dpi=120)


def plot_intervals(intervals: Mapping[str, Interval], path: Path, *, title: str) -> None:
    """Plot values with their confidence intervals, one row each.

    Args:
        intervals: Values by label; those without a value are left out.
        path: PNG file to write.
        title: Title of the plot.
    """
    known = {name: interval for name, interval in intervals.items() if interval.value is not None}
    figure = _figure(8, 0.42 * len(known) + 1.1)
    axes = figure.subplots()
    for index, interval in enumerate(known.values()):
        if interval.low is not None and interval.high is not None:
            ends = (interval.low, interval.high)
            axes.plot(ends, (index, index), color=_TINT, linewidth=5, alpha=0.35, solid_capstyle="butt")
        value = interval.value or 0.0
        axes.plot([value], [index], "o", color=_TINT)
        axes.annotate(f"{value:.3f}", (value, index), xytext=(0, 7), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.4, -0.7)
    axes.grid(axis="x", alpha=0.3)
    if any((interval.low or 0) < 0 for interval in known.values()):
        axes.axvline(0, color="black", linewidth=1)
    axes.set_title(title)
    figure.savefig(path, dpi=120)


def plot_calibration(confidence: ArrayLike, accuracy: ArrayLike, path: Path) -> None:
    """Plot the pixel accuracy of each image over its confidence.

    Args:
        confidence: Mean confidence per image, shape (N,), 0 to 1; N is at least 1.
        accuracy: Pixel accuracy per image, shape (N,), 0 to 1.
        path: PNG file to write.
    """
    confidence, accuracy = np.asarray(confidence), np.asarray(accuracy)
    figure = _figure(5, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.scatter(confidence, accuracy, color=_TINT, alpha=0.7)
    low = max(0.0, float(min(confidence.min(), accuracy.min())) - 0.05)
    axes.set(
        xlim=(low, 1),
        ylim=(low, 1),
        xlabel="Mean confidence of the image",
        ylabel="Pixel accuracy of the image",
        title="Below the diagonal: over-confident",
    )
    figure.savefig(path, dpi=120)


def plot_risk(curve: Mapping[float, LandingRisk], limit: float, path: Path) -> None:
    """Plot the share of first sites that contain anything unsafe against the share of photographs with a site.

    Args:
        curve: Failure rates by limit of danger.
        limit: Limit of the model; it is marked.
        path: PNG file to write.
    """
    figure = _figure(6, 4)
    axes = figure.subplots()
    risks = {tested: risk for tested, risk in curve.items() if risk.photographs}
    coverage = [risk.with_site / risk.photographs for risk in risks.values()]
    rates = [risk.unsafe.failures / max(risk.unsafe.number, 1) for risk in risks.values()]
    bounds = [risk.unsafe.bound for risk in risks.values()]
    axes.plot(coverage, rates, "o-", color=_TINT, label="measured")
    axes.fill_between(coverage, rates, bounds, color=_TINT, alpha=0.2, label="up to the 95 % bound")
    for tested, share, rate in zip(risks, coverage, rates, strict=True):
        axes.annotate(f"{tested:g}", (share, rate), textcoords="offset points", xytext=(4, 6), fontsize=8)
        if tested == limit:
            axes.plot(share, rate, "s", color="black", label="limit of the model")
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="Share of photographs with a site",
        ylabel="First sites with anything unsafe",
        title="Each point is labelled with its limit of danger",
    )
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def contact_sheet(rows: Sequence[tuple[Image, Mask, Mask]], classes: ClassTable, *, caption: str) -> Image:
    """Draw image, true mask and predicted mask side by side, one row per image, above a legend.

    Args:
        rows: Image, shape (H, W, 3), true mask and predicted mask, shape (H, W); all rows have the same size.
        classes: Class table of the masks. Pixels without a label are drawn as background.
        caption: Text below the legend.

    Returns:
        RGB, shape (rows x H + legend, 3 x W, 3), dtype uint8.
    """
    labelled = [
        (image, np.where(truth < len(classes), truth, np.uint8(BACKGROUND_ID)), mask) for image, truth, mask in rows
    ]
    sheet = np.vstack(
        [
            np.hstack([image, blend(image, truth, classes), blend(image, mask, classes)])
            for image, truth, mask in labelled
        ]
    )
    shares = class_fractions(np.hstack([np.ravel(mask) for _, _, mask in rows]), classes)
    with_legend = draw_overlay(
        sheet, np.zeros(sheet.shape[:2], np.uint8), classes, shares, caption=f"image | truth | prediction | {caption}"
    )
    return np.vstack([sheet, with_legend[sheet.shape[0] :]])
