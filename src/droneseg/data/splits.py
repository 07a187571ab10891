"""Split files, random splits and random folds."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.errors import OutputExistsError, SplitError
from droneseg.core.files import write_text

PARTS = ("train", "val", "test", "dropped")
"""Names of the parts of a split."""

_FOLD_PARTS = ("train", "val", "dropped")
_FOLDS = "folds"
_MAX_SHOWN_STEMS = 8


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation over the training part of a split, by file stem.

    Attributes:
        train: Images to train on.
        val: Images to validate on.
        dropped: Images of the training part that this fold does not use.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Assignment of every image to one part, by file stem.

    Attributes:
        train: Images to train on.
        val: Images on which nnU-Net validates during training.
        test: Images held out from training.
        dropped: Images that are not used.
        folds: Folds of a cross-validation over `train`; they contain no image of the other parts.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    folds: tuple[Fold, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Images by part."""
        return {name: getattr(self, name) for name in PARTS}


def random_split(stems: list[str], *, val_share: float, test_share: float, seed: int) -> Split:
    """Split stems into train, val and test at random.

    Args:
        stems: All stems in any order.
        val_share: Share of val, 0 to 1; a share above 0 selects at least one stem.
        test_share: Share of test, as for val.
        seed: Seed of the random choice.

    Raises:
        SplitError: If no stem is left for train.
    """
    order = [str(stem) for stem in np.random.default_rng(seed).permutation(sorted(stems))]
    n_test, n_val = (max(1, round(share * len(order))) if share > 0 else 0 for share in (test_share, val_share))
    if val_share + test_share >= 1:
        raise SplitError(
            f"The shares add up to {val_share + test_share:g}, which leaves nothing to train on. Choose smaller shares."
        )
    if n_test + n_val >= len(order):
        raise SplitError(
            f"{len(order)} pairs are too few for a validation share of {val_share} and a test share of {test_share}. "
            "Add pairs or choose smaller shares."
        )
    test, val, train = order[:n_test], order[n_test : n_test + n_val], order[n_test + n_val :]
    return Split(tuple(sorted(train)), tuple(sorted(val)), tuple(sorted(test)))


def random_folds(stems: Sequence[str], count: int, *, seed: int) -> tuple[Fold, ...]:
    """Return `count` folds in which every stem is in the validation part of one fold, chosen at random.

    Raises:
        SplitError: If there are fewer stems than folds, or fewer than two folds.
    """
    if not 2 <= count <= len(stems):
        raise SplitError(f"{len(stems)} images cannot be split into {count} folds. Choose 2 to {len(stems)} folds.")
    order = [str(stem) for stem in np.random.default_rng(seed).permutation(sorted(stems))]
    vals = [set(order[number::count]) for number in range(count)]
    return tuple(Fold(tuple(sorted(set(order) - val)), tuple(sorted(val))) for val in vals)


def check_split_writable(path: Path, *, replace: bool) -> None:
    """Check that a split may be written to a path; call this before long work.

    Raises:
        OutputExistsError: If the file exists and is not a split, or is one and `replace` is False.
    """
    if not path.exists():
        return
    try:
        _parse(path)
    except SplitError as error:
        raise OutputExistsError(f"{path} is not a split file and was not changed. Choose another file.") from error
    if not replace:
        raise OutputExistsError(f"{path} already exists and was not changed. Use --force to replace it.")


def write_split(split: Split, path: Path, *, replace: bool = False) -> None:
    """Write a split as a JSON object with the lists of stems `train`, `val`, `test` and `dropped`, and its `folds`.

    Raises:
        OutputExistsError: If the file exists and is not a split, or is one and `replace` is False.
    """
    check_split_writable(path, replace=replace)
    content: dict[str, Any] = dict(split.parts)
    if split.folds:
        content[_FOLDS] = [asdict(fold) for fold in split.folds]
    write_text(path, json.dumps(content, indent=1) + "\n")


def stems_of_split(path: Path) -> frozenset[str]:
    """Return all stems that a split file lists.

    Raises:
        SplitError: If the file is not a valid split.
    """
    return frozenset(stem for part in _parse(path).parts.values() for stem in part)


def read_split(path: Path, stems: Collection[str], *, optional: Collection[str] = ()) -> Split:
    """Read a split file and compare it with the stems of the dataset.

    Args:
        path: Split file.
        stems: Stems that must be in a list.
        optional: Further stems that may be in a list.

    Raises:
        SplitError: If the file is not a valid split, or if stems are repeated, unknown or missing; the message counts
            them and lists the first ones.
    """
    split = _parse(path)
    listed = [stem for part in split.parts.values() for stem in part]
    problems = [
        _describe("listed more than once", _repeated(listed)),
        _describe("not in the data", set(listed) - set(stems) - set(optional)),
        _describe("in the data but in no list (to leave them out, list them under dropped)", set(stems) - set(listed)),
        "" if split.train else "train is empty",
    ]
    for number, fold in enumerate(split.folds, start=1):
        problems += [
            f"fold {number} of {_FOLDS}: {problem}" for problem in _problems_of_fold(fold, split.train) if problem
        ]
    if any(problems):
        raise SplitError("\n".join([f"{path} does not match the data:", *(f"  - {p}" for p in problems if p)]))
    return split


def _problems_of_fold(fold: Fold, train: tuple[str, ...]) -> list[str]:
    listed = [*fold.train, *fold.val, *fold.dropped]
    return [
        _describe("listed more than once", _repeated(listed)),
        _describe("not in train of the split", set(listed) - set(train)),
        _describe("in train of the split but in no list of the fold", set(train) - set(listed)),
        "" if fold.train else "train is empty",
        "" if fold.val else "val is empty",
    ]


def _parse(path: Path) -> Split:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplitError(f"{path} cannot be read: {error.strerror}. Pass an existing split file.") from error
    except ValueError as error:  # also raised for text that is not UTF-8
        raise SplitError(f"{path} is not JSON: {error}. Create a split with `droneseg data split`.") from error
    if not isinstance(content, dict) or not set(content) <= {*PARTS, _FOLDS}:
        raise SplitError(
            f"{path} is not a split. Expected a JSON object with lists of stems under {', '.join(PARTS)}, "
            f"and optionally {_FOLDS}."
        )
    folds = content.pop(_FOLDS, [])
    if not isinstance(folds, list) or not all(
        isinstance(fold, dict) and set(fold) <= set(_FOLD_PARTS) for fold in folds
    ):
        raise SplitError(
            f"{path} is not a split: {_FOLDS} is not a list of objects with lists of stems under "
            f"{', '.join(_FOLD_PARTS)}."
        )
    parts = _parse_parts(path, content, "")
    return Split(
        **parts, folds=tuple(Fold(**_parse_parts(path, fold, f"fold {n}: ")) for n, fold in enumerate(folds, start=1))
    )


def _parse_parts(path: Path, content: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    for name, part in content.items():
        if not isinstance(part, list) or not all(isinstance(stem, str) for stem in part):
            raise SplitError(f"{path} is not a split: {where}{name} is not a list of stems (strings).")
    return {name: tuple(part) for name, part in content.items()}


def _repeated(stems: Sequence[str]) -> set[str]:
    return {stem for stem, count in Counter(stems).items() if count > 1}


def _describe(problem: str, stems: set[str]) -> str:
    if not stems:
        return ""
    shown = ", ".join(sorted(stems)[:_MAX_SHOWN_STEMS]) + (", ..." if len(stems) > _MAX_SHOWN_STEMS else "")
    return f"{len(stems)} {problem}: {shown}"
