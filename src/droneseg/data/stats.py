"""Dataset statistics and plot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from droneseg.core.classes import CLASSES
from droneseg.core.errors import MissingDependencyError
from droneseg.data.dataset import PairFacts


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


def compute_stats(facts: Sequence[PairFacts]) -> DatasetStats:
    """Compute the statistics of a dataset.

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
        class_shares={entry.name: float(shares[entry.id]) for entry in CLASSES},
        class_images={entry.name: int(present[entry.id]) for entry in CLASSES},
    )


def plot_stats(facts: Sequence[PairFacts], path: Path) -> None:
    """Plot sizes, class shares and their distribution over images to a PNG, SVG or PDF file.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train") from error
    stats = compute_stats(facts)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    sizes, overall, spread = figure.subplots(1, 3)
    shown = list(stats.sizes.items())[:8]
    sizes.barh([name for name, _ in shown], [number for _, number in shown], color="#4b5563")
    sizes.set(title="Sizes (pixels)", xlabel="photographs")
    sizes.invert_yaxis()
    entries = [entry for entry in CLASSES if stats.class_images[entry.name]]
    tints = [tuple(channel / 255 for channel in entry.colour) for entry in entries]
    bars = overall.barh([entry.name for entry in entries], [stats.class_shares[e.name] for e in entries], color=tints)
    overall.bar_label(bars, fmt="{:.1%}", padding=3)
    overall.set(title="Share of all pixels", xlim=(0, 1.15 * max(stats.class_shares.values())))
    overall.invert_yaxis()
    shares = np.stack([item.class_pixels / item.class_pixels.sum() for item in facts])
    boxes = spread.boxplot(
        [shares[:, entry.id] for entry in entries], orientation="horizontal", patch_artist=True, widths=0.6
    )
    for box, tint in zip(boxes["boxes"], tints, strict=True):
        box.set_facecolor(tint)
    spread.set_yticks(
        range(1, len(entries) + 1), [f"{e.name}\n(in {stats.class_images[e.name]} of {stats.pairs})" for e in entries]
    )
    spread.set(title="Share per photograph")
    spread.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
