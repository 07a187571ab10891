"""Augmented datasets are complete and reproducible, and no fold trains on pixels of its validation part."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DatasetError, OutputExistsError, SplitError
from droneseg.core.masks import read_mask
from droneseg.data.augment import (
    SPLIT_NAME,
    AugmentOptions,
    augment_dataset,
    extend_split,
    kind_of,
)
from droneseg.data.dataset import (
    GENERATED_NAME,
    IMAGES_FOLDER,
    KAGGLE_FOLDER,
    MASKS_FOLDER,
    DatasetInfo,
    inspect_dataset,
    list_pairs,
    read_info,
    write_info,
)
from droneseg.data.fine_classes import FINE_MASKS_FOLDER
from droneseg.data.pixel_targets import WEIGHTS_FOLDER
from droneseg.data.splits import Fold, Split, read_split
from droneseg.data.synthetic import write_samples

COUNT = 6
STEMS = [f"{number:03d}" for number in range(COUNT)]
ALL = AugmentOptions(water=1, ground=1, shadow=1)
MAX_PIXELS = 100_000
WATER_ID = DEFAULT_CLASSES.id_of("water")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_samples(tmp_path / "source", count=COUNT, size=(120, 96), seed=3)
    return tmp_path / "source"


def augment(source: Path, out: Path, options: AugmentOptions = ALL, **keywords):
    return augment_dataset(source, out, options, max_pixels=MAX_PIXELS, **keywords)


def test_the_result_is_a_valid_dataset_with_originals_and_generated_pairs(source: Path, tmp_path: Path) -> None:
    steps = []
    done = augment(source, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert (done.originals, done.generated) == (COUNT, {"water": COUNT, "ground": COUNT, "shadow": COUNT})
    changed = [
        read_mask(tmp_path / "out" / "masks" / f"{stem}__water1.png", "colours", DEFAULT_CLASSES)
        != read_mask(tmp_path / "out" / "masks" / f"{stem}.png", "colours", DEFAULT_CLASSES)
        for stem in STEMS
    ]
    assert np.mean(changed) / 3 < done.laid_share < 2 / 3  # a third of the images have shadows, which insert no pixels
    inspection = inspect_dataset(tmp_path / "out", max_pixels=MAX_PIXELS)
    assert not inspection.problems
    assert len(inspection.facts) == 4 * COUNT
    assert ("textures", COUNT, COUNT) in steps
    assert ("images", COUNT, COUNT) in steps


def test_originals_are_copied_unchanged(source: Path, tmp_path: Path) -> None:
    augment(source, tmp_path / "out")
    root = source / KAGGLE_FOLDER
    for stem in STEMS:
        for before, after in ((root / IMAGES_FOLDER, "images"), (root / MASKS_FOLDER, "masks")):
            assert (before / f"{stem}.png").read_bytes() == (tmp_path / "out" / after / f"{stem}.png").read_bytes()


def test_generated_names_state_origin_and_kind(source: Path, tmp_path: Path) -> None:
    augment(source, tmp_path / "out")
    generated = json.loads((tmp_path / "out" / GENERATED_NAME).read_text())
    assert generated["002__water1"] == "002"
    assert set(generated.values()) == set(STEMS)
    assert {kind_of(stem) for stem in generated} == {"water", "ground", "shadow"}


def test_masks_change_for_water_and_ground_and_not_for_shadows(source: Path, tmp_path: Path) -> None:
    augment(source, tmp_path / "out")
    masks = {pair.stem: read_mask(pair.mask, "colours", DEFAULT_CLASSES) for pair in list_pairs(tmp_path / "out").pairs}
    assert sum((masks[f"{s}__water1"] == WATER_ID).sum() > (masks[s] == WATER_ID).sum() for s in STEMS) >= COUNT - 2
    assert all(((masks[f"{s}__ground1"] == WATER_ID) <= (masks[s] == WATER_ID)).all() for s in STEMS)
    assert all(np.array_equal(masks[f"{s}__shadow1"], masks[s]) for s in STEMS)


def test_the_same_seed_gives_the_same_files(source: Path, tmp_path: Path) -> None:
    augment(source, tmp_path / "first")
    augment(source, tmp_path / "second")
    augment(source, tmp_path / "other", AugmentOptions(1, 1, 1, seed=1))
    name = "images/001__water1.png"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert (tmp_path / "first" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_the_split_is_extended_and_folds_train_on_generated_images_of_their_train_part_only() -> None:
    split = Split(
        train=("a", "b"), val=("c",), folds=(Fold(train=("a",), val=("b",)), Fold(train=("b",), dropped=("a",)))
    )
    extended = extend_split(split, {"a__water1": "a", "b__water1": "b"}, "train")
    assert extended.train == ("a", "b", "a__water1", "b__water1")
    assert extended.val == ("c",)
    assert extended.folds[0] == Fold(("a", "a__water1"), ("b",), ("b__water1",))
    assert extended.folds[1] == Fold(("b", "b__water1"), (), ("a", "a__water1"))


def test_the_written_split_fits_the_written_dataset(source: Path, tmp_path: Path) -> None:
    folds = [{"train": STEMS[:2], "val": STEMS[2:4]}, {"train": STEMS[2:4], "val": STEMS[:2]}]
    (tmp_path / "split.json").write_text(json.dumps({"train": STEMS[:4], "val": STEMS[4:], "folds": folds}))
    augment(source, tmp_path / "out", AugmentOptions(1, 0, 0), split_file=tmp_path / "split.json")
    stems = [pair.stem for pair in list_pairs(tmp_path / "out").pairs]
    split = read_split(tmp_path / "out" / SPLIT_NAME, stems)
    assert set(split.train) == {*STEMS[:4], *(f"{stem}__water1" for stem in STEMS[:4])}
    assert split.val == tuple(STEMS[4:])
    assert set(split.folds[0].train) == {"000", "001", "000__water1", "001__water1"}


def paint(root: Path, stem: str, colour: tuple[int, int, int], class_colour: tuple[int, int, int]) -> None:
    for folder, value in ((IMAGES_FOLDER, colour), (MASKS_FOLDER, class_colour)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        pillow.new("RGB", (96, 96), value).save(root / folder / f"{stem}.png")


def test_textures_come_only_from_images_that_the_same_folds_train_on(tmp_path: Path) -> None:
    grass, paving = (124, 252, 0), (169, 169, 169)
    for stem, colour, label in (("a", (0, 0, 200), grass), ("b", (0, 0, 210), paving)):
        paint(tmp_path / "source", stem, colour, label)
    for stem, colour, label in (("c", (200, 0, 0), grass), ("d", (210, 0, 0), paving)):
        paint(tmp_path / "source", stem, colour, label)
    folds = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]
    (tmp_path / "split.json").write_text(json.dumps({"train": list("abcd"), "folds": folds}))
    only_ground = AugmentOptions(water=0, ground=12, shadow=0)
    augment(tmp_path / "source", tmp_path / "out", only_ground, split_file=tmp_path / "split.json")
    for pair in list_pairs(tmp_path / "out").pairs:  # no generated colour is as pure as those of the photographs
        image = np.asarray(pillow.open(pair.image)).astype(int)
        own, foreign = (2, 0) if pair.stem[0] in "ab" else (0, 2)
        pure = (image[..., foreign] > 40) & (image[..., foreign] > 4 * image[..., 1])
        assert not (pure & (image[..., foreign] > 4 * image[..., own])).any()


def test_fine_masks_and_weights_follow_the_pixels(source: Path, tmp_path: Path) -> None:
    root = source / KAGGLE_FOLDER
    (root / "fine_classes.csv").write_text("id,name,class\n1,grass,soft-surfaces\n2,oak tree,soft-surfaces\n")
    for folder, value in ((FINE_MASKS_FOLDER, 1), (WEIGHTS_FOLDER, 250)):
        (root / folder).mkdir()
        for stem in STEMS:
            pillow.fromarray(np.full((96, 120), value, np.uint8)).save(root / folder / f"{stem}.png")
    write_info(root, DatasetInfo(pairs=COUNT, gsd_m=0.02))
    out = tmp_path / "out"
    augment(source, out, AugmentOptions(water=1, ground=0, shadow=1))
    assert read_info(out) == DatasetInfo(pairs=3 * COUNT, gsd_m=0.02)
    assert (out / "fine_classes.csv").read_text() == (root / "fine_classes.csv").read_text()
    for stem in STEMS:
        masks = [
            read_mask(out / "masks" / f"{name}.png", "colours", DEFAULT_CLASSES) for name in (stem, f"{stem}__water1")
        ]
        fine, weights = (np.asarray(pillow.open(out / f / f"{stem}__water1.png")) for f in ("fine_masks", "weights"))
        assert set(np.unique(fine)) <= {0, 1}
        assert (fine[masks[0] != masks[1]] == 0).all()
        assert np.array_equal(weights == 100, fine == 0)
        assert (np.asarray(pillow.open(out / "fine_masks" / f"{stem}__shadow1.png")) == 1).all()
        assert (np.asarray(pillow.open(out / "fine_masks" / f"{stem}.png")) == 1).all()


def test_a_validation_part_can_be_generated_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"train": STEMS[:4], "val": STEMS[4:]}))
    options = AugmentOptions(water=1, ground=0, shadow=0, part="val", originals=False)
    done = augment(source, tmp_path / "out", options, split_file=tmp_path / "split.json")
    assert (done.originals, done.generated["water"]) == (0, 2)
    assert [pair.stem for pair in list_pairs(tmp_path / "out").pairs] == ["004__water1", "005__water1"]
    assert not (tmp_path / "out" / SPLIT_NAME).exists()


def test_the_numbers_of_generated_images_are_exact(tmp_path: Path) -> None:
    write_samples(tmp_path / "few", count=9, size=(48, 40), seed=0)
    chosen = []
    for seed in range(3):
        done = augment(tmp_path / "few", tmp_path / f"out{seed}", AugmentOptions(0.5, 1.3, 0.25, seed=seed))
        assert done.generated == {"water": 5, "ground": 12, "shadow": 2}  # 4.5, 11.7 and 2.25 rounded
        generated = json.loads((done.folder / GENERATED_NAME).read_text())
        assert {list(generated.values()).count(f"{number:03d}") >= 1 for number in range(9)} == {True}
        chosen.append({stem for stem in generated if kind_of(stem) == "water"})
    assert chosen[0] != chosen[1] or chosen[1] != chosen[2]


def test_all_unreadable_files_are_listed_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    root = source / KAGGLE_FOLDER
    (root / IMAGES_FOLDER / "001.png").write_bytes(b"no image")
    (root / IMAGES_FOLDER / "003.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"001\.png[\s\S]*003\.png"):
        augment(source, tmp_path / "out", AugmentOptions(1, 0, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    (root / MASKS_FOLDER / "001.png").write_bytes(b"no mask")
    (root / MASKS_FOLDER / "003.png").write_bytes(b"no mask")
    with pytest.raises(DatasetError, match=r"001\.png[\s\S]*003\.png"):
        augment(source, tmp_path / "out", AugmentOptions(1, 0, 0))


def test_a_fine_mask_of_another_size_is_a_problem(source: Path, tmp_path: Path) -> None:
    (source / KAGGLE_FOLDER / FINE_MASKS_FOLDER).mkdir()
    pillow.new("L", (10, 10)).save(source / KAGGLE_FOLDER / FINE_MASKS_FOLDER / "000.png")
    with pytest.raises(DatasetError, match=r"fine_masks/000\.png"):
        augment(source, tmp_path / "out")


def test_a_dataset_with_generated_images_is_refused(source: Path, tmp_path: Path) -> None:
    augment(source, tmp_path / "out", AugmentOptions(1, 0, 0))
    with pytest.raises(DatasetError, match="already contains generated images"):
        augment(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nothing_to_generate_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing to generate"):
        augment(source, tmp_path / "out", AugmentOptions(0, 0, 0))
    (tmp_path / "split.json").write_text(json.dumps({"train": STEMS}))
    with pytest.raises(DatasetError, match="nothing to generate"):
        augment(source, tmp_path / "out", AugmentOptions(part="val"), split_file=tmp_path / "split.json")


def test_ground_without_a_texture_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    paint(tmp_path / "source", "a", (90, 90, 90), (155, 38, 182))
    with pytest.raises(DatasetError, match="--ground 0"):
        augment(tmp_path / "source", tmp_path / "out")


def test_an_existing_result_is_replaced_only_on_request(source: Path, tmp_path: Path) -> None:
    options = AugmentOptions(1, 0, 0)
    augment(source, tmp_path / "out", options)
    with pytest.raises(OutputExistsError, match="--force"):
        augment(source, tmp_path / "out", options)
    augment(source, tmp_path / "out", options, replace=True)
    with pytest.raises(OutputExistsError):
        augment(source, source, options, replace=True)


def test_a_split_of_other_images_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"train": ["999"]}))
    with pytest.raises(SplitError, match="999"):
        augment(source, tmp_path / "out", split_file=tmp_path / "split.json")
