"""Measure which classes a bundle predicts for generated rivers, ponds and shores.

    uv run python benchmarks/generated_water.py BUNDLE DATASET --split SPLIT [--part val] [--count 10] [--json FILE]

The script inserts water into each photograph of a part of the split, by default the validation part, as
`droneseg data augment` does. It gives the model a ground resolution of 0.025 m per pixel at a width of 960 pixels. Only
pixels count that are water in the generated mask and not in the original one.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.camera import given_ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.images import DEFAULT_MAX_PIXELS, read_image
from droneseg.data.augment import AugmentOptions, augment_dataset
from droneseg.data.dataset import GENERATED_NAME, list_pairs, read_true_mask
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle

GSD_M, WIDTH = 0.025, 960
WATER_ID = DEFAULT_CLASSES.id_of("water")
LANDING_ID = DEFAULT_CLASSES.id_of("landing-zones")


@dataclass(frozen=True)
class Result:
    """Prediction of the generated water of one photograph.

    Attributes:
        stem: Stem of the generated photograph.
        pixels: Pixels of generated water by predicted class, shape (C,), dtype int64.
    """

    stem: str
    pixels: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Shares of the generated water by predicted class, shape (C,)."""
        return self.pixels / max(1, self.pixels.sum())


def measure(bundle: Path, dataset: Path, generated: Path, count: int | None) -> list[Result]:
    """Predict generated photographs; return the results, that with the largest share of landing zone first."""
    segmenter = BundleSegmenter(read_bundle(bundle))
    originals = {pair.stem: pair for pair in list_pairs(dataset).pairs}
    origins = json.loads((generated / GENERATED_NAME).read_text())
    results = []
    for pair in list_pairs(generated).pairs[:count]:
        image = read_image(pair.image)
        before = read_true_mask(originals[origins[pair.stem]])
        water = (read_true_mask(pair) == WATER_ID) & (before != WATER_ID)
        mask = segmenter.segment(image, given_ground(GSD_M * WIDTH / image.shape[1])).mask
        results.append(Result(pair.stem, np.bincount(mask[water], minlength=len(DEFAULT_CLASSES))))
        print(f"{len(results)}: {pair.stem}", flush=True)
    return sorted(results, key=lambda result: -result.shares[LANDING_ID])


def show(results: list[Result], worst: int = 10) -> dict[str, float]:
    """Print the shares by class of all generated water and of that in the worst photographs; return those of all."""
    total = Result("all", np.sum([result.pixels for result in results], axis=0))
    for result in (total, *results[:worst]):
        shares = "  ".join(
            f"{name} {share:6.1%}" for name, share in zip(DEFAULT_CLASSES.names, result.shares, strict=True)
        )
        print(f"{result.stem:<16} {result.pixels.sum():>10,} px  {shares}")
    above = sum(result.shares[LANDING_ID] > 0.02 for result in results)
    print(
        f"in {above} of {len(results)} photographs, more than 2 % of the generated water is predicted as landing zone"
    )
    return dict(zip(DEFAULT_CLASSES.names, total.shares.tolist(), strict=True))


def main() -> None:
    """Generate, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--part", choices=("train", "val", "test"), default="val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="predict only the first photographs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = AugmentOptions(water=1, ground=0, shadow=0, seed=arguments.seed, part=arguments.part, originals=False)
    with tempfile.TemporaryDirectory() as temporary:
        generated = Path(temporary, "generated")
        augment_dataset(
            arguments.dataset, generated, options, split_file=arguments.split, max_pixels=DEFAULT_MAX_PIXELS
        )
        results = measure(arguments.bundle, arguments.dataset, generated, arguments.count)
    shares = show(results)
    if arguments.json:
        photographs = {
            result.stem: dict(zip(DEFAULT_CLASSES.names, result.shares.tolist(), strict=True)) for result in results
        }
        arguments.json.write_text(json.dumps({"all": shares, "photographs": photographs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
