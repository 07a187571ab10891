"""Splits are disjoint, reproducible and complete."""

import json
from pathlib import Path

import pytest

from droneseg.core.errors import OutputExistsError, SplitError
from droneseg.data.splits import Split, random_split, read_split, write_split

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
