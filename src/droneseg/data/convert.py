"""Convert a dataset to nnU-Net raw format."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

from droneseg.core.classes import CLASSES
from droneseg.core.errors import DatasetError
from droneseg.core.files import atomic_directory, check_writable, write_text
from droneseg.core.images import encode_png, to_rgb
from droneseg.core.masks import UnknownPolicy, encode_grey_ids
from droneseg.data.dataset import LoadedPair, Pair, PairListing, Progress, list_pairs, load_pair, parallel_map
from droneseg.data.splits import Split, random_split, read_split

DATASET = "Dataset101_DroneSeg"
_CASE_PREFIX = "drone_"
_DESCRIPTION_NAME = "dataset.json"


class Normalisation(StrEnum):
    """How nnU-Net shall scale the colours; it goes by the channels' names.

    `rgb_to_0_1` divides by 255; `zscore` makes each channel of each photograph mean 0 and deviation 1.
    """

    RGB_TO_0_1 = "rgb_to_0_1"
    ZSCORE = "zscore"

    def channel_names(self) -> dict[str, str]:
        """Return the channel names that make nnU-Net normalise so."""
        if self is Normalisation.RGB_TO_0_1:
            return dict.fromkeys(("0", "1", "2"), self.value)
        return {"0": "R", "1": "G", "2": "B"}


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        folder: The raw dataset.
        train: Number of cases in imagesTr.
        test: Number of cases in imagesTs.
        dropped: Number of pairs left out by the split.
        copied: Photographs whose file was copied as it is.
        replaced_pixels: Pixels of unknown colour that became background.
        notes: What a person may want to know.
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
    copied: bool
    replaced_pixels: int


def case_name(stem: str) -> str:
    """Return nnU-Net's name of the case made from `stem`."""
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
    """Convert a dataset folder into nnU-Net's raw dataset 101.

    Every image is decoded once. An 8-bit RGB PNG is copied, anything else becomes one.

    Args:
        source: Dataset folder, or a little above or below it.
        raw: nnU-Net's folder of raw datasets; the dataset becomes a folder in it.
        split_file: Split to follow; without it, a random share of the pairs is set apart as the test part and nnU-Net
            makes its own folds of the rest.
        test_share: That share, 0 to 1.
        seed: Of that choice.
        unknown: What to do with colours of no class.
        normalisation: How nnU-Net shall scale the colours.
        force: Whether a dataset that is already there may be replaced.
        max_pixels: Largest photograph accepted.
        progress: Called with (done, total) after each pair.

    Returns:
        What was written.

    Raises:
        DatasetError: If anything is wrong with any pair; the message lists every problem, nothing is written.
        OutputExistsError: If the dataset exists and `force` is false.
        SplitError: If the split does not fit.
    """
    target = raw / DATASET
    listing = list_pairs(source)
    check_writable(target, marker=_DESCRIPTION_NAME, replace=force)
    split = _choose_split(listing.pairs, split_file, test_share, seed) if not listing.problems else Split()
    parts = dict.fromkeys(split.test, "Ts") | dict.fromkeys(split.dropped, "")
    with atomic_directory(target, marker=_DESCRIPTION_NAME, replace=force) as aside:
        for name in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if split.test else ())):
            (aside / name).mkdir()

        def write(pair: Pair) -> tuple[_Written | None, list[str]]:
            part = parts.get(pair.stem, "Tr")
            if not part:
                return None, []
            loaded, problems = load_pair(pair, unknown=unknown, max_pixels=max_pixels)
            # with a problem in the file names, the rest is still looked at so that all problems come at once
            if loaded is None or listing.problems:
                return None, problems
            return _write_case(aside, part, loaded), problems

        results = list(parallel_map(write, list(listing.pairs), progress))
        problems = [*listing.problems, *(line for _, lines in results for line in lines)]
        if problems:
            raise DatasetError(_headline(listing, problems, unknown), problems)
        _write_description(aside, listing.root, split, normalisation, unknown)
    written = [result for result, _ in results if result]
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
    lines = [f"{listing.root} has {len(problems)} problem(s); nothing was written."]
    lines += [f"  note: {note}" for note in listing.notes]
    if unknown == "fail" and any("unknown colours" in line for line in problems):
        lines.append("  note: --unknown background makes unknown colours background.")
    return "\n".join(lines)


def _choose_split(pairs: tuple[Pair, ...], split_file: Path | None, test_share: float, seed: int) -> Split:
    stems = [pair.stem for pair in pairs]
    if split_file:
        return read_split(split_file, stems)
    return random_split(stems, val_share=0, test_share=test_share, seed=seed)


def _write_case(folder: Path, part: str, loaded: LoadedPair) -> _Written:
    case = case_name(loaded.pair.stem)
    image = loaded.data if loaded.plain else encode_png(to_rgb(loaded.opened))
    (folder / f"images{part}" / f"{case}_0000.png").write_bytes(image)
    (folder / f"labels{part}" / f"{case}.png").write_bytes(encode_grey_ids(loaded.mask))
    return _Written(loaded.plain, sum(item.pixels for item in loaded.replaced))


def _write_description(
    folder: Path, root: Path, split: Split, normalisation: Normalisation, unknown: UnknownPolicy
) -> None:
    """Write dataset.json, which records how the data was made, and fold 0 if the split names a validation part."""
    description = {
        "channel_names": normalisation.channel_names(),
        "labels": {entry.name: entry.id for entry in CLASSES},
        "numTraining": len(split.train) + len(split.val),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": DATASET,
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
        cases: Callable[[tuple[str, ...]], list[str]] = lambda stems: [case_name(stem) for stem in stems]  # noqa: E731
        write_text(
            folder / "splits_final.json", json.dumps([{"train": cases(split.train), "val": cases(split.val)}], indent=1)
        )
