"""Compositions change the mask where they change the ground, and leave objects on top."""

from functools import cache

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.data.composition import (
    DRY_IDS,
    SOFT_ID,
    WATER_ID,
    Composition,
    Photograph,
    compose_ground,
    compose_shadow,
    compose_water,
)
from droneseg.data.synthetic import generate_scene
from droneseg.data.textures import TextureLibrary, find_texture_regions

LANDING_ID = DEFAULT_CLASSES.id_of("landing-zones")
SEEDS = range(24)


@cache
def photograph(seed: int) -> Photograph:
    return Photograph(*generate_scene(seed, 180, 120))


@cache
def library() -> TextureLibrary:
    regions = [region for seed in range(6) for region in find_texture_regions(str(seed), photograph(seed).mask)]
    return TextureLibrary(regions, lambda stem: photograph(int(stem)).image)


@cache
def watered(seed: int) -> Composition:
    return compose_water(photograph(seed), library(), np.random.default_rng(seed))


@cache
def grounded(seed: int) -> Composition:
    return compose_ground(photograph(seed), library(), np.random.default_rng(seed))


@pytest.mark.parametrize("compose", [watered, grounded])
def test_the_mask_changes_only_at_inserted_pixels(compose) -> None:
    for seed in SEEDS:
        done = compose(seed)
        before = photograph(seed).mask
        assert done.image.shape == (*before.shape, 3)
        assert done.image.dtype == done.mask.dtype == np.uint8
        assert np.array_equal(done.mask[~done.changed], before[~done.changed])
        assert set(np.unique(done.mask[done.changed])) <= {WATER_ID, SOFT_ID, LANDING_ID}


def test_nearly_every_image_gets_water() -> None:
    shares = [float((watered(seed).mask[watered(seed).changed] == WATER_ID).sum()) / 21600 for seed in SEEDS]
    assert np.mean([share > 0.01 for share in shares]) > 0.85
    assert 0.1 < np.mean(shares) < 0.5


def test_ground_adds_no_water() -> None:
    for seed in SEEDS:
        assert not (grounded(seed).mask[grounded(seed).changed] == WATER_ID).any()
    assert np.mean([grounded(seed).changed.mean() for seed in SEEDS]) > 0.1


@pytest.mark.parametrize("compose", [watered, grounded])
def test_objects_mostly_keep_their_classes(compose) -> None:
    kept = []
    for seed in SEEDS:
        objects = np.isin(photograph(seed).mask, DRY_IDS)
        kept.append(bool((compose(seed).mask[objects] == photograph(seed).mask[objects]).all()))
    assert 0.6 < np.mean(kept) <= 1


def test_trees_hang_over_the_water_if_they_are_known() -> None:
    image, mask = generate_scene(3, 180, 120)
    crown = np.zeros(mask.shape, dtype=bool)
    crown[40:80, 60:120] = True
    kept = 0
    for seed in SEEDS:
        done = compose_water(Photograph(image, mask, crown), library(), np.random.default_rng(seed))
        kept += not done.changed[crown].any()
    assert kept >= 18


def test_the_image_changes_where_water_is() -> None:
    differences = []
    for seed in SEEDS:
        water = watered(seed).changed & (watered(seed).mask == WATER_ID)
        if water.sum() > 200:
            before = photograph(seed).image[water].astype(float)
            differences.append(np.abs(watered(seed).image[water] - before).mean())
    assert np.median(differences) > 20


def test_ground_needs_textures_and_water_does_not() -> None:
    empty = TextureLibrary([], lambda stem: photograph(0).image)
    for seed in range(6):
        compose_water(photograph(seed), empty, np.random.default_rng(seed))
    with pytest.raises(IndexError):
        compose_ground(photograph(0), empty, np.random.default_rng(0))


def test_a_shadow_changes_the_image_and_not_the_mask() -> None:
    for seed in SEEDS:
        done = compose_shadow(photograph(seed), np.random.default_rng(seed))
        assert np.array_equal(done.mask, photograph(seed).mask)
        assert not done.changed.any()
        assert done.image.mean() < photograph(seed).image.mean()


def test_compositions_are_reproducible() -> None:
    again = compose_water(photograph(5), library(), np.random.default_rng(5))
    assert np.array_equal(again.image, watered(5).image)
    assert np.array_equal(again.mask, watered(5).mask)


def test_the_photograph_is_not_changed() -> None:
    image, mask = generate_scene(8, 96, 64)
    before = image.copy(), mask.copy()
    compose_water(Photograph(image, mask), library(), np.random.default_rng(0))
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])
