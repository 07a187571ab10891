"""Splits are disjoint, reproducible and complete."""

import json
from pathlib import Path

import pytest

from droneseg.core.errors import OutputExistsError, SplitError
from droneseg.data.splits import Fold, Split, random_folds, random_split, read_split, write_split

STEMS = [f"{i:03d}" for i in range(20)]


def test_random_split_uses_each_stem_once_and_repeats_by_seed() -> None:
    split = random_split(STEMS, val_share=0.2, test_share=0.1, seed=3)
    assert (len(split.train), len(split.val), len(split.test)) == (14, 4, 2)
    assert sorted([*split.train, *split.val, *split.test]) == STEMS
    assert split == random_split(STEMS[::-1], val_share=0.2, test_share=0.1, seed=3)
    assert split != random_split(STEMS, val_share=0.2, test_share=0.1, seed=4)


def test_too_few_pairs_are_rejected() -> None:
    with pytest.raises(SplitError, match="too few"):
        random_split(["a", "b"], val_share=0.2, test_share=0.2, seed=0)


def test_written_split_is_read_back(tmp_path: Path) -> None:
    split = random_split(STEMS, val_share=0.2, test_share=0.1, seed=3)
    write_split(split, tmp_path / "s.json")
    assert read_split(tmp_path / "s.json", STEMS) == split


def test_lists_of_a_split_file_are_optional(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"train": STEMS}))
    assert read_split(tmp_path / "s.json", STEMS) == Split(train=tuple(STEMS))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "Expected a JSON object"), ('{"valid": []}', "Expected a JSON object"),
     ('{"train": [1]}', "not a list of stems"), ('{"train": []}', "train is empty")],
)  # fmt: skip
def test_malformed_split_files_are_rejected(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(SplitError, match=message):
        read_split(tmp_path / "s.json", [])
    with pytest.raises(SplitError, match="cannot be read"):
        read_split(tmp_path / "absent.json", [])


def test_only_split_files_are_replaced(tmp_path: Path) -> None:
    split = Split(train=("a",), val=("b",))
    write_split(split, tmp_path / "s.json")
    with pytest.raises(OutputExistsError, match="--force"):
        write_split(split, tmp_path / "s.json")
    write_split(split, tmp_path / "s.json", replace=True)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG precious")
    with pytest.raises(OutputExistsError, match="not a split file"):
        write_split(split, tmp_path / "photo.png", replace=True)
    assert (tmp_path / "photo.png").read_bytes() == b"\x89PNG precious"


def test_shares_above_one_are_rejected() -> None:
    with pytest.raises(SplitError, match=r"add up to 1\.2"):
        random_split(["a", "b", "c"], val_share=0.6, test_share=0.6, seed=0)


FOLDS = (Fold(("a", "b"), ("c",), ("d",)), Fold(("c",), ("a", "b", "d")))


def test_folds_are_written_and_read_back(tmp_path: Path) -> None:
    split = Split(train=("a", "b", "c", "d"), val=("e",), folds=FOLDS)
    write_split(split, tmp_path / "s.json")
    assert read_split(tmp_path / "s.json", list("abcde")) == split
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["folds"][0] == {"train": ["a", "b"], "val": ["c"], "dropped": ["d"]}


def test_split_without_folds_has_no_such_key(tmp_path: Path) -> None:
    write_split(Split(train=("a",)), tmp_path / "s.json")
    assert set(json.loads((tmp_path / "s.json").read_text())) == {"train", "val", "test", "dropped"}


def test_all_problems_of_folds_are_listed_at_once(tmp_path: Path) -> None:
    folds = [{"train": ["a", "a"], "val": ["e"]}, {"train": [], "val": ["a", "b", "c", "d"]}]
    (tmp_path / "s.json").write_text(json.dumps({"train": list("abcd"), "val": ["e", "x"], "folds": folds}))
    with pytest.raises(SplitError) as caught:
        read_split(tmp_path / "s.json", list("abcde"))
    for line in (
        "  - 1 not in the data: x",
        "  - fold 1 of folds: 1 listed more than once: a",
        "  - fold 1 of folds: 1 not in train of the split: e",
        "  - fold 1 of folds: 3 in train of the split but in no list of the fold: b, c, d",
        "  - fold 2 of folds: train is empty",
    ):
        assert line in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("folds", "message"),
    [({}, "folds is not a list"), ([{"test": []}], "folds is not a list"), ([{"val": 1}], "fold 1: val is not a list")],
)
def test_malformed_folds_are_rejected(tmp_path: Path, folds: object, message: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"train": ["a"], "folds": folds}))
    with pytest.raises(SplitError, match=message):
        read_split(tmp_path / "s.json", ["a"])


def test_random_folds_validate_each_stem_once() -> None:
    folds = random_folds(STEMS, 3, seed=1)
    assert sorted(stem for fold in folds for stem in fold.val) == STEMS
    assert [sorted([*fold.train, *fold.val]) for fold in folds] == [STEMS] * 3
    assert [len(fold.val) for fold in folds] == [7, 7, 6]
    assert folds == random_folds(STEMS[::-1], 3, seed=1)
    with pytest.raises(SplitError, match="20 images cannot be split into 21 folds"):
        random_folds(STEMS, 21, seed=1)
