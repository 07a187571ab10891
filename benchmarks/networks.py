"""The table to choose a model from: quality beside milliseconds, of every network, precision and way to predict.

    uv run python benchmarks/networks.py BUNDLE... --data DIR --split FILE [--part val] [--json FILE]

Each bundle (with an INT8 network, see `droneseg export --int8`) predicts the same photographs in float32, bfloat16 and
INT8, with and without mirrored passes, as they are and at half their width and height. Milliseconds are medians from
decoded photograph to mask; the rows of one bundle take turns photograph by photograph.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.images import Image, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.core.metrics import confusion
from droneseg.data.dataset import list_pairs
from droneseg.data.splits import read_split
from droneseg.evaluation.bootstrap import Interval, bootstrap_intervals
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import INT8_NETWORK_NAME, NETWORK_NAME, Bundle, Profile, read_bundle

PRECISIONS = {
    "fp32": Profile(network=NETWORK_NAME, mirroring=False, precision="f32"),
    "bf16": Profile(network=NETWORK_NAME, mirroring=False, precision="fastest"),
    "INT8": Profile(network=INT8_NETWORK_NAME, mirroring=False, precision="f32"),
}
FIGURES = ("miou", "unsafe_landing_rate", "landing_recall")


@dataclass
class Way:
    """One way to predict with one bundle, and what came of it."""

    network: str
    precision: str
    mirrored: bool
    halved: bool
    segmenter: BundleSegmenter
    seconds: list[float] = field(default_factory=list)
    network_s: list[float] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)

    def take(self, image: Image, truth: Mask) -> None:
        """Predict one photograph."""
        height, width = truth.shape
        begin = time.perf_counter()
        if self.halved:
            image = np.asarray(pillow.fromarray(image).resize((width // 2, height // 2), pillow.Resampling.BOX))
        done = self.segmenter.segment(image)
        mask = done.mask
        if self.halved:
            mask = np.asarray(pillow.fromarray(mask).resize((width, height), pillow.Resampling.NEAREST))
        self.seconds.append(time.perf_counter() - begin)
        self.network_s.append(done.timings_s["network"])
        self.counts.append(confusion(truth, mask))


def ways(folder: Path) -> list[Way]:
    """Return every way to predict with a bundle."""
    bundle = read_bundle(folder)
    found = []
    for precision, profile in PRECISIONS.items():
        if profile.network not in bundle.manifest.files:
            continue
        for mirrored in (False, True):
            for halved in (False, True):
                segmenter = BundleSegmenter(_with(bundle, profile, mirrored=mirrored, halved=halved), profile="this")
                found.append(Way(folder.name, precision, mirrored, halved, segmenter))
    return found


def _with(bundle: Bundle, profile: Profile, *, mirrored: bool, halved: bool) -> Bundle:
    """Return the bundle with one profile, and with a tile no larger than what it is given needs."""
    manifest = bundle.manifest
    patch = manifest.patch_size
    if halved:
        height, width = (-(-side // 2 // unit) * unit for side, unit in zip(patch, manifest.divisor, strict=True))
        patch = (height, width)
    profiles = {"this": profile.model_copy(update={"mirroring": mirrored})}
    changed = manifest.model_copy(update={"profiles": profiles, "default_profile": "this", "patch_size": patch})
    return replace(bundle, manifest=changed)


def main() -> None:
    """Predict with every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--part", default="val")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pairs = list_pairs(arguments.data).pairs
    chosen = set(getattr(read_split(arguments.split, [pair.stem for pair in pairs]), arguments.part))
    samples = [(read_image(p.image), read_mask(p.mask, "colours")) for p in pairs if p.stem in chosen]
    rows = []
    print("| network | precision | mirrored | size | mIoU (95 %) | unsafe landing, recall | ms | of these network |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in arguments.bundles:
        made = ways(folder)
        for image, truth in samples:
            for way in made:
                way.take(image, truth)
        for way in made:
            found = bootstrap_intervals(np.stack(way.counts))
            rows.append(_row(way, found))
            print(_line(way, found), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _row(way: Way, found: dict[str, Interval]) -> dict[str, object]:
    return {
        "network": way.network,
        "precision": way.precision,
        "mirrored": way.mirrored,
        "halved": way.halved,
        "ms": 1000 * statistics.median(way.seconds),
        "network_ms": 1000 * statistics.median(way.network_s),
        **{name: vars(found[name]) for name in found},
    }


def _line(way: Way, found: dict[str, Interval]) -> str:
    miou, unsafe, recall = (found[name] for name in FIGURES)
    cells = [
        way.network,
        way.precision,
        "yes" if way.mirrored else "no",
        "half" if way.halved else "whole",
        f"{miou.value:.3f} ({miou.low:.3f} to {miou.high:.3f})",
        f"{unsafe.value:.1%}, {recall.value:.1%}",
        f"{1000 * statistics.median(way.seconds):.0f}",
        f"{1000 * statistics.median(way.network_s):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
