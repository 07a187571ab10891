"""Convert a dataset to nnU-Net's raw format."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from droneseg.core.boxes import read_boxes
from droneseg.core.camera import check_scale, read_ground
from droneseg.core.class_files import MaskColours, describe_classes
from droneseg.core.classes import (
    BACKGROUND_ID,
    BACKGROUND_NAME,
    DATASET_NAME,
    IGNORE,
    TARGETS_FOLDER,
    Normalisation,
)
from droneseg.core.errors import ConfigurationError, DatasetError, DronesegError
from droneseg.core.files import atomic_directory, check_writable, write_text
from droneseg.core.images import Image, encode_png, to_rgb
from droneseg.core.masks import UnknownPolicy, encode_grey_ids
from droneseg.data.cases import Case, CasePlan, SourceDataset, find_held_out_copies, open_datasets, plan_cases
from droneseg.data.dataset import LoadedPair, Progress, load_pair, parallel_map
from droneseg.data.pixel_targets import MAX_WEIGHT, BoxWeights

DEFAULT_TEST_SHARE = 0.2
DEFAULT_BOX_WEIGHT = 2.0

_DESCRIPTION_NAME = "dataset.json"
# nnU-Net selects the normalisation by the names of the channels
_CHANNEL_NAMES = {
    Normalisation.RGB_TO_0_1: dict.fromkeys(("0", "1", "2"), Normalisation.RGB_TO_0_1.value),
    Normalisation.ZSCORE: {"0": "R", "1": "G", "2": "B"},
}
_COPIES_NOTE = (
    "Every fold trains on added photographs, so none of them may be for validation or test. Delete these copies, or "
    "leave out the added dataset. If `data augment` wrote it, convert it instead of DIR, with its own split.json, or "
    "write it again with --no-originals."
)


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion.

    Attributes:
        split_file: Split file to use. None holds out a random share of the photographs as the test part and leaves the
            folds to nnU-Net.
        test_share: Share of the random test part, 0 to 1.
        seed: Seed of the random test part.
        unknown: Handling of colours that belong to no class.
        normalisation: Normalisation that nnU-Net applies.
        added: Further datasets, whose photographs are trained on in every fold.
        gsd_m: Ground resolution of all images of the dataset, but not of the added ones, in metres per pixel. None
            uses the value recorded by the import, else the metadata of each image.
        ignore_background: Whether background pixels of all datasets get nnU-Net's ignore label. If False, only those
            of datasets imported with the class `ignore` do.
        boxes_file: JSON file of boxes around moving objects of the dataset, see `core.boxes.read_boxes`.
        box_weight: Factor of the weight of moving objects inside the boxes, above 0 and at most `MAX_WEIGHT`.
        colours: Meaning of the colours of all masks; None for the class table in each dataset's folder.
    """

    split_file: Path | None = None
    test_share: float = DEFAULT_TEST_SHARE
    seed: int = 0
    unknown: UnknownPolicy = "fail"
    normalisation: Normalisation = Normalisation.RGB_TO_0_1
    added: tuple[Path, ...] = ()
    gsd_m: float | None = None
    ignore_background: bool = False
    boxes_file: Path | None = None
    box_weight: float = DEFAULT_BOX_WEIGHT
    colours: MaskColours | None = None


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        folder: Folder of the raw dataset.
        train: Number of cases in imagesTr.
        test: Number of cases in imagesTs.
        dropped: Number of pairs that the split leaves out.
        generated: Number of generated cases among the training cases.
        folds: Number of folds; 0 if nnU-Net chooses them.
        copied: Number of image files copied unchanged.
        replaced_pixels: Number of pixels of unknown colour that became background.
        known_gsd: Number of cases whose ground resolution is known.
        ignored_pixels: Number of pixels that got the ignore label.
        fine_cases: Number of training cases with fine classes.
        notes: Information for the user, one line each.
    """

    folder: Path
    train: int
    test: int
    dropped: int
    generated: int
    folds: int
    copied: int
    replaced_pixels: int
    known_gsd: int
    ignored_pixels: int
    fine_cases: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Written:
    """Result of writing one case.

    Attributes:
        background_share: Share of the pixels that are labelled as background.
        digest: Digest of the pixels, if they must be compared with those of other datasets.
    """

    name: str
    copied: bool
    replaced_pixels: int
    ignored_pixels: int
    background_share: float
    gsd_m: float | None
    has_fine: bool
    conflicting: int
    digest: str | None


def convert_dataset(
    source: Path,
    raw: Path,
    options: ConversionOptions | None = None,
    *,
    force: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a dataset, and any added ones, to nnU-Net's raw dataset 101.

    Every image is decoded once. 8-bit RGB PNG files are copied; other images are converted to 8-bit RGB PNG.

    Args:
        source: Dataset folder, or a folder slightly above or below it.
        raw: nnU-Net's folder of raw datasets; the dataset's folder is created in it.
        options: Options; None for the defaults.
        force: Whether an existing dataset may be replaced.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback, called after each pair.

    Raises:
        ConfigurationError: If an option is not plausible or the file of boxes is not valid.
        DatasetError: If a pair has a problem, or an added photograph is also one for validation or test; the message
            lists all problems, and nothing is written.
        OutputExistsError: If the dataset exists and `force` is False.
        SplitError: If the split does not match the dataset.
    """
    options = options or ConversionOptions()
    _check_options(options)
    target = raw / DATASET_NAME
    datasets, problems, notes = open_datasets(source, options.added, options.colours)
    check_writable(target, marker=_DESCRIPTION_NAME, replace=force)
    boxes = BoxWeights(read_boxes(options.boxes_file), options.box_weight) if options.boxes_file else None
    if problems:
        # all pairs are decoded so that all problems are reported at once
        problems += _decode_all(datasets, options, max_pixels, progress)
        raise DatasetError(_headline(datasets, problems, notes, options.unknown), problems)
    plan, problems = plan_cases(datasets, options.split_file, test_share=options.test_share, seed=options.seed)
    with atomic_directory(target, marker=_DESCRIPTION_NAME, replace=force) as staging_dir:
        writer = _CaseWriter(staging_dir, datasets, plan, options, boxes, max_pixels)
        written, more = writer.write_all(progress)
        copies = find_held_out_copies(plan, {item.name: item.digest for item in written if item.digest})
        if copies:
            notes.append(_COPIES_NOTE)
        if problems := [*problems, *more, *copies]:
            raise DatasetError(_headline(datasets, problems, notes, options.unknown), problems)
        writer.write_description(written)
    return Conversion(
        folder=target,
        train=len(plan.train),
        test=len(plan.test),
        dropped=plan.dropped,
        generated=sum(case.original is not None for case in plan.train),
        folds=len(plan.folds),
        copied=sum(item.copied for item in written),
        replaced_pixels=sum(item.replaced_pixels for item in written),
        known_gsd=len(_known_gsd(plan, written)),
        ignored_pixels=sum(item.ignored_pixels for item in written),
        fine_cases=sum(item.has_fine for item in written),
        notes=(*notes, *writer.notes(written)),
    )


def _check_options(options: ConversionOptions) -> None:
    check_scale(options.gsd_m, None)
    if not 0 < options.box_weight <= MAX_WEIGHT:
        raise ConfigurationError(
            f"The weight of boxes is {options.box_weight:g}; it must be above 0 and at most {MAX_WEIGHT}, the largest "
            "weight that targets can store."
        )


def _decode_all(
    datasets: Sequence[SourceDataset], options: ConversionOptions, max_pixels: int, progress: Progress | None
) -> list[str]:
    """Return the problems of all pairs."""
    pairs = [pair for dataset in datasets for pair in dataset.listing.pairs]
    loaded = parallel_map(
        lambda pair: load_pair(pair, unknown=options.unknown, max_pixels=max_pixels)[1], pairs, progress
    )
    return [line for lines in loaded for line in lines]


def _headline(
    datasets: Sequence[SourceDataset], problems: Sequence[str], notes: Sequence[str], unknown: UnknownPolicy
) -> str:
    roots = list(dict.fromkeys(str(dataset.listing.root) for dataset in datasets))
    have = "has" if len(roots) == 1 else "together have"
    lines = [f"{', '.join(roots)} {have} {len(problems)} problem(s); nothing was written. Fix them and convert again."]
    lines += [f"  note: {note}" for note in notes]
    if unknown == "fail" and any("unknown colours" in line for line in problems):
        lines.append("  note: --unknown background converts unknown colours to background.")
    return "\n".join(lines)


class _CaseWriter:
    """Writes the cases of a plan in nnU-Net's raw format."""

    def __init__(
        self,
        folder: Path,
        datasets: Sequence[SourceDataset],
        plan: CasePlan,
        options: ConversionOptions,
        boxes: BoxWeights | None,
        max_pixels: int,
    ) -> None:
        self._folder, self._datasets, self._plan, self._options = folder, datasets, plan, options
        self._boxes, self._max_pixels = boxes, max_pixels
        self._classes = datasets[0].listing.classes
        self._fine_classes = datasets[0].sidecars.fine_classes
        # fine classes of another table have no meaning in this one
        self._sidecars = {
            id(dataset): dataset.sidecars
            if dataset.sidecars.fine_classes == self._fine_classes
            else replace(dataset.sidecars, fine_classes=())
            for dataset in datasets
        }
        # an added photograph may be a copy of one that is held out
        self._compared = plan.held_out.keys() | plan.added.keys() if plan.added else frozenset()
        self._has_targets = bool(self._fine_classes or boxes or any(d.sidecars.has_weights for d in datasets))

    def write_all(self, progress: Progress | None) -> tuple[list[_Written], list[str]]:
        """Write images, labels and targets of all cases.

        Returns:
            One result per written case, and all problems, one line each.
        """
        parts = [("Tr", self._plan.train), *((("Ts", self._plan.test),) if self._plan.test else ())]
        for part, _ in parts:
            (self._folder / f"images{part}").mkdir()
            (self._folder / f"labels{part}").mkdir()
        if self._has_targets:
            (self._folder / TARGETS_FOLDER).mkdir()
        cases = [(case, part) for part, cases in parts for case in cases]
        results = list(parallel_map(lambda item: self._write(*item), cases, progress))
        return [written for written, _ in results if written], [line for _, lines in results for line in lines]

    def _write(self, case: Case, part: str) -> tuple[_Written | None, list[str]]:
        loaded, problems = load_pair(case.pair, unknown=self._options.unknown, max_pixels=self._max_pixels)
        if loaded is None:
            return None, problems
        try:
            return self._write_loaded(case, part, loaded), []
        except DronesegError as error:
            return None, [str(error)]

    def _write_loaded(self, case: Case, part: str, loaded: LoadedPair) -> _Written:
        image = loaded.data if loaded.plain else encode_png(to_rgb(loaded.opened))
        (self._folder / f"images{part}" / f"{case.name}_0000.png").write_bytes(image)
        label = loaded.mask.copy()
        if self._ignores_background(case.dataset):
            label[label == BACKGROUND_ID] = self._classes.ignore_label
        (self._folder / f"labels{part}" / f"{case.name}.png").write_bytes(encode_grey_ids(label))
        has_fine, conflicting = self._write_targets(case, loaded) if self._has_targets and part == "Tr" else (False, 0)
        return _Written(
            case.name,
            loaded.plain,
            sum(item.pixels for item in loaded.replaced),
            int((label == self._classes.ignore_label).sum()),
            float((label == BACKGROUND_ID).mean()),
            self._gsd_m(case, loaded.data),
            has_fine,
            conflicting,
            _digest(to_rgb(loaded.opened)) if case.name in self._compared else None,
        )

    def _ignores_background(self, dataset: SourceDataset) -> bool:
        return self._options.ignore_background or dataset.info.ignore_background

    def _write_targets(self, case: Case, loaded: LoadedPair) -> tuple[bool, int]:
        """Write the targets; return whether there is a fine mask, and its number of conflicting pixels."""
        boxes = None if case.dataset.added else self._boxes
        targets = self._sidecars[id(case.dataset)].targets(case.pair.stem, loaded.mask, boxes)
        (self._folder / TARGETS_FOLDER / f"{case.name}.png").write_bytes(targets.png)
        return targets.has_fine, targets.conflicting

    def _gsd_m(self, case: Case, data: bytes) -> float | None:
        given = case.dataset.info.gsd_m if case.dataset.added else self._options.gsd_m or case.dataset.info.gsd_m
        return read_ground(data, gsd_m=given).gsd_m

    def notes(self, written: Sequence[_Written]) -> list[str]:
        """Return notes about fine classes and boxes."""
        notes = []
        for dataset in self._datasets[1:]:
            if dataset.sidecars.fine_classes not in ((), self._fine_classes):
                notes.append(
                    f"{dataset.listing.root}: its table of fine classes differs, so its fine masks are not used"
                )
        if missing := len(self._plan.train) - sum(item.has_fine for item in written) if self._fine_classes else 0:
            notes.append(f"{missing} training cases have no fine classes")
        if conflicting := sum(item.conflicting for item in written):
            notes.append(
                f"{conflicting:,} pixels have a fine class that contradicts the class in the mask; it is not used"
            )
        stems = {pair.stem for pair in self._datasets[0].listing.pairs}
        if self._boxes and (unknown := sorted(self._boxes.boxes.keys() - stems)):
            notes.append(f"{len(unknown)} images with boxes are not in the data, such as {unknown[0]}")
        return notes

    def write_description(self, written: Sequence[_Written]) -> None:
        """Write dataset.json with the origin of the data, and the folds, if any."""
        # nnU-Net requires this name; the class table below keeps the name of the class
        labels: dict[str, int] = {BACKGROUND_NAME: BACKGROUND_ID}
        labels |= {entry.name: entry.id for entry in self._classes.foreground}
        ignores = any(
            self._ignores_background(dataset) or dataset.listing.encoding.colours.ignored for dataset in self._datasets
        )
        if ignores or any(item.ignored_pixels for item in written):
            labels[IGNORE] = self._classes.ignore_label
        description = {
            "channel_names": _CHANNEL_NAMES[self._options.normalisation],
            "labels": labels,
            "numTraining": len(self._plan.train),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
            "name": DATASET_NAME,
            "droneseg": self._origin(written),
        }
        write_text(self._folder / _DESCRIPTION_NAME, json.dumps(description, indent=2) + "\n")
        if self._plan.folds:
            write_text(self._folder / "splits_final.json", json.dumps(self._plan.folds, indent=1))

    def _origin(self, written: Sequence[_Written]) -> dict[str, Any]:
        """Return the block of dataset.json about the origin of the data; empty entries are left out."""
        added = [dataset.name for dataset in self._datasets[1:]]
        optional = {
            "added": added,
            "gsd_m": _known_gsd(self._plan, written),
            "generated": {case.name: case.original for case in self._plan.train if case.original},
            "fine_classes": [{"name": entry.name, "class": entry.class_name} for entry in self._fine_classes],
        }
        return {
            "version": version("droneseg"),
            "classes": describe_classes(self._classes),
            "background_share": round(sum(item.background_share for item in written) / len(written), 6),
            "source": self._datasets[0].listing.root.name,
            "normalisation": self._options.normalisation.value,
            "unknown_colours": self._options.unknown,
            "split": {name: len(part) for name, part in self._plan.split.parts.items()},
            **{name: value for name, value in optional.items() if value},
        }


def _digest(image: Image) -> str:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _known_gsd(plan: CasePlan, written: Sequence[_Written]) -> dict[str, float]:
    """Return the known ground resolutions by case name; generated images have that of their original."""
    known = {item.name: item.gsd_m for item in written if item.gsd_m}
    originals = {case.name: case.original for case in plan.train if case.original}
    inherited = {name: known[original] for name, original in originals.items() if original in known}
    return dict(sorted((inherited | known).items()))
