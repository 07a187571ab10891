"""Measure quality and speed of networks, precisions and modes of prediction, as a table to choose a model from.

    uv run python benchmarks/networks.py BUNDLE... --data DIR --split FILE [--part val] [--json FILE]

Each bundle (with an INT8 network, see `droneseg export --int8`) predicts the same images in float32, bfloat16 and INT8,
with and without mirroring, in full size and at half width and height. Milliseconds are medians from the decoded image
to the mask; the modes of one bundle take turns image by image.
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
from droneseg.core.masks import Mask
from droneseg.core.metrics import confusion
from droneseg.data.dataset import list_pairs, read_true_mask
from droneseg.data.splits import read_split
from droneseg.evaluation.bootstrap import Interval, bootstrap_intervals
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import INT8_NETWORK_NAME, NETWORK_NAME, Bundle, Profile, read_bundle

PRECISIONS = {
    "fp32": Profile(network=NETWORK_NAME, mirroring=False, precision="f32"),
    "bf16": Profile(network=NETWORK_NAME, mirroring=False, precision="fastest"),
    "INT8": Profile(network=INT8_NETWORK_NAME, mirroring=False, precision="f32"),
}
METRICS = ("miou", "unsafe_landing_rate", "landing_recall")


@dataclass
class Mode:
    """Mode of prediction with one bundle, and its measurements.

    Attributes:
        network: Name of the bundle's folder.
        precision: Key of `PRECISIONS`.
        mirrored: Whether to average over mirrored images.
        halved: Whether to predict at half width and height.
        segmenter: Segmenter with these settings.
        seconds: Time of each image, from the decoded image to the mask.
        network_s: Time of the network alone, for each image.
        counts: Confusion matrix of each image.
    """

    network: str
    precision: str
    mirrored: bool
    halved: bool
    segmenter: BundleSegmenter
    seconds: list[float] = field(default_factory=list)
    network_s: list[float] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)

    def predict(self, image: Image, truth: Mask) -> None:
        """Predict one image and store the measurements."""
        height, width = truth.shape
        begin = time.perf_counter()
        if self.halved:
            image = np.asarray(pillow.fromarray(image).resize((width // 2, height // 2), pillow.Resampling.BOX))
        prediction = self.segmenter.segment(image, plain=True)
        mask = prediction.mask
        if self.halved:
            mask = np.asarray(pillow.fromarray(mask).resize((width, height), pillow.Resampling.NEAREST))
        self.seconds.append(time.perf_counter() - begin)
        self.network_s.append(prediction.timings_s["network"])
        self.counts.append(confusion(truth, mask, len(self.segmenter.classes)))


def modes_of(folder: Path) -> list[Mode]:
    """Return all modes of prediction with a bundle."""
    bundle = read_bundle(folder)
    modes = []
    for precision, profile in PRECISIONS.items():
        if profile.network not in bundle.manifest.files:
            continue
        for mirrored in (False, True):
            for halved in (False, True):
                segmenter = BundleSegmenter(_adapt(bundle, profile, mirrored=mirrored, halved=halved), profile="this")
                modes.append(Mode(folder.name, precision, mirrored, halved, segmenter))
    return modes


def _adapt(bundle: Bundle, profile: Profile, *, mirrored: bool, halved: bool) -> Bundle:
    """Return the bundle with one profile, and with a smaller tile for halved images."""
    manifest = bundle.manifest
    patch = manifest.patch_size
    if halved:
        height, width = (-(-side // 2 // unit) * unit for side, unit in zip(patch, manifest.divisor, strict=True))
        patch = (height, width)
    profiles = {"this": profile.model_copy(update={"mirroring": mirrored})}
    changed = manifest.model_copy(update={"profiles": profiles, "default_profile": "this", "patch_size": patch})
    return replace(bundle, manifest=changed)


def main() -> None:
    """Predict with all modes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--part", default="val")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pairs = list_pairs(arguments.data).pairs
    stems = set(getattr(read_split(arguments.split, [pair.stem for pair in pairs]), arguments.part))
    samples = [(read_image(p.image), read_true_mask(p)) for p in pairs if p.stem in stems]
    rows = []
    print("| network | precision | mirrored | size | mIoU (95 %) | unsafe landing rate, recall | ms | network ms |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in arguments.bundles:
        modes = modes_of(folder)
        for image, truth in samples:
            for mode in modes:
                mode.predict(image, truth)
        for mode in modes:
            intervals = bootstrap_intervals(np.stack(mode.counts), mode.segmenter.classes)
            rows.append(_row(mode, intervals))
            print(_line(mode, intervals), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _row(mode: Mode, intervals: dict[str, Interval]) -> dict[str, object]:
    return {
        "network": mode.network,
        "precision": mode.precision,
        "mirrored": mode.mirrored,
        "halved": mode.halved,
        "ms": 1000 * statistics.median(mode.seconds),
        "network_ms": 1000 * statistics.median(mode.network_s),
        **{name: vars(interval) for name, interval in intervals.items()},
    }


def _line(mode: Mode, intervals: dict[str, Interval]) -> str:
    miou, unsafe, recall = (intervals[name] for name in METRICS)
    cells = [
        mode.network,
        mode.precision,
        "yes" if mode.mirrored else "no",
        "half" if mode.halved else "full",
        f"{miou.value:.3f} ({miou.low:.3f} to {miou.high:.3f})",
        f"{unsafe.value:.1%}, {recall.value:.1%}",
        f"{1000 * statistics.median(mode.seconds):.0f}",
        f"{1000 * statistics.median(mode.network_s):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
