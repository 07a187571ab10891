"""Images of the same place are matched and never split between two parts."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import SplitError
from droneseg.core.image_files import ImageFiles
from droneseg.data.image_matching import Match, find_matches
from droneseg.data.scene_split import count_crossing, describe_split, fold_by_scene, split_by_scene
from droneseg.data.splits import Split
from droneseg.data.synthetic import generate_scene

LIMIT = 10_000_000
SHARES = {"val_share": 0.2, "test_share": 0.2, "seed": 0}


def all_classes(stems: list[str]) -> dict[str, np.ndarray]:
    return {stem: np.array([0, 10, 10, 40, 10, 60]) for stem in stems}


def cliques(count: int, size: int) -> tuple[list[str], list[Match]]:
    """Return a match for every two images of a place, for several places of `size` images."""
    stems = [f"{place}-{index}" for place in range(count) for index in range(size)]
    matches = [
        Match(a, b, 50) for place in range(count)
        for a, b in combinations([stem for stem in stems if stem.startswith(f"{place}-")], 2)
    ]  # fmt: skip
    return stems, matches


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three images of one place (shifted, rotated, brighter) and two of other places."""
    folder = tmp_path_factory.mktemp("overlapping")
    place = Image.fromarray(generate_scene(3, 900, 700)[0])
    pictures = {
        "a": place.crop((0, 0, 600, 500)),
        "b": place.crop((150, 80, 750, 580)).rotate(90, expand=True),
        "c": place.crop((100, 120, 700, 620)).point(lambda value: min(255, int(1.2 * value))),
        "x": Image.fromarray(generate_scene(4, 600, 500)[0]),
        "y": Image.fromarray(generate_scene(5, 600, 500)[0]),
    }
    for stem, picture in pictures.items():
        picture.save(folder / f"{stem}.png")
    return {stem: folder / f"{stem}.png" for stem in pictures}


def find(images: dict[str, Path], cache: Path, calls: list[tuple[str, int, int]] | None = None) -> list[Match]:
    noted = [] if calls is None else calls
    files = {stem: ImageFiles.single(file) for stem, file in images.items()}
    return find_matches(
        files, cache=cache, max_pixels=LIMIT, progress=lambda what, done, total: noted.append((what, done, total))
    )


def test_only_images_of_the_same_place_match(overlapping: dict[str, Path], tmp_path: Path) -> None:
    found = find(overlapping, tmp_path)
    assert {(match.first, match.second) for match in found} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert all(match.inliers >= 12 for match in found)


def test_cached_matches_are_reused(overlapping: dict[str, Path], tmp_path: Path) -> None:
    first = find(overlapping, tmp_path)
    calls: list[tuple[str, int, int]] = []
    assert find(overlapping, tmp_path, calls) == first
    assert not [call for call in calls if call[0] == "matches"]


def test_new_image_is_matched_and_the_cache_reused(overlapping: dict[str, Path], tmp_path: Path) -> None:
    find({stem: file for stem, file in overlapping.items() if stem != "c"}, tmp_path)
    calls: list[tuple[str, int, int]] = []
    found = find(overlapping, tmp_path, calls)
    assert [call for call in calls if call[0] == "matches"] == [("matches", 4, 4)]
    assert {(match.first, match.second) for match in found} == {("a", "b"), ("a", "c"), ("b", "c")}


@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_damaged_cache_is_recomputed(overlapping: dict[str, Path], tmp_path: Path, damage: str) -> None:
    first = find(overlapping, tmp_path)
    for file in tmp_path.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content if damage == "flipped" else content[:50])
    assert find(overlapping, tmp_path) == first


def test_matching_works_without_a_writable_cache(overlapping: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert find(overlapping, tmp_path / "file" / "cache")


def test_only_the_bridge_between_two_places_is_dropped() -> None:
    stems, matches = cliques(5, 6)
    chained = [*matches, *(Match(f"{place}-0", f"{place + 1}-1", 20) for place in range(4))]
    found = split_by_scene(chained, all_classes(stems), DEFAULT_CLASSES.names, **SHARES)
    assert found.crossing == 0
    assert {name: len(getattr(found.split, name)) for name in ("train", "val", "test")}["train"] >= 12
    assert 1 <= len(found.split.dropped) <= 4
    everything = (*found.split.train, *found.split.val, *found.split.test, *found.split.dropped)
    assert sorted(everything) == sorted(stems)


def test_nothing_is_dropped_between_separate_places() -> None:
    stems, matches = cliques(10, 3)
    found = split_by_scene(matches, all_classes(stems), DEFAULT_CLASSES.names, **SHARES)
    assert found.split.dropped == ()
    assert (len(found.split.val), len(found.split.test)) == (6, 6)
    for name in ("train", "val", "test"):
        places = {stem.split("-")[0] for stem in getattr(found.split, name)}
        assert len(getattr(found.split, name)) == 3 * len(places), "a place is whole in one part"
        assert found.groups[name] == len(places)


def test_every_part_has_every_class() -> None:
    stems, matches = cliques(8, 3)
    pixels = {stem: np.array([0, 10, 10 if stem[0] in "036" else 0, 40, 10, 60]) for stem in stems}
    found = split_by_scene(matches, pixels, DEFAULT_CLASSES.names, **SHARES)
    assert all(share > 0 for shares in found.class_shares.values() for share in shares.values())


def test_class_in_a_single_place_is_an_error() -> None:
    stems, matches = cliques(6, 3)
    pixels = {stem: np.array([0, 10, 10 if stem[0] == "0" else 0, 40, 10, 60]) for stem in stems}
    # the only place with water can be cut for two parts, but not for three
    with pytest.raises(
        SplitError, match=r"No split by scene leaves every class both in \w+ .*: too few places show water\."
    ):
        split_by_scene(matches, pixels, DEFAULT_CLASSES.names, **SHARES)


def test_equal_seeds_give_equal_splits() -> None:
    stems, matches = cliques(7, 4)
    first, again = (
        split_by_scene(matches, all_classes(stems), DEFAULT_CLASSES.names, **SHARES).split for _ in range(2)
    )
    assert first == again


def test_crossing_matches_are_counted() -> None:
    split = Split(train=("a", "b"), val=("c",), dropped=("d",))
    matches = [Match("a", "b", 12), Match("a", "c", 12), Match("c", "d", 12), Match("b", "d", 99)]
    assert count_crossing(matches, split) == 1


def test_folds_keep_places_whole_and_validate_each_image_once() -> None:
    stems, matches = cliques(9, 4)
    found = fold_by_scene(matches, all_classes(stems), DEFAULT_CLASSES.names, count=3, seed=0)
    assert sorted(stem for fold in found.folds for stem in fold.val) == sorted(stems)
    for fold, places in zip(found.folds, found.groups, strict=True):
        assert fold.dropped == ()
        assert sorted([*fold.train, *fold.val]) == sorted(stems)
        assert not {stem[0] for stem in fold.train} & {stem[0] for stem in fold.val}
        assert (len(fold.val), places) == (12, {"train": 6, "val": 3})


def test_folds_of_a_chain_of_places_drop_only_its_bridges() -> None:
    stems, matches = cliques(6, 5)
    chained = [*matches, *(Match(f"{place}-0", f"{place + 1}-1", 13) for place in range(5))]
    found = fold_by_scene(chained, all_classes(stems), DEFAULT_CLASSES.names, count=3, seed=0)
    # three parts of two places are cut at two bridges, and each of these costs its images one fold
    assert sum(len(fold.dropped) for fold in found.folds) == 4
    for fold in found.folds:
        assert sorted([*fold.train, *fold.val, *fold.dropped]) == sorted(stems)
        pairs = {(a, b) for a in fold.train for b in fold.val}
        assert not [match for match in chained if {(match.first, match.second), (match.second, match.first)} & pairs]
    assert found.crossing == 0
    assert found.never_validated == ()


def test_folds_spread_a_class_over_their_parts() -> None:
    stems, matches = cliques(6, 3)
    pixels = {stem: np.array([0, 10, 30 if stem[0] in "012" else 0, 40, 10, 60]) for stem in stems}
    found = fold_by_scene(matches, pixels, DEFAULT_CLASSES.names, count=3, seed=0)
    assert all(shares["val"]["water"] > 0 for shares in found.class_shares)


def test_folds_ignore_matches_with_images_outside_the_training_part() -> None:
    stems, matches = cliques(4, 2)
    outside = [Match("test", stem, 99) for stem in stems]
    assert (
        fold_by_scene([*matches, *outside], all_classes(stems), DEFAULT_CLASSES.names, count=2, seed=0).folds[0].dropped
        == ()
    )


def test_too_few_places_for_the_folds_are_an_error() -> None:
    stems, matches = cliques(1, 6)
    with pytest.raises(SplitError, match="too few separate places for 3 folds"):
        fold_by_scene(matches, all_classes(stems), DEFAULT_CLASSES.names, count=3, seed=0)
    with pytest.raises(SplitError, match="6 images cannot be split into 7 folds"):
        fold_by_scene(matches, all_classes(stems), DEFAULT_CLASSES.names, count=7, seed=0)


def test_equal_seeds_give_equal_folds() -> None:
    stems, matches = cliques(7, 4)
    first, again = (
        fold_by_scene(matches, all_classes(stems), DEFAULT_CLASSES.names, count=3, seed=5).folds for _ in range(2)
    )
    assert first == again


def test_matches_across_a_given_split_are_counted() -> None:
    stems, matches = cliques(2, 3)
    split = Split(train=("0-0", "0-1", "0-2", "1-0"), val=("1-1",), dropped=("1-2",))
    found = describe_split(matches, all_classes(stems), DEFAULT_CLASSES.names, split)
    assert found.crossing == 1
    assert found.groups == {"val": 1, "train": 2}
