"""Shadows darken a part of an image and nothing else."""

import numpy as np

from droneseg.data.shadows import FREQUENCIES, cast_shadow, draw_shadow


def test_shadows_are_shares_and_differ_in_size_and_softness() -> None:
    shades = [draw_shadow(np.random.default_rng(seed), (90, 130)) for seed in range(60)]
    assert all(shade.shape == (90, 130) and shade.min() >= 0 and shade.max() <= 1 for shade in shades)
    shares = [float(shade.mean()) for shade in shades]
    assert min(shares) < 0.15
    assert max(shares) > 0.6
    hard = [float(np.mean((shade > 0.05) & (shade < 0.95))) for shade in shades]
    assert min(hard) < 0.05
    assert max(hard) > 0.3


def test_a_shadow_darkens_and_keeps_colours_similar() -> None:
    pixels = np.full((90, 130, 3), 160, dtype=np.float32)
    for seed in range(30):
        shaded = cast_shadow(pixels, np.random.default_rng(seed))
        ratio = shaded / pixels
        assert ratio.max() <= 1.09
        assert ratio.min() > 0.2
        red, _, blue = ratio.reshape(-1, 3)[shaded.sum(-1).argmin()]
        assert blue >= red - 1e-3  # light from the sky is bluish


def test_shadow_frequencies_are_shares() -> None:
    assert abs(sum(FREQUENCIES.values()) - 1) < 1e-9
