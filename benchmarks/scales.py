"""Measure the quality for photographs of known scale at different sizes, on the validation photographs.

    uv run python benchmarks/scales.py BUNDLE DATA_FOLDER

DATA_FOLDER contains `tugraz_dev278_jpeg` (960x736, five classes), `tugraz_dev278_native` (the same photographs at
1500x1000, masks of the original 24 classes) and `tugraz_split.json`. The photographs are predicted at 960x736, at
1500x1000 and enlarged to 4000 pixels in width, and their scale is given. Every mask is evaluated twice: resampled to
960x736 by the nearest neighbour, so that all sizes have the same truth, and at the photograph's own size. The truth of
enlarged photographs is the enlarged mask of 1500x1000.
"""

import argparse
from pathlib import Path

import numpy as np
from original_masks import read_original_mask
from PIL import Image as pillow
from views import MODEL_WIDTH

from droneseg.core.camera import given_ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.images import Image, read_image
from droneseg.core.masks import Mask
from droneseg.core.metrics import Confusion, confusion, landing_recall, mean_iou, unsafe_landing_rate
from droneseg.data.dataset import list_pairs, read_true_mask
from droneseg.data.splits import read_split
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.views import resample_mask
from droneseg.model.bundle import read_bundle

DATASET, NATIVE, SPLIT = "tugraz_dev278_jpeg", "tugraz_dev278_native", "tugraz_split.json"
ENLARGED_WIDTH = 4000


def main() -> None:
    """Predict all photographs at all sizes and print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER")
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    if bundle.manifest.ground is None:
        parser.error(f"{options.bundle} has no ground resolution; write it with `droneseg models upgrade`.")
    segmenter, gsd_m = BundleSegmenter(bundle), bundle.manifest.ground.gsd_m
    pairs = {pair.stem: pair for pair in list_pairs(options.data / DATASET).pairs}
    stems = read_split(options.data / SPLIT, list(pairs)).val
    at_960: dict[str, list[Confusion]] = {}
    at_own_size: dict[str, list[Confusion]] = {}
    for stem in stems:
        truth = read_true_mask(pairs[stem])
        native = read_image(options.data / NATIVE / "images" / f"{stem}.jpg")
        native_truth = read_original_mask(options.data / NATIVE, stem)
        for image, own_truth in (
            (read_image(pairs[stem].image), truth),
            (native, native_truth),
            enlarge(native, native_truth),
        ):
            height, width = image.shape[:2]
            mask = segmenter.segment(image, given_ground(gsd_m * MODEL_WIDTH / width)).mask
            size = f"{width}x{height}"
            at_960.setdefault(size, []).append(confusion(truth, resample_mask(mask, truth.shape), len(DEFAULT_CLASSES)))
            at_own_size.setdefault(size, []).append(confusion(own_truth, mask, len(DEFAULT_CLASSES)))
    print_table(at_960, at_own_size)


def enlarge(image: Image, truth: Mask) -> tuple[Image, Mask]:
    """Return a photograph, interpolated bicubically, and its truth at the largest size."""
    size = round(ENLARGED_WIDTH * image.shape[0] / image.shape[1]), ENLARGED_WIDTH
    larger = pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BICUBIC)
    return np.asarray(larger), resample_mask(truth, size)


def print_table(at_960: dict[str, list[Confusion]], at_own_size: dict[str, list[Confusion]]) -> None:
    """Print the quality by size as a Markdown table."""
    print("| photographs | mIoU, at 960x736 | unsafe | recall | mIoU, at own size | unsafe | recall |")
    print("|---|---|---|---|---|---|---|")
    for size, matrices in at_960.items():
        cells = [f"{len(matrices)} at {size}"]
        for counts in (sum_of(matrices), sum_of(at_own_size[size])):
            cells.append(f"{mean_iou(counts):.3f}")
            cells += [f"{rate(counts, DEFAULT_CLASSES):.1%}" for rate in (unsafe_landing_rate, landing_recall)]
        print("| " + " | ".join(cells) + " |")


def sum_of(matrices: list[Confusion]) -> Confusion:
    """Return the confusion matrix of all photographs."""
    return np.sum(matrices, axis=0)


if __name__ == "__main__":
    main()
