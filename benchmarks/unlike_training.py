"""Measure how often images are reported as unlike the training images.

    python benchmarks/unlike_training.py DATA_FOLDER [--model BUNDLE] [--out FILE]

False alarms: the validation photographs. Power: changed copies of them. Photographs of other cameras and places are
listed as they are. DATA_FOLDER contains `tugraz_dev278_jpeg`, `tugraz_split.json` and folders with other photographs;
those that are missing are left out.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from drift_power import Change, blurred, darkened, noisy
from PIL import Image as pillow
from rich.console import Console
from rich.table import Table

from droneseg.core.camera import read_ground
from droneseg.core.images import Image, decode_image
from droneseg.data.dataset import list_pairs
from droneseg.data.splits import read_split
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle

DATASET, SPLIT = "tugraz_dev278_jpeg", "tugraz_split.json"
PLACES = {
    "AeroScapes frames": "aeroscapes_dev/images/*",
    "DJI photographs at 40 m": "dji_brighton/*.JPG",
    "two places, compact cameras": "odm_places/*.jpg",
    "river between meadows": "swindale_dev/*.jpg",
}
CLOSE_UP = 8


def close_up(image: Image) -> Image:
    """Return a part of an image, an eighth as wide and as high, enlarged to the size of the image."""
    height, width = image.shape[:2]
    rows, columns = height // CLOSE_UP, width // CLOSE_UP
    rng = np.random.default_rng(int(image[0, 0].sum()))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    part = pillow.fromarray(image[top : top + rows, left : left + columns])
    return np.asarray(part.resize((width, height), pillow.Resampling.BICUBIC))


CHANGES: dict[str, Change] = {
    "black": np.zeros_like,
    "night, values x0.1": darkened(0.1),
    "blur, sigma 8 pixels": blurred(8),
    "noise, sigma 60 levels": noisy(60),
    f"close-up, {CLOSE_UP}x": close_up,
}


def main() -> None:
    """Measure the shares and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    bundle = read_bundle(options.model)
    if not (bundle.manifest.calibration and bundle.manifest.calibration.unlike_training):
        parser.error(f"{options.model} has no ranges; write them with `droneseg models upgrade`.")
    segmenter = BundleSegmenter(bundle)
    pairs = {pair.stem: pair.image for pair in list_pairs(options.data / DATASET).pairs}
    files = [pairs[stem] for stem in read_split(options.data / SPLIT, list(pairs)).val]
    rows = {f"{len(files)} validation photographs": measure(segmenter, files)}
    rows |= {name: measure(segmenter, files, change) for name, change in CHANGES.items()}
    for name, pattern in PLACES.items():
        if found := sorted(options.data.glob(pattern)):
            rows[name] = measure(segmenter, found)
    print_table(rows)
    if options.out:
        options.out.write_text(json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1))


@dataclass(frozen=True)
class Row:
    """Result for a group of images: their number, the names of those reported, and how often each reason is given."""

    images: int
    reported: list[str]
    reasons: dict[str, int]


def measure(segmenter: BundleSegmenter, files: list[Path], change: Change | None = None) -> Row:
    """Predict images, changed or as they are."""
    reasons: Counter[str] = Counter()
    reported: list[str] = []
    for file in files:
        data = file.read_bytes()
        image, ground = decode_image(data), read_ground(data)
        prediction = segmenter.segment(change(image) if change else image, ground)
        reasons.update(prediction.unlike_training)
        reported += [file.stem] if prediction.unlike_training else []
    return Row(len(files), reported, dict(reasons.most_common()))


def print_table(rows: dict[str, Row]) -> None:
    """Print one line per group of images."""
    table = Table("images", "number", "reported", "share", "why", title="unlike the training images")
    for name, row in rows.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in row.reasons.items())
        table.add_row(name, str(row.images), str(len(row.reported)), f"{len(row.reported) / row.images:.1%}", reasons)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
