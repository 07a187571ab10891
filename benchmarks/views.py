"""Compare ways to combine views of a photograph and to correct its exposure, on training photographs.

    uv run python benchmarks/views.py BUNDLE NATIVE_FOLDER SPLIT [--images 60]

NATIVE_FOLDER contains `images` and `masks_24`, masks of the original 24 classes; SPLIT names the training photographs.
Half of the photographs show water, those with the most water first. Each is enlarged and reduced,
to imitate large and distant images; sizes are relative to a width of 960 pixels. The predictions of all views are
resampled to 500 pixels in width, combined and evaluated.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from original_masks import read_original_mask
from PIL import Image as pillow

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.images import Image, read_image
from droneseg.core.metrics import Confusion, confusion, iou, landing_recall, mean_iou, unsafe_landing_rate
from droneseg.data.splits import read_split
from droneseg.inference.runtimes.base import softmax
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.views import default_context, exposure_tables, resample, resample_mask
from droneseg.model.bundle import Exposure, read_bundle

MODEL_WIDTH = 960  # pixels in width that show about the ground resolution of the training
JUDGED_WIDTH = 500
SCALES = (0.25, 0.35, 0.5, 1.0, 1.25, 1.5625, 2.0)
WATER_ID = DEFAULT_CLASSES.id_of("water")
LANDING_ID = DEFAULT_CLASSES.id_of("landing-zones")
_CONTEXT = default_context(DEFAULT_CLASSES)
REGIONS = [DEFAULT_CLASSES.id_of(name) for name in _CONTEXT.region_classes] if _CONTEXT else []
_MIN_WATER_SHARE = 0.01
_LEAST = 1e-4  # added to probabilities before the logarithm

Scores: TypeAlias = NDArray[np.float32]
"""Probabilities or other scores of the classes, shape (C, H, W); the largest one wins."""
Views: TypeAlias = Mapping[str, Scores]
"""Class probabilities by the name of the view."""
Combination: TypeAlias = Callable[[Views], Scores]


def main() -> None:
    """Predict all views of the photographs and print one line for each view and combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path, metavar="NATIVE_FOLDER")
    parser.add_argument("split", type=Path)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    alone = bundle.manifest.model_copy(update={"context": None})  # black borders, as in nnU-Net
    segmenter = BundleSegmenter(replace(bundle, manifest=alone))
    combinations = {**view_combinations(), **exposure_combinations()}
    totals: dict[str, Confusion] = {}
    for stem in choose_photographs(options.photographs, options.split, options.images):
        image = read_image(options.photographs / "images" / f"{stem}.jpg")
        height = round(JUDGED_WIDTH * image.shape[0] / image.shape[1])
        truth = resample_mask(read_original_mask(options.photographs, stem), (height, JUDGED_WIDTH))
        views = predict_views(segmenter, image, truth.shape)
        for name in (*views, *combinations):
            scores = combinations[name](views) if name in combinations else views[name]
            counts = confusion(truth, scores.argmax(axis=0).astype(np.uint8), len(DEFAULT_CLASSES))
            totals[name] = totals[name] + counts if name in totals else counts
    print_table(totals)


def choose_photographs(folder: Path, split: Path, count: int) -> list[str]:
    """Return the stems of training photographs: in turn one with water, most water first, and a random one without."""
    stems = sorted(path.stem for path in (folder / "images").glob("*.jpg"))
    train = read_split(split, stems).train
    water = {stem: float((read_original_mask(folder, stem) == WATER_ID).mean()) for stem in train}
    wet = sorted((stem for stem in train if water[stem] > _MIN_WATER_SHARE), key=lambda stem: -water[stem])
    dry = [str(stem) for stem in np.random.default_rng(0).permutation(sorted(train)) if stem not in set(wet)]
    pairs = [stem for pair in zip(wet, dry, strict=False) for stem in pair]
    return [*pairs, *wet[len(dry) :], *dry[len(wet) :]][:count]


# Views


def predict_views(segmenter: BundleSegmenter, image: Image, size: tuple[int, int]) -> dict[str, Scores]:
    """Return the class probabilities of all views of a photograph, each shape (C, *size)."""
    patch = segmenter.info.input_shape[:2]

    def predict(view: Image, *, mirrored: bool = True) -> Scores:
        logits = segmenter.logits(_mirror_to(view, patch) if mirrored else view)
        top, left = ((side - inner) // 2 for side, inner in zip(logits.shape[1:], view.shape, strict=False))
        return _judged(softmax(logits[:, top : top + view.shape[0], left : left + view.shape[1]]), size)

    at_scale = {scale: resample(image, _size_at(image, scale)) for scale in SCALES}
    result = {_name(scale): predict(view) for scale, view in at_scale.items()}
    result["1x, black border"] = predict(at_scale[1.0], mirrored=False)
    for condition, change in CONDITIONS.items():
        changed = change(at_scale[1.0])
        result[condition] = predict(changed)
        for method, table in zip(METHODS, exposure_tables(changed, EVERY_IMAGE), strict=True):
            result[f"{condition}: {method}"] = predict(changed if table is None else table[changed])
    return result


def _name(scale: float) -> str:
    return f"{scale:g}x"


def _size_at(image: Image, scale: float) -> tuple[int, int]:
    width = round(MODEL_WIDTH * scale)
    return round(width * image.shape[0] / image.shape[1]), width


def _mirror_to(image: Image, patch: tuple[int, ...]) -> Image:
    """Return an image that is mirrored at its borders until it fills a tile."""
    missing = [max(0, tile - side) for tile, side in zip(patch, image.shape, strict=False)]
    return np.pad(image, [*((count // 2, count - count // 2) for count in missing), (0, 0)], mode="symmetric")


def _judged(probabilities: Scores, size: tuple[int, int]) -> Scores:
    method = pillow.Resampling.BOX if probabilities.shape[2] > size[1] else pillow.Resampling.BILINEAR
    return np.stack([np.asarray(pillow.fromarray(channel).resize(size[::-1], method)) for channel in probabilities])


# Combinations


def _log(probabilities: Scores) -> Scores:
    return np.log(probabilities + np.float32(_LEAST))


def mean(weights: Mapping[str, float]) -> Combination:
    """Return the weighted mean of the probabilities."""
    return lambda views: _sum(np.float32(weight) * views[name] for name, weight in weights.items())


def logits(weights: Mapping[str, float]) -> Combination:
    """Return the weighted mean of the logits, except for a constant in each pixel."""
    return lambda views: _sum(np.float32(weight) * _log(views[name]) for name, weight in weights.items())


def _sum(terms: Iterable[Scores]) -> Scores:
    return reduce(np.add, terms)


def least(weights: Mapping[str, float], of_class: int) -> Combination:
    """Return the weighted mean of the probabilities, with the minimum of the views for one class."""

    def combine(views: Views) -> Scores:
        result = mean(weights)(views)
        result[of_class] = np.min([views[name][of_class] for name in weights], axis=0)
        return result

    return combine


def by_border(tiles: str, whole: str, *, inside: float, outside: float) -> Combination:
    """Return the mean of the logits, where the weight of `whole` changes from the border to the middle."""

    def combine(views: Views) -> Scores:
        rows, columns = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in views[whole].shape[1:])
        distance = np.minimum(rows[:, None], columns[None, :]).astype(np.float32)
        weight = outside + (inside - outside) * distance / distance.max()
        combined: Scores = (1 - weight) * _log(views[tiles]) + weight * _log(views[whole])
        return combined

    return combine


def regions(*names: str) -> Combination:
    """Return the probabilities of the first view, where coarser views exchange region classes for each other."""

    def combine(views: Views) -> Scores:
        result = views[names[0]].copy()
        share = softmax(_sum(_log(views[name])[REGIONS] for name in names) / np.float32(len(names)))
        result[REGIONS] = share * result[REGIONS].sum(axis=0)
        return result

    return combine


def view_combinations() -> dict[str, Combination]:
    """Return the combinations for an unknown scale, 2x as tiles with 1x as whole view, and for a known one."""
    result: dict[str, Combination] = {}
    for weight in (0.3, 0.5, 0.6, 0.7, 0.8):
        result[f"2x, 1x with {weight}: logits"] = logits({"2x": 1 - weight, "1x": weight})
    result |= {
        "2x, 1x with 0.7: mean": mean({"2x": 0.3, "1x": 0.7}),
        "2x, 1x with 0.7: minimum for landing": least({"2x": 0.3, "1x": 0.7}, LANDING_ID),
        "2x, 1x with 0.9 in the middle, 0 at the border": by_border("2x", "1x", inside=0.9, outside=0),
        "2x, 1x with 0 in the middle, 0.9 at the border": by_border("2x", "1x", inside=0, outside=0.9),
        "2x, 1.25x, 1x with 0.25, 0.25, 0.5: logits": logits({"2x": 0.25, "1.25x": 0.25, "1x": 0.5}),
        "2x, 1.25x, 1x with a third each: logits": logits({"2x": 1 / 3, "1.25x": 1 / 3, "1x": 1 / 3}),
    }
    for names in (("1x", "0.5x"), ("1x", "0.35x"), ("1x", "0.25x"), ("1x", "0.5x", "0.25x")):
        result[f"{', '.join(names)}: regions"] = regions(*names)
        result[f"{', '.join(names)}: all classes"] = logits(dict.fromkeys(names, 1 / len(names)))
    return result


# Exposure

METHODS = ("gamma", "stretch", "mixed")
EVERY_IMAGE = Exposure(methods=METHODS, range=(0, 0), target=0.44)
"""Correction of every image, whatever its brightness."""
CONDITIONS: dict[str, Callable[[Image], Image]] = {
    "as they are": lambda image: image,
    "darkened to 0.6": lambda image: (image * 0.6).astype(np.uint8),
    "darkened to 0.4": lambda image: (image * 0.4).astype(np.uint8),
    "brightened, gamma 0.6": lambda image: (255 * (image / 255) ** 0.6).astype(np.uint8),
}


def exposure_combinations() -> dict[str, Combination]:
    """Return combinations of the predictions for differently corrected copies."""
    result: dict[str, Combination] = {}
    for condition in CONDITIONS:
        names = {method: f"{condition}: {method}" for method in METHODS} | {"none": condition}
        for chosen in (("gamma", "stretch"), ("stretch", "mixed"), ("none", "gamma", "stretch")):
            weights = {names[method]: 1 / len(chosen) for method in chosen}
            result[f"{condition}: {' + '.join(chosen)}, logits"] = logits(weights)
            result[f"{condition}: {' + '.join(chosen)}, minimum for water"] = least(weights, WATER_ID)
    return result


def print_table(totals: Mapping[str, Confusion]) -> None:
    """Print quality by view or combination as a Markdown table."""
    names = ", ".join(entry.name for entry in DEFAULT_CLASSES.foreground)
    print(f"| view | mIoU | IoU of {names} | unsafe | recall | water predicted as landing | false water |")
    print("|---|---|---|---|---|---|---|")
    for name in sorted(totals, key=_condition):
        counts = totals[name]
        water = counts[WATER_ID]
        cells = [
            name,
            f"{mean_iou(counts):.3f}",
            " ".join(f"{value:.2f}".removeprefix("0") for value in iou(counts)[1:]),
            f"{unsafe_landing_rate(counts, DEFAULT_CLASSES):.2%}",
            f"{landing_recall(counts, DEFAULT_CLASSES):.1%}",
            f"{water[LANDING_ID] / water.sum():.2%}",
            f"{(counts[:, WATER_ID].sum() - water[WATER_ID]) / counts.sum():.2%}",
        ]
        print("| " + " | ".join(cells) + " |")


def _condition(name: str) -> int:
    """Return the position of the condition of the exposure in the table; views as they are come first."""
    return list(CONDITIONS).index(name.partition(":")[0]) + 1 if name.partition(":")[0] in CONDITIONS else 0


if __name__ == "__main__":
    main()
