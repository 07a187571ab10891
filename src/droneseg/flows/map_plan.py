"""Plan of probability maps: which photographs are predicted, and by the model of which fold."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from droneseg.core.errors import ConfigurationError, DatasetError
from droneseg.core.image_files import RGB_ORDER, ChannelOrder
from droneseg.data.dataset import Pair, find_dataset
from droneseg.data.splits import read_split
from droneseg.flows.export import choose_pairs, require_same_classes
from droneseg.flows.probabilities import FoldModel, MapTask, ProbabilityIndex
from droneseg.inference.batch import find_inputs
from droneseg.model.bundle import class_entries


@dataclass(frozen=True)
class MapPlan:
    """Photographs to predict, and those that the folds leave out.

    Attributes:
        tasks: Photographs to predict.
        folds: Numbers of the folds, from 0; empty for a single model.
        first_nnunet_fold: nnU-Net's number of fold 0. It is 1 if the split has a validation part, which is nnU-Net's
            fold 0.
        dropped: Photographs that each fold drops, by fold.
        never_validated: Photographs that are in no validation part of the folds.
    """

    tasks: list[MapTask]
    folds: tuple[int, ...] = ()
    first_nnunet_fold: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    never_validated: tuple[str, ...] = ()


def plan_maps(
    source: Path,
    split_file: Path | None = None,
    *,
    part: str | None = None,
    folds: Sequence[int] = (),
    channel_order: ChannelOrder = RGB_ORDER,
) -> MapPlan:
    """Return the photographs to predict: those of folds, of a part of a split, or all.

    Args:
        source: Dataset, or, without a split file, folder of photographs.
        split_file: Split file of the dataset; its folds are used unless `part` is given.
        part: Name of a part of the split, predicted with a single model.
        folds: Numbers of the folds to predict, from 0; empty for all.
        channel_order: Colours of the channels of photographs with one file per channel; see `find_inputs`.

    Raises:
        ConfigurationError: If the split has no folds, or not those that were chosen.
        DatasetError: If the dataset has problems, the part has no photograph, or a photograph is in the validation
            part of several folds.
        DronesegError: If a folder contains no photographs.
        SplitError: If the split does not match the dataset.
    """
    if split_file is None and not _is_dataset(source):
        return MapPlan([MapTask(image) for image in find_inputs([str(source)], channel_order=channel_order)])
    if split_file is None or part:
        pairs = choose_pairs(source, split_file, part or "")
        return MapPlan([MapTask(pair.files, pair) for pair in pairs])
    pairs = choose_pairs(source, None, "")
    split = read_split(split_file, [pair.stem for pair in pairs])
    numbers = tuple(folds or range(len(split.folds)))
    if not split.folds:
        raise ConfigurationError(f"{split_file} has no folds; create them with `droneseg data split --folds 3`")
    if not set(numbers) <= set(range(len(split.folds))):
        raise ConfigurationError(f"{split_file} has folds 0 to {len(split.folds) - 1}")
    chosen = [split.folds[number] for number in numbers]
    validated = {stem for fold in chosen for stem in fold.val}
    listed = {stem for fold in chosen for stem in (*fold.train, *fold.val, *fold.dropped)}
    return MapPlan(
        fold_tasks(pairs, {number: fold.val for number, fold in zip(numbers, chosen, strict=True)}),
        numbers,
        1 if split.val else 0,
        {str(number): list(fold.dropped) for number, fold in zip(numbers, chosen, strict=True)},
        tuple(sorted(listed - validated)),
    )


def _is_dataset(source: Path) -> bool:
    try:
        find_dataset(source)
    except DatasetError:
        return False
    return True


def fold_tasks(pairs: Sequence[Pair], folds: Mapping[int, Sequence[str]]) -> list[MapTask]:
    """Return the photographs to predict with the models of folds.

    Args:
        pairs: Pairs of the dataset.
        folds: Validation part of each fold by its number.

    Raises:
        DatasetError: If a photograph is in the validation part of several folds.
    """
    by_stem = {pair.stem: pair for pair in pairs}
    fold_of: dict[str, list[int]] = defaultdict(list)
    for number, stems in folds.items():
        for stem in stems:
            fold_of[stem].append(number)
    repeated = [
        f"{stem}: folds {', '.join(map(str, numbers))}" for stem, numbers in fold_of.items() if len(numbers) > 1
    ]
    if repeated:
        raise DatasetError("Photographs are in the validation part of several folds:", repeated)
    return [MapTask(by_stem[stem].files, by_stem[stem], numbers[0]) for stem, numbers in sorted(fold_of.items())]


def empty_index(
    plan: MapPlan,
    source: Path,
    split_file: Path | None,
    models: Sequence[FoldModel],
    *,
    profile: str | None,
    temperature: float,
) -> ProbabilityIndex:
    """Return the index of a plan, without photographs.

    Args:
        plan: Plan of the maps.
        source: Dataset or folder of photographs.
        split_file: Split file; None without one.
        models: Model of each fold.
        profile: Profile of the bundles; None for the default profile of each.
        temperature: Number that logits are divided by before the softmax.

    Raises:
        ConfigurationError: If a model has other classes than the true masks.
    """
    for classes in {task.pair.encoding.classes for task in plan.tasks if task.pair}:
        for model in models:
            require_same_classes(str(source), classes, "the model", model.classes)
    return ProbabilityIndex(
        kind="out of fold" if plan.folds else "one model",
        data=source.resolve().name,
        classes=class_entries(models[0].classes),
        split=split_file.name if split_file else None,
        profile=profile,
        temperature=temperature,
        models={"all" if model.fold is None else str(model.fold): model.model_id for model in models},
        dropped=plan.dropped,
        never_validated=list(plan.never_validated),
    )
