"""Measure how often drift is detected on unchanged and changed images of known places, and on images of new places.

    python benchmarks/drift_power.py DATA SPLIT [--model BUNDLE] [--out FILE]

DATA is a dataset folder. The reference and the samples are disjoint images of the same places: random halves of the
training part for the image features, and of the validation part, to which nothing was fitted, for the features of the
model's predictions. Each sample has 20 images, drawn without replacement. As in the service, drift is detected if the
p-value of any feature is below its threshold.
"""

import argparse
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageFilter
from rich.console import Console
from rich.table import Table

from droneseg.core.camera import UNKNOWN_GROUND
from droneseg.core.images import Image, read_image
from droneseg.core.prediction import image_statistics
from droneseg.data.dataset import list_pairs
from droneseg.data.splits import read_split
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle
from droneseg.monitoring.drift import FALSE_ALARMS, IMAGE_FEATURES, MIN_RECORDS, features_of, measure_reference, p_value

DRAWS = 200
OF_IMAGE = tuple(feature.name for feature in IMAGE_FEATURES)

Change = Callable[[Image], Image]
FeatureTable = dict[str, NDArray[np.float64]]


def blurred(sigma: float) -> Change:
    """Return a Gaussian blur with `sigma` in pixels."""
    return lambda image: np.asarray(pillow.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def darkened(factor: float) -> Change:
    """Return a multiplication of all values by a factor."""
    return lambda image: (image * factor).astype(np.uint8)


def noisy(levels: float) -> Change:
    """Return normal noise with a standard deviation in grey levels; the seed depends on the image."""

    def change(image: Image) -> Image:
        noise = np.random.default_rng(int(image[0, 0].sum())).normal(0, levels, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    return change


def compressed(quality: int) -> Change:
    """Return a compression as JPEG."""

    def change(image: Image) -> Image:
        data = io.BytesIO()
        pillow.fromarray(image).save(data, "JPEG", quality=quality)
        return np.asarray(pillow.open(data).convert("RGB"))

    return change


def scaled(factor: float) -> Change:
    """Return a change of the image size by a factor."""

    def change(image: Image) -> Image:
        height, width = image.shape[:2]
        size = (round(width * factor), round(height * factor))
        return np.asarray(pillow.fromarray(image).resize(size, pillow.Resampling.LANCZOS))

    return change


def hue_shifted(degrees: float) -> Change:
    """Return a rotation of all hues."""

    def change(image: Image) -> Image:
        hsv = np.asarray(pillow.fromarray(image).convert("HSV")).copy()
        hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees * 256 / 360)) % 256
        return np.asarray(pillow.fromarray(hsv, "HSV").convert("RGB"))

    return change


# the first change of each row must be detected; the others show the smallest that still is
CHANGES: dict[str, dict[str, Change]] = {
    "none": {"": lambda image: image},
    "blur, sigma in pixels": {f"{value:g}": blurred(value) for value in (2, 1, 0.5, 0.35, 0.25)},
    "darkened to": {f"{value:.0%}": darkened(value) for value in (0.5, 0.7, 0.8, 0.9)},
    "noise, levels": {f"{value:g}": noisy(value) for value in (10, 5, 2, 1)},
    "JPEG quality": {f"{value}": compressed(value) for value in (10, 30, 50, 70, 90)},
    "scaled to": {f"{value:.0%}": scaled(value) for value in (0.5, 0.8, 0.95)},
    "hue shifted by degrees": {f"{value:g}": hue_shifted(value) for value in (60, 30, 20, 15, 10)},
}


def main() -> None:
    """Measure the detection rates and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("split", type=Path)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    pairs = {pair.stem: pair.image for pair in list_pairs(options.data).pairs}
    split = read_split(options.split, list(pairs))
    segmenter = BundleSegmenter(read_bundle(options.model))
    features = features_of(segmenter.classes)
    of_model = tuple(feature.name for feature in features if feature.of_model)
    threshold = FALSE_ALARMS / len(features)
    rate = partial(detection_rate, threshold=threshold)

    def of_training(change: Change) -> FeatureTable:
        rows = []
        for stem in split.train:
            image = change(read_image(pairs[stem]))
            rows.append(image_statistics(image) | {"megapixels": image.shape[0] * image.shape[1] / 1e6})
        return {name: np.array([row[name] for row in rows]) for name in OF_IMAGE}

    def of_validation(change: Change) -> FeatureTable:
        images = ((change(read_image(pairs[stem])), UNKNOWN_GROUND) for stem in split.val)
        table = measure_reference(segmenter, images, "").table
        return {name: np.array(values) for name, values in table.items()}

    console = Console(width=120)
    training, validation = of_training(CHANGES["none"][""]), of_validation(CHANGES["none"][""])
    rows = []
    for kind, levels in CHANGES.items():
        for level, change in levels.items():
            changed_training, changed_validation = of_training(change), of_validation(change)
            rows.append(
                {
                    "change": f"{kind} {level}".strip(),
                    "photograph": rate(training, changed_training, OF_IMAGE),
                    "model": rate(validation, changed_validation, of_model),
                    "both": rate(validation, changed_validation, (*OF_IMAGE, *of_model)),
                }
            )
            console.print(rows[-1])
    new_places = detection_rate_on_new_places(training, validation, threshold=threshold)
    names = (
        f"{len(OF_IMAGE)} image features",
        f"{len(of_model)} model features",
        f"all {len(OF_IMAGE) + len(of_model)}, as in the service",
    )
    table = Table("change", *names, title="drift detected")
    for row in rows:
        table.add_row(str(row["change"]), *(f"{row[column]:.1%}" for column in ("photograph", "model", "both")))
    console.print(table)
    console.print(f"new places of the same kind, {names[0]}: {new_places:.1%}")
    if options.out:
        options.out.write_text(
            json.dumps({"draws": DRAWS, "n": MIN_RECORDS, "rows": rows, "new_places": new_places}, indent=1)
        )


def detection_rate(before: FeatureTable, after: FeatureTable, names: Sequence[str], *, threshold: float) -> float:
    """Return how often drift is detected between a random half and a changed sample of the other half."""
    rng = np.random.default_rng(1)
    number = len(before[names[0]])
    drifted = 0
    for _ in range(DRAWS):
        order = rng.permutation(number)
        reference, drawn = order[: number // 2], order[number // 2 :][:MIN_RECORDS]
        drifted += _drifted(before, reference, after, drawn, names, threshold)
    return drifted / DRAWS


def detection_rate_on_new_places(known: FeatureTable, new: FeatureTable, *, threshold: float) -> float:
    """Return how often drift is detected on unchanged images of other places."""
    rng = np.random.default_rng(1)
    drifted = 0
    for _ in range(DRAWS):
        reference = rng.permutation(len(known[OF_IMAGE[0]]))[: len(known[OF_IMAGE[0]]) // 2]
        drawn = rng.permutation(len(new[OF_IMAGE[0]]))[:MIN_RECORDS]
        drifted += _drifted(known, reference, new, drawn, OF_IMAGE, threshold)
    return drifted / DRAWS


def _drifted(
    before: FeatureTable,
    reference: NDArray[np.int64],
    after: FeatureTable,
    drawn: NDArray[np.int64],
    names: Sequence[str],
    threshold: float,
) -> bool:
    return any(p_value(before[name][reference].tolist(), after[name][drawn].tolist()) < threshold for name in names)


if __name__ == "__main__":
    main()
