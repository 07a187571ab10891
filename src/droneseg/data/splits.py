"""Split files and random splits."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.errors import OutputExistsError, SplitError
from droneseg.core.files import write_text

_MAX_SHOWN_STEMS = 8


@dataclass(frozen=True)
class Split:
    """Assignment of every image to one part, by file stem.

    Attributes:
        train: Images to train on.
        val: Images on which nnU-Net validates during training.
        test: Images held out from training.
        dropped: Images that are not used.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


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
    """Write a split as a JSON object with the lists of stems `train`, `val`, `test` and `dropped`.

    Raises:
        OutputExistsError: If the file exists and is not a split, or is one and `replace` is False.
    """
    check_split_writable(path, replace=replace)
    write_text(path, json.dumps(asdict(split), indent=1) + "\n")


def read_split(path: Path, stems: list[str]) -> Split:
    """Read a split file and compare it with the stems of the dataset.

    Raises:
        SplitError: If the file is not a valid split, or if stems are repeated, unknown or missing; the message counts
            them and lists the first ones.
    """
    split = _parse(path)
    parts = asdict(split)
    listed = [stem for part in parts.values() for stem in part]
    problems = [
        _describe("listed more than once", {stem for stem in listed if listed.count(stem) > 1}),
        _describe("not in the data", set(listed) - set(stems)),
        _describe("in the data but in no list (to leave them out, list them under dropped)", set(stems) - set(listed)),
        "" if split.train else "train is empty",
    ]
    if any(problems):
        raise SplitError("\n".join([f"{path} does not match the data:", *(f"  - {p}" for p in problems if p)]))
    return split


def _parse(path: Path) -> Split:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplitError(f"{path} cannot be read: {error.strerror}. Pass an existing split file.") from error
    except ValueError as error:  # also raised for text that is not UTF-8
        raise SplitError(f"{path} is not JSON: {error}. Create a split with `droneseg data split`.") from error
    names = list(asdict(Split()))
    if not isinstance(content, dict) or not set(content) <= set(names):
        raise SplitError(f"{path} is not a split. Expected a JSON object with lists of stems under {', '.join(names)}.")
    for name, part in content.items():
        if not isinstance(part, list) or not all(isinstance(stem, str) for stem in part):
            raise SplitError(f"{path} is not a split: {name} is not a list of stems (strings).")
    return Split(**{name: tuple(part) for name, part in content.items()})


def _describe(problem: str, stems: set[str]) -> str:
    if not stems:
        return ""
    shown = ", ".join(sorted(stems)[:_MAX_SHOWN_STEMS]) + (", ..." if len(stems) > _MAX_SHOWN_STEMS else "")
    return f"{len(stems)} {problem}: {shown}"
