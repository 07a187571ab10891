"""Split files; random split."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.errors import OutputExistsError, SplitError
from droneseg.core.files import write_text

_SHOWN_STEMS = 8


@dataclass(frozen=True)
class Split:
    """Lists of stems; each photograph is in exactly one.

    Attributes:
        train: Fitted on.
        val: Chosen by: nnU-Net validates on them during training.
        test: Kept apart.
        dropped: Used for nothing.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def random_split(stems: list[str], *, val_share: float, test_share: float, seed: int) -> Split:
    """Deal stems to train, val and test at random.

    Args:
        stems: All stems; their order does not matter.
        val_share: Share of all stems for val, 0 to 1; a share above 0 gets at least one.
        test_share: Share of all stems for test, likewise.
        seed: Equal seeds give equal splits.

    Raises:
        SplitError: If nothing would be left to train on.
    """
    order = [str(stem) for stem in np.random.default_rng(seed).permutation(sorted(stems))]
    n_test, n_val = (max(1, round(share * len(order))) if share > 0 else 0 for share in (test_share, val_share))
    if val_share + test_share >= 1:
        raise SplitError(f"The shares add up to {val_share + test_share:g}; leave something to train on.")
    if n_test + n_val >= len(order):
        raise SplitError(
            f"{len(order)} pairs are too few for a validation share of {val_share} and a test share of {test_share}."
        )
    test, val, train = order[:n_test], order[n_test : n_test + n_val], order[n_test + n_val :]
    return Split(tuple(sorted(train)), tuple(sorted(val)), tuple(sorted(test)))


def require_split_place(path: Path, *, replace: bool) -> None:
    """Refuse to write a split over something: asked before work begins, so that none is in vain.

    Raises:
        OutputExistsError: If an older split is there and may not be replaced, or anything else is.
    """
    if not path.exists():
        return
    try:
        _parse(path)
    except SplitError as error:
        raise OutputExistsError(f"{path} is no split file and was left untouched. Name another place.") from error
    if not replace:
        raise OutputExistsError(f"{path} already exists and was not changed. Use --force to replace it.")


def write_split(split: Split, path: Path, *, replace: bool = False) -> None:
    """Write a split as JSON: lists of stems `train`, `val`, `test`, `dropped`.

    Raises:
        OutputExistsError: If an older split is there and `replace` is false, or anything else is.
    """
    require_split_place(path, replace=replace)
    write_text(path, json.dumps(asdict(split), indent=1) + "\n")


def read_split(path: Path, stems: list[str]) -> Split:
    """Read a split file and hold it against the photographs that are there.

    Raises:
        SplitError: If it is no split file, names a stem twice or one that is not there, or leaves one out; all such
            stems are counted and the first ones named.
    """
    split = _parse(path)
    parts = asdict(split)
    named = [stem for part in parts.values() for stem in part]
    problems = [
        _complain("named more than once", {stem for stem in named if named.count(stem) > 1}),
        _complain("not in the data", set(named) - set(stems)),
        _complain("in the data but in no list (put them under dropped to leave them out)", set(stems) - set(named)),
        "" if split.train else "train is empty",
    ]
    if any(problems):
        raise SplitError("\n".join([f"{path} does not fit the data:", *(f"  - {p}" for p in problems if p)]))
    return split


def _parse(path: Path) -> Split:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplitError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # text that is not UTF-8 included
        raise SplitError(f"{path}: is not JSON: {error}") from error
    names = list(asdict(Split()))
    if not isinstance(content, dict) or not set(content) <= set(names):
        raise SplitError(f"{path}: expected an object with lists of stems under {', '.join(names)}.")
    for name, part in content.items():
        if not isinstance(part, list) or not all(isinstance(stem, str) for stem in part):
            raise SplitError(f"{path}: {name} is not a list of stems (strings).")
    return Split(**{name: tuple(part) for name, part in content.items()})


def _complain(what: str, stems: set[str]) -> str:
    if not stems:
        return ""
    shown = ", ".join(sorted(stems)[:_SHOWN_STEMS]) + (", ..." if len(stems) > _SHOWN_STEMS else "")
    return f"{len(stems)} {what}: {shown}"
