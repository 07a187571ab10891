"""Convert a dataset to nnU-Net's raw format."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from droneseg.core.classes import CLASSES, DATASET_NAME, Normalisation
from droneseg.core.errors import DatasetError
from droneseg.core.files import atomic_directory, check_writable, write_text
from droneseg.core.images import encode_png, to_rgb
from droneseg.core.masks import UnknownPolicy, encode_grey_ids
from droneseg.data.dataset import LoadedPair, Pair, PairListing, Progress, list_pairs, load_pair, parallel_map
from droneseg.data.splits import Split, random_split, read_split

_CASE_PREFIX = "drone_"
_DESCRIPTION_NAME = "dataset.json"
# nnU-Net selects the normalisation by the names of the channels
_CHANNEL_NAMES = {
    Normalisation.RGB_TO_0_1: dict.fromkeys(("0", "1", "2"), Normalisation.RGB_TO_0_1.value),
    Normalisation.ZSCORE: {"0": "R", "1": "G", "2": "B"},
}


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        folder: Folder of the raw dataset.
        train: Number of cases in imagesTr.
        test: Number of cases in imagesTs.
        dropped: Number of pairs that the split leaves out.
        copied: Number of image files copied unchanged.
        replaced_pixels: Number of pixels of unknown colour that became background.
        notes: Information for the user, one line each.
    """

    folder: Path
    train: int
    test: int
    dropped: int
    copied: int
    replaced_pixels: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Written:
    """Result of writing one case."""

    copied: bool
    replaced_pixels: int


def case_name(stem: str) -> str:
    """Return nnU-Net's case name for a file stem."""
    return f"{_CASE_PREFIX}{stem}"


def convert_dataset(
    source: Path,
    raw: Path,
    *,
    split_file: Path | None = None,
    test_share: float = 0.2,
    seed: int = 0,
    unknown: UnknownPolicy = "fail",
    normalisation: Normalisation = Normalisation.RGB_TO_0_1,
    force: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a dataset to nnU-Net's raw dataset 101.

    Every image is decoded once. 8-bit RGB PNG files are copied; other images are converted to 8-bit RGB PNG.

    Args:
        source: Dataset folder, or a folder slightly above or below it.
        raw: nnU-Net's folder of raw datasets; the dataset's folder is created in it.
        split_file: Split file to use. None holds out a random share of the pairs as the test part and leaves the folds
            to nnU-Net.
        test_share: Share of the random test part, 0 to 1.
        seed: Seed of the random test part.
        unknown: Handling of colours that belong to no class.
        normalisation: Normalisation that nnU-Net applies.
        force: Whether an existing dataset may be replaced.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback, called after each pair.

    Raises:
        DatasetError: If a pair has a problem; the message lists all problems, and nothing is written.
        OutputExistsError: If the dataset exists and `force` is False.
        SplitError: If the split does not match the dataset.
    """
    target = raw / DATASET_NAME
    listing = list_pairs(source)
    check_writable(target, marker=_DESCRIPTION_NAME, replace=force)
    split = _choose_split(listing.pairs, split_file, test_share, seed) if not listing.problems else Split()
    with atomic_directory(target, marker=_DESCRIPTION_NAME, replace=force) as staging_dir:
        written, problems = _write_cases(
            staging_dir, listing, split, unknown=unknown, max_pixels=max_pixels, progress=progress
        )
        if problems:
            raise DatasetError(_headline(listing, problems, unknown), problems)
        _write_description(staging_dir, listing.root, split, normalisation, unknown)
    return Conversion(
        folder=target,
        train=len(split.train) + len(split.val),
        test=len(split.test),
        dropped=len(split.dropped),
        copied=sum(item.copied for item in written),
        replaced_pixels=sum(item.replaced_pixels for item in written),
        notes=listing.notes,
    )


def _headline(listing: PairListing, problems: Sequence[str], unknown: UnknownPolicy) -> str:
    lines = [f"{listing.root} has {len(problems)} problem(s); nothing was written. Fix them and convert again."]
    lines += [f"  note: {note}" for note in listing.notes]
    if unknown == "fail" and any("unknown colours" in line for line in problems):
        lines.append("  note: --unknown background converts unknown colours to background.")
    return "\n".join(lines)


def _choose_split(pairs: tuple[Pair, ...], split_file: Path | None, test_share: float, seed: int) -> Split:
    stems = [pair.stem for pair in pairs]
    if split_file:
        return read_split(split_file, stems)
    return random_split(stems, val_share=0, test_share=test_share, seed=seed)


def _write_cases(
    folder: Path,
    listing: PairListing,
    split: Split,
    *,
    unknown: UnknownPolicy,
    max_pixels: int,
    progress: Progress | None,
) -> tuple[list[_Written], list[str]]:
    """Write images and labels of all pairs that the split does not drop.

    Returns:
        One result per written case, and all problems, including those with file names.
    """
    for name in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if split.test else ())):
        (folder / name).mkdir()
    parts = dict.fromkeys(split.test, "Ts") | dict.fromkeys(split.dropped, "")

    def write(pair: Pair) -> tuple[_Written | None, list[str]]:
        part = parts.get(pair.stem, "Tr")
        if not part:
            return None, []
        loaded, problems = load_pair(pair, unknown=unknown, max_pixels=max_pixels)
        # after a problem with file names, decoding continues so that all problems are reported at once
        if loaded is None or listing.problems:
            return None, problems
        return _write_case(folder, part, loaded), problems

    results = list(parallel_map(write, list(listing.pairs), progress))
    problems = [*listing.problems, *(line for _, lines in results for line in lines)]
    return [written for written, _ in results if written], problems


def _write_case(folder: Path, part: str, loaded: LoadedPair) -> _Written:
    case = case_name(loaded.pair.stem)
    image = loaded.data if loaded.plain else encode_png(to_rgb(loaded.opened))
    (folder / f"images{part}" / f"{case}_0000.png").write_bytes(image)
    (folder / f"labels{part}" / f"{case}.png").write_bytes(encode_grey_ids(loaded.mask))
    return _Written(loaded.plain, sum(item.pixels for item in loaded.replaced))


def _write_description(
    folder: Path, root: Path, split: Split, normalisation: Normalisation, unknown: UnknownPolicy
) -> None:
    """Write dataset.json with the origin of the data, and the split of fold 0 if there is a validation part."""
    description = {
        "channel_names": _CHANNEL_NAMES[normalisation],
        "labels": {entry.name: entry.id for entry in CLASSES},
        "numTraining": len(split.train) + len(split.val),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": DATASET_NAME,
        "droneseg": {
            "version": version("droneseg"),
            "source": root.name,
            "normalisation": normalisation.value,
            "unknown_colours": unknown,
            "split": {name: len(part) for name, part in asdict(split).items()},
        },
    }
    write_text(folder / _DESCRIPTION_NAME, json.dumps(description, indent=2) + "\n")
    if split.val:
        parts = {"train": split.train, "val": split.val}
        fold = {name: [case_name(stem) for stem in part] for name, part in parts.items()}
        write_text(folder / "splits_final.json", json.dumps([fold], indent=1))
