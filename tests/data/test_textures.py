"""Textures are cut from one class only, and synthesised areas look like their patch."""

import numpy as np
import pytest

from droneseg.data.textures import TextureLibrary, TextureRegion, find_texture_regions, luminance, quilt, recolour


def noise(side: int, seed: int = 0) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, 20, (side, side, 1))
    return np.clip(grain + np.array((90, 120, 60)), 0, 255).astype(np.uint8)


def test_the_largest_square_of_each_class_is_found() -> None:
    mask = np.full((100, 150), 5, dtype=np.uint8)
    mask[:, 100:] = 3
    mask[10:14, 10:14] = 1
    regions = {region.label: region for region in find_texture_regions("a", mask)}
    assert set(regions) == {3, 5}
    for label, region in regions.items():
        assert (mask[region.y : region.y + region.side, region.x : region.x + region.side] == label).all()
    assert 40 <= regions[3].side <= 46
    assert 54 <= regions[5].side <= 60


def test_a_texture_does_not_cross_fine_classes() -> None:
    mask = np.full((100, 100), 3, dtype=np.uint8)
    fine = np.full((100, 100), 4, dtype=np.uint8)
    fine[:, 50:] = 9
    regions = find_texture_regions("a", mask, fine)
    assert {(region.label, region.fine) for region in regions} == {(3, 4), (3, 9)}
    assert all(region.x + region.side <= 50 or region.x >= 50 for region in regions)


def test_a_texture_does_not_cross_classes_where_the_fine_class_is_unknown() -> None:
    mask = np.full((100, 100), 3, dtype=np.uint8)
    mask[:, 50:] = 5
    regions = find_texture_regions("a", mask, np.zeros((100, 100), dtype=np.uint8))
    assert {(region.label, region.fine) for region in regions} == {(3, 0), (5, 0)}
    assert all(region.x + region.side <= 50 or region.x >= 50 for region in regions)


def test_a_quilt_has_the_statistics_of_its_patch() -> None:
    patch = noise(60)
    area = quilt(patch, (170, 230), np.random.default_rng(1))
    assert area.shape == (170, 230, 3)
    assert area.mean((0, 1)) == pytest.approx(patch.mean((0, 1)), abs=2)
    assert area.std() == pytest.approx(patch.std(), rel=0.1)


def test_a_quilt_covers_every_pixel() -> None:
    patch = np.full((40, 40, 3), 77, dtype=np.uint8)
    assert (quilt(patch, (101, 143), np.random.default_rng(1)) == 77).all()


def test_the_seams_of_a_quilt_do_not_show() -> None:
    ys, xs = np.mgrid[:80, :80]
    waves = 128 + 60 * np.sin(xs / 4) * np.sin(ys / 4)
    patch = np.repeat(waves[..., None], 3, axis=2).astype(np.uint8)
    step = np.abs(np.diff(patch[..., 0].astype(float), axis=1)).max()
    area = quilt(patch, (300, 300), np.random.default_rng(1))[..., 0]
    jumps = np.abs(np.diff(area, axis=1))
    assert np.mean(jumps > 1.5 * step) < 0.003


def test_recolouring_keeps_detail_and_brightness_order() -> None:
    texture = noise(60).astype(np.float32)
    green = recolour(texture, (20, 60, 10), (120, 180, 60), strength=1)
    assert np.corrcoef(luminance(texture).ravel(), luminance(green).ravel())[0, 1] > 0.98
    assert green.mean((0, 1)) == pytest.approx((70, 120, 35), abs=3)
    assert np.array_equal(recolour(texture, (0, 0, 0), (9, 9, 9), strength=0), texture)


def test_a_library_draws_the_selected_class_at_the_requested_size() -> None:
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[:, :100] = noise(100)
    image[:, 100:] = 200
    library = TextureLibrary(
        [TextureRegion("a", 3, 0, 0, 0, 100), TextureRegion("a", 5, 0, 100, 0, 100)], lambda stem: image
    )
    texture, label = library.select(lambda region: region.label == 5).draw(np.random.default_rng(0), (60, 90))
    assert label == 5
    assert texture.shape == (60, 90, 3)
    assert texture.mean() == pytest.approx(200, rel=0.03)
    assert {library.draw(np.random.default_rng(seed), (30, 30))[1] for seed in range(20)} == {3, 5}


def test_uniform_textures_are_preferred() -> None:
    shaded = np.full((100, 100, 3), 180, dtype=np.uint8)
    shaded[:, 50:] = 40
    images = {"even": noise(100), "shaded": shaded}
    regions = [TextureRegion(stem, 3, 0, 0, 0, 100) for stem in images]
    library = TextureLibrary(regions, images.__getitem__)
    greens = [library.draw(np.random.default_rng(seed), (40, 40))[0].mean((0, 1)) for seed in range(30)]
    assert sum(green[1] > green[2] + 20 for green in greens) >= 27


def test_an_empty_library_cannot_draw() -> None:
    with pytest.raises(IndexError):
        TextureLibrary([], lambda stem: noise(10)).draw(np.random.default_rng(0), (10, 10))
