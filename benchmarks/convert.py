"""Compare the speed of `data convert` with a plain script, and check that both write the same labels.

The plain script reads each image, writes its three channels as three grey PNG files, and compares the mask with the
colour of each class in turn. The two take turns on the same pairs.

    uv run python benchmarks/convert.py DIR [--repeats 3]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from droneseg.core.classes import DATASET_NAME
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.data.convert import ConversionOptions, convert_dataset
from droneseg.data.dataset import list_pairs


def plain(source: Path, out: Path) -> None:
    """Convert as a plain script would."""
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
    listing = list_pairs(source)
    for pair in listing.pairs:
        image = np.asarray(Image.open(pair.image).convert("RGB"))
        for channel in range(3):
            Image.fromarray(image[..., channel]).save(out / "imagesTr" / f"drone_{pair.stem}_{channel:04d}.png")
        colours = np.asarray(Image.open(pair.mask).convert("RGB"))
        ids = np.zeros(colours.shape[:2], dtype=np.uint8)
        for entry in listing.classes:
            ids[np.all(colours == np.array(entry.colour), axis=-1)] = entry.id
        Image.fromarray(ids).save(out / "labelsTr" / f"drone_{pair.stem}.png")


def ours(source: Path, out: Path) -> None:
    """Convert with droneseg."""
    convert_dataset(source, out, ConversionOptions(test_share=0), max_pixels=DEFAULT_MAX_PIXELS)


def timed(convert: Callable[[Path, Path], None], source: Path) -> tuple[float, dict[str, bytes]]:
    """Return the seconds of one conversion, and its label arrays by case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        begin = time.perf_counter()
        convert(source, out)
        seconds = time.perf_counter() - begin
        labels = (out / DATASET_NAME if (out / DATASET_NAME).exists() else out) / "labelsTr"
        return seconds, {file.stem: np.asarray(Image.open(file)).tobytes() for file in labels.iterdir()}


def main() -> None:
    """Run both conversions in turns, and print their medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"plain": [], "droneseg": []}
    for _ in range(arguments.repeats):
        plain_s, plain_labels = timed(plain, arguments.source)
        ours_s, our_labels = timed(ours, arguments.source)
        if plain_labels != our_labels:
            raise SystemExit("the two conversions differ")
        seconds["plain"].append(plain_s)
        seconds["droneseg"].append(ours_s)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:9} {median:8.2f} s median of {arguments.repeats}")
    print(f"ratio     {medians['plain'] / medians['droneseg']:8.1f} x on {len(our_labels)} pairs, labels equal")


if __name__ == "__main__":
    main()
