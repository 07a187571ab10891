"""Photographs a model is measured on: of a dataset, the validation part of its own data, or generated scenes."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from droneseg.core.errors import DatasetError
from droneseg.core.images import Image, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.data.dataset import Pair, list_pairs
from droneseg.data.splits import read_split
from droneseg.data.synthetic import generate_scene
from droneseg.nnunet.paths import Layout

_GENERATED_SEED = 1_000_000
_GENERATED_SIZE = (480, 368)


@dataclass(frozen=True)
class Samples:
    """Photographs an exported network is measured on.

    Attributes:
        source: What they are, in words.
        images: RGB, shape (H, W, 3), dtype uint8 each.
        truths: True masks, shape (H, W), dtype uint8 each.
        calibration: Other photographs, to calibrate INT8 on.
    """

    source: str
    images: tuple[Image, ...]
    truths: tuple[Mask, ...]
    calibration: tuple[Image, ...]


def take_samples(layout: Layout, fold: int, count: int) -> Samples:
    """Take photographs of the validation part of a fold from the raw dataset, or generate scenes if there is none.

    Args:
        layout: nnU-Net's folders.
        fold: Whose validation part.
        count: How many, at most.
    """
    folds = _read_folds(layout)
    if not folds:
        return _generate(count)
    chosen = folds[fold if fold < len(folds) else 0]
    validation, training = _spread(chosen["val"], count), _spread(chosen["train"], count)
    raw = layout.raw_dataset
    return Samples(
        f"validation part of fold {fold}",
        tuple(read_image(raw / "imagesTr" / f"{case}_0000.png") for case in validation),
        tuple(read_mask(raw / "labelsTr" / f"{case}.png", "ids") for case in validation),
        tuple(read_image(raw / "imagesTr" / f"{case}_0000.png") for case in training),
    )


def validation_images(layout: Layout, fold: int, most: int) -> list[Path]:
    """Return the photographs of the validation part of a fold, at most so many; none without the raw dataset."""
    folds = _read_folds(layout)
    if not folds:
        return []
    cases = _spread(folds[fold if fold < len(folds) else 0]["val"], most)
    return [layout.raw_dataset / "imagesTr" / f"{case}_0000.png" for case in cases]


def choose_pairs(data: Path, split_file: Path | None, part: str) -> list[Pair]:
    """Return the pairs of a dataset, or those of one part of a split.

    Args:
        data: Dataset folder.
        split_file: Take only one part of this split.
        part: Which one.

    Raises:
        DatasetError: If the data has problems, or no such pair.
        SplitError: If the split does not fit it.
    """
    listing = list_pairs(data)
    if listing.problems:
        raise DatasetError(f"{listing.root} has {len(listing.problems)} problem(s):", listing.problems)
    pairs = list(listing.pairs)
    if split_file:
        chosen = set(getattr(read_split(split_file, [pair.stem for pair in pairs]), part))
        pairs = [pair for pair in pairs if pair.stem in chosen]
    if not pairs:
        raise DatasetError(f"No photograph of part {part!r} in {listing.root}.")
    return pairs


def _read_folds(layout: Layout) -> list[dict[str, list[str]]]:
    """Return nnU-Net's folds, if the raw dataset they name is there."""
    if not (layout.raw_dataset / "labelsTr").is_dir():
        return []
    for folder in (layout.preprocessed_dataset, layout.raw_dataset):
        file = folder / "splits_final.json"
        if file.is_file():
            folds: list[dict[str, list[str]]] = json.loads(file.read_text(encoding="utf-8"))
            return folds
    return []


def _generate(count: int) -> Samples:
    made = [generate_scene(_GENERATED_SEED + index, *_GENERATED_SIZE) for index in range(2 * count)]
    return Samples(
        "generated scenes",
        tuple(image for image, _ in made[:count]),
        tuple(mask for _, mask in made[:count]),
        tuple(image for image, _ in made[count:]),
    )


def _spread(cases: list[str], count: int) -> list[str]:
    """Return at most `count` cases, evenly spread over all."""
    step = max(1, len(cases) // count)
    return list(islice(sorted(cases)[::step], count))
