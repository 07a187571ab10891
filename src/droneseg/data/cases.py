"""Training and test cases of a conversion: which pairs become cases, and which folds contain them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from droneseg.core.class_files import MaskColours
from droneseg.core.errors import SplitError
from droneseg.data.dataset import DatasetInfo, Pair, PairListing, list_pairs, read_info
from droneseg.data.pixel_targets import Sidecars, find_sidecars
from droneseg.data.splits import Fold, Split, random_folds, random_split, read_split

_CASE_PREFIX = "drone_"
_NNUNET_FOLDS = 5  # nnU-Net's number of random folds


def case_name(stem: str) -> str:
    """Return nnU-Net's case name for a file stem."""
    return f"{_CASE_PREFIX}{stem}"


@dataclass(frozen=True)
class SourceDataset:
    """A dataset to convert.

    Attributes:
        name: Name of the folder that the user gave.
        listing: Pairs of the dataset.
        info: Description that the import wrote.
        sidecars: Fine masks and weights.
        added: Whether it is added to another dataset, so that every fold trains on all its photographs.
        prefix: Prefix of its stems in case names.
    """

    name: str
    listing: PairListing
    info: DatasetInfo
    sidecars: Sidecars
    added: bool
    prefix: str = ""

    def case_name(self, stem: str) -> str:
        """Return the case name of a stem of this dataset."""
        return case_name(f"{self.prefix}{stem}")


@dataclass(frozen=True)
class Case:
    """A pair that becomes a case.

    Attributes:
        name: Case name.
        pair: Image and mask.
        dataset: Dataset of the pair.
        original: Case name of the photograph that the pair was generated from; None for a photograph.
    """

    name: str
    pair: Pair
    dataset: SourceDataset
    original: str | None = None


@dataclass(frozen=True)
class CasePlan:
    """Cases by part, and the folds.

    Attributes:
        train: Cases of imagesTr.
        test: Cases of imagesTs.
        dropped: Number of pairs that are not used.
        folds: Case names of `train` and `val` of each fold; empty if nnU-Net splits the cases itself.
        split: Split of the photographs of the first dataset.
    """

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    dropped: int
    folds: tuple[dict[str, list[str]], ...]
    split: Split

    @property
    def held_out(self) -> dict[str, tuple[Case, str]]:
        """Photographs for validation in any fold, or for test, each with this purpose, by case name."""
        validated = {name for fold in self.folds for name in fold["val"]}
        found = {case.name: (case, "validation") for case in self.train if case.name in validated}
        return found | {case.name: (case, "test") for case in self.test}

    @property
    def added(self) -> dict[str, Case]:
        """Photographs of added datasets, which every fold trains on, by case name."""
        return {case.name: case for case in self.train if case.dataset.added and case.original is None}


def find_held_out_copies(plan: CasePlan, digests: Mapping[str, str]) -> list[str]:
    """Return a problem for each added photograph that is also held out for validation or test.

    Args:
        plan: Cases by part, and the folds.
        digests: Digest of the pixels by case name, for `plan.held_out` and `plan.added`.
    """
    same = defaultdict[str, list[str]](list)
    for name in plan.held_out:
        if name in digests:
            same[digests[name]].append(name)
    return [
        f"{added.pair.image}: is the same photograph as {plan.held_out[name][0].pair.image}, which is for "
        f"{plan.held_out[name][1]}"
        for added in plan.added.values()
        for name in same.get(digests.get(added.name, ""), [])
    ]


def open_datasets(
    source: Path, added: Sequence[Path], colours: MaskColours | None = None
) -> tuple[tuple[SourceDataset, ...], list[str], list[str]]:
    """List the pairs of a dataset and of added datasets.

    Stems of an added dataset get the name of its folder as a prefix if one of them is in use already.

    Args:
        source: The dataset.
        added: Datasets that are added to it.
        colours: Meaning of the colours of all masks; None for the class table in each dataset's folder.

    Returns:
        The datasets, problems and notes, one line each.

    Raises:
        DatasetError: If a dataset cannot be found or its description cannot be read.
    """
    datasets, problems, notes = list[SourceDataset](), list[str](), list[str]()
    used: set[str] = set()
    for folder in (source, *added):
        listing = list_pairs(folder, colours)
        sidecars, sidecar_problems = find_sidecars(listing.root, listing.classes)
        stems = {pair.stem for pair in listing.pairs}
        name = folder.resolve().name
        prefix = f"{name}_" if used & stems else ""
        names = {f"{prefix}{stem}" for stem in stems}
        where = f"{listing.root}: " if added else ""
        if any(listing.root.samefile(earlier.listing.root) for earlier in datasets[1:]):
            problems.append(f"{where}is added more than once; add it once")
            continue
        problems += [f"{where}{line}" for line in (*listing.problems, *sidecar_problems)]
        if datasets and listing.classes != datasets[0].listing.classes:
            problems.append(
                f"{where}has other classes than {datasets[0].name}; datasets to combine need the same table"
            )
        if used & names:
            problems.append(f"{where}{len(used & names)} stems are in use already; rename the folder or its files")
        used |= names
        notes += listing.notes
        datasets.append(SourceDataset(name, listing, read_info(listing.root), sidecars, bool(datasets), prefix))
    return tuple(datasets), problems, notes


def plan_cases(
    datasets: Sequence[SourceDataset], split_file: Path | None, *, test_share: float, seed: int
) -> tuple[CasePlan, list[str]]:
    """Assign every pair to a part and to folds.

    The split applies to the photographs of the first dataset. Photographs of added datasets are trained on in every
    fold. A generated image is trained on where its original is, and is never used for validation or test.

    Args:
        datasets: The dataset and the added ones.
        split_file: Split file of the first dataset. None holds out a random share of its photographs for test.
        test_share: Share of the random test part, 0 to 1.
        seed: Seed of the random test part.

    Returns:
        The plan, and problems, one line each.

    Raises:
        SplitError: If the split does not match the first dataset.
    """
    main = datasets[0]
    split, left_out = _choose_split(main.listing, split_file, test_share, seed)
    cases, problems = _list_cases(datasets)
    parts = {main.case_name(stem): part for part, stems in split.parts.items() for stem in stems}
    train, test = [], []
    for case in cases:
        # photographs of added datasets are in no part of the split
        part = parts.get(case.original or case.name, "train")
        if case.original and (part != "train" or (not case.dataset.added and case.pair.stem in left_out)):
            part = "dropped"
        if part in ("train", "val"):
            train.append(case)
        elif part == "test":
            test.append(case)
    dropped = sum(len(dataset.listing.pairs) for dataset in datasets) - len(train) - len(test)
    return CasePlan(tuple(train), tuple(test), dropped, _plan_folds(main, split, train, seed), split), problems


def _choose_split(
    listing: PairListing, split_file: Path | None, test_share: float, seed: int
) -> tuple[Split, frozenset[str]]:
    """Return the split of the photographs, and the generated stems that the split file drops."""
    photographs = [pair.stem for pair in listing.photographs]
    if split_file is None:
        return random_split(photographs, val_share=0, test_share=test_share, seed=seed), frozenset()
    generated = listing.generated.keys() & {pair.stem for pair in listing.pairs}
    split = read_split(split_file, photographs, optional=generated)
    if held_out := sorted(generated & {*split.val, *split.test}):
        raise SplitError(
            f"{split_file} has {len(held_out)} generated images in val or test, such as {held_out[0]}. Generated "
            "images are for training only: list them under train or dropped, or leave them out."
        )
    left_out = frozenset(generated & set(split.dropped))
    folds = tuple(
        Fold(*(_without(part, generated) for part in (fold.train, fold.val, fold.dropped))) for fold in split.folds
    )
    parts = {name: _without(part, generated) for name, part in split.parts.items()}
    return Split(parts["train"], parts["val"], parts["test"], parts["dropped"], folds), left_out


def _without(stems: Sequence[str], removed: "set[str]") -> tuple[str, ...]:
    return tuple(stem for stem in stems if stem not in removed)


def _list_cases(datasets: Sequence[SourceDataset]) -> tuple[list[Case], list[str]]:
    """Return all pairs as cases, and a problem for each generated image without original."""
    cases, problems = [], []
    photographs = [{pair.stem for pair in dataset.listing.photographs} for dataset in datasets]
    for dataset, own in zip(datasets, photographs, strict=True):
        for pair in dataset.listing.pairs:
            case = Case(dataset.case_name(pair.stem), pair, dataset)
            original = dataset.listing.generated.get(pair.stem)
            if original in own:
                case = replace(case, original=dataset.case_name(original))
            elif original in photographs[0]:
                case = replace(case, original=datasets[0].case_name(original))
            elif original is not None:
                problems.append(f"{pair.stem}: was generated from {original}, which is in no dataset")
            cases.append(case)
    return cases, problems


def _plan_folds(
    main: SourceDataset, split: Split, train: Sequence[Case], seed: int
) -> tuple[dict[str, list[str]], ...]:
    """Return the folds; the split's own training and validation parts are the first one."""
    folds = split.folds
    if split.val:
        folds = (Fold(split.train, split.val), *folds)
    own = {main.case_name(stem) for stem in (*split.train, *split.val)}
    extra = [case for case in train if case.name not in own]
    if not folds and extra:
        # nnU-Net would validate on generated and added cases, too
        folds = random_folds(split.train, min(_NNUNET_FOLDS, len(split.train)), seed=seed)
    planned = []
    for fold in folds:
        trained = [main.case_name(stem) for stem in fold.train]
        allowed = {*trained, *(case.name for case in extra if case.original is None)}
        trained += [case.name for case in extra if (case.original or case.name) in allowed]
        planned.append({"train": trained, "val": [main.case_name(stem) for stem in fold.val]})
    return tuple(planned)
