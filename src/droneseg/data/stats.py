"""Dataset statistics and plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from droneseg.core.classes import ClassTable, SegmentationClass
from droneseg.core.errors import optional_import
from droneseg.data.dataset import PairFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_SIZES = 8


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of a dataset.

    Attributes:
        pairs: Number of valid pairs.
        sizes: Number of images by size ("WIDTHxHEIGHT"), most frequent first.
        formats: Number of images by file format, most frequent first.
        class_shares: Share of all pixels by class name.
        class_images: Number of images in which a class occurs, by class name.
    """

    pairs: int
    sizes: dict[str, int]
    formats: dict[str, int]
    class_shares: dict[str, float]
    class_images: dict[str, int]


def compute_stats(facts: Sequence[PairFacts], classes: ClassTable) -> DatasetStats:
    """Compute the statistics of a dataset.

    Args:
        facts: Properties of the pairs.
        classes: Class table of the dataset.

    Raises:
        ValueError: If there are no pairs.
    """
    if not facts:
        raise ValueError("no pairs")
    counts = np.stack([item.class_pixels for item in facts])
    shares = counts.sum(axis=0) / counts.sum()
    present = (counts > 0).sum(axis=0)
    return DatasetStats(
        pairs=len(facts),
        sizes=dict(Counter(f"{item.size[0]}x{item.size[1]}" for item in facts).most_common()),
        formats=dict(Counter(item.format for item in facts).most_common()),
        class_shares={entry.name: float(shares[entry.id]) for entry in classes},
        class_images={entry.name: int(present[entry.id]) for entry in classes},
    )


def plot_stats(facts: Sequence[PairFacts], classes: ClassTable, path: Path) -> None:
    """Plot sizes, class shares and their distribution over images to a PNG, SVG or PDF file.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    with optional_import("matplotlib", "train"):
        from matplotlib.figure import Figure
    stats = compute_stats(facts, classes)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    sizes, overall, spread = figure.subplots(1, 3)
    _plot_sizes(sizes, stats)
    entries = [entry for entry in classes if stats.class_images[entry.name]]
    _plot_shares(overall, stats, entries)
    _plot_spread(spread, stats, entries, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _plot_sizes(axes: Axes, stats: DatasetStats) -> None:
    sizes = list(stats.sizes.items())[:_MAX_SIZES]
    axes.barh([name for name, _ in sizes], [number for _, number in sizes], color="#4b5563")
    axes.set(title="Sizes (pixels)", xlabel="photographs")
    axes.invert_yaxis()


def _plot_shares(axes: Axes, stats: DatasetStats, entries: Sequence[SegmentationClass]) -> None:
    names = [entry.name for entry in entries]
    bars = axes.barh(names, [stats.class_shares[name] for name in names], color=[_rgb(entry) for entry in entries])
    axes.bar_label(bars, fmt="{:.1%}", padding=3)
    axes.set(title="Share of all pixels", xlim=(0, 1.15 * max(stats.class_shares.values())))
    axes.invert_yaxis()


def _plot_spread(
    axes: Axes, stats: DatasetStats, entries: Sequence[SegmentationClass], facts: Sequence[PairFacts]
) -> None:
    shares = np.stack([item.class_pixels / item.class_pixels.sum() for item in facts])
    boxes = axes.boxplot(
        [shares[:, entry.id] for entry in entries], orientation="horizontal", patch_artist=True, widths=0.6
    )
    for box, entry in zip(boxes["boxes"], entries, strict=True):
        box.set_facecolor(_rgb(entry))
    labels = [f"{entry.name}\n(in {stats.class_images[entry.name]} of {stats.pairs})" for entry in entries]
    axes.set_yticks(range(1, len(entries) + 1), labels)
    axes.set(title="Share per photograph")
    axes.invert_yaxis()


def _rgb(entry: SegmentationClass) -> tuple[float, ...]:
    """Return the colour of a class as matplotlib expects it, 0 to 1."""
    return tuple(channel / 255 for channel in entry.colour)
