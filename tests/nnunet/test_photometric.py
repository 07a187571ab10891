"""Photometric augmentation: each kind of change by itself."""

import numpy as np
import pytest

from droneseg.data.synthetic import generate_scene
from droneseg.nnunet.photometric import PhotometricAugmentation
from droneseg.nnunet.trainer_settings import TrainerSettings

SCENE = generate_scene(1, 128, 96)[0]
GREY = np.full((64, 80, 3), 100, np.uint8)


def augmented(image: np.ndarray, count: int = 40, **shares: float) -> np.ndarray:
    """Return differently augmented copies of an image, as float."""
    augment = PhotometricAugmentation(TrainerSettings(crop_scales=(1, 1), **shares))  # type: ignore[arg-type]  # shares
    rng = np.random.default_rng(0)
    before = image.copy()
    results = np.stack([augment(image, rng) for _ in range(count)])
    np.testing.assert_array_equal(image, before, err_msg="the input is not changed")
    assert results.dtype == np.uint8
    return results.astype(float)


def test_nothing_changes_without_shares() -> None:
    assert (augmented(SCENE) == SCENE).all()


def test_share_is_the_fraction_of_changed_crops() -> None:
    changed = (augmented(SCENE, 400, exposure_share=0.25) != SCENE).any((1, 2, 3))
    assert changed.mean() == pytest.approx(0.25, abs=0.07)


def test_exposure_multiplies_all_colours() -> None:
    levels = augmented(GREY, exposure_share=1)[:, 0, 0]
    assert (levels == levels[:, :1]).all()
    assert 25 <= levels.min() < 40
    assert 160 < levels.max() <= 200


def test_gamma_keeps_black_and_white() -> None:
    ends = np.zeros((8, 8, 3), np.uint8)
    ends[4:] = 255
    assert (augmented(ends, gamma_share=1) == ends).all()
    levels = augmented(GREY, gamma_share=1)[:, 0, 0, 0]
    # 255 * (100 / 255) ** 2 and ** 0.5
    assert 39 <= levels.min() < 50
    assert 140 < levels.max() <= 160


def test_contrast_spreads_around_the_middle() -> None:
    spreads = augmented(SCENE, contrast_share=1).std((1, 2, 3)) / SCENE.std()
    assert 0.5 < spreads.min() < 0.75
    assert 1.1 < spreads.max() < 1.6


def test_colour_cast_changes_colours_separately() -> None:
    levels = augmented(GREY, cast_share=1)[:, 0, 0]
    assert (levels.max(1) - levels.min(1)).max() > 20
    assert 79 <= levels.min() <= levels.max() <= 126


def test_haze_brightens_dark_regions_and_lowers_contrast() -> None:
    hazy = augmented(SCENE, haze_share=1)
    assert (hazy.std((1, 2, 3)) < SCENE.std()).all()
    assert (hazy.min((1, 2, 3)) > SCENE.min()).all()


def test_shadows_darken_a_part_of_the_crop() -> None:
    levels = augmented(GREY, shadow_share=1)[..., 0]
    assert levels.max() <= 100
    partly = (levels.max((1, 2)) > 90) & (levels.min((1, 2)) < 80)
    assert partly.mean() > 0.5
    assert levels.min() > 25


def test_dark_crops_are_dark_and_noisy() -> None:
    dark = augmented(GREY, dark_share=1, exposure_share=1)
    assert dark.mean((1, 2, 3)).max() < 40
    assert (dark.std((1, 2)).mean(1) > 1).all()


def test_blur_noise_and_compression_keep_the_mean() -> None:
    changed = augmented(SCENE, blur_share=1)
    assert np.abs(changed.mean((1, 2, 3)) - SCENE.mean()).max() < 2
    sharpness = np.abs(np.diff(changed, axis=2)).mean((1, 2, 3)) / np.abs(np.diff(SCENE.astype(float), axis=1)).mean()
    assert sharpness.min() < 0.8
    assert sharpness.max() > 1.1
