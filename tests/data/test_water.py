"""Rendered water has the pixel values of a photograph, and all groups of colours occur."""

import numpy as np
import pytest

from droneseg.data.shapes import Outline, draw_outline, smooth_step
from droneseg.data.water import COLOURS, FREQUENCIES, Surface, render_water

SIZE = (90, 120)


def surface(seed: int, kind: str = "band", exposure: float = 1.0) -> Surface:
    outline = draw_outline(np.random.default_rng(seed), SIZE, kinds={kind: 1})
    grain = np.random.default_rng(seed).normal(120, 15, (*SIZE, 3)).astype(np.float32)
    return Surface(grain, smooth_step(outline.distance, -1, 1), outline, exposure, 0.3, min(SIZE))


@pytest.mark.parametrize("kind", ["band", "pond", "shore", "basin", "frame"])
def test_water_has_plausible_pixel_values_for_every_outline(kind: str) -> None:
    for seed in range(12):
        water = render_water(surface(seed, kind), np.random.default_rng(seed))
        assert water.shape == (*SIZE, 3)
        assert water.dtype == np.float32
        assert np.isfinite(water).all()
        assert np.percentile(water, 1) > -40
        assert np.percentile(water, 99) < 290


def test_water_is_reproducible_and_varies() -> None:
    first, second, other = (render_water(surface(1), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert np.abs(first - other).mean() > 1


def test_dark_water_is_frequent_and_pale_water_occurs() -> None:
    brightness = [
        float(np.median(render_water(surface(seed, "frame"), np.random.default_rng(seed)))) for seed in range(80)
    ]
    assert np.mean([value < 60 for value in brightness]) > 0.3
    assert np.mean([value > 100 for value in brightness]) > 0.1


def test_water_in_a_dark_photograph_is_darker() -> None:
    means = [
        np.mean(
            [render_water(surface(seed, exposure=exposure), np.random.default_rng(seed)).mean() for seed in range(12)]
        )
        for exposure in (0.5, 1.0)
    ]
    assert means[0] < 0.75 * means[1]


def test_every_group_of_colours_has_a_frequency() -> None:
    assert set(COLOURS) == set(FREQUENCIES)
    assert sum(FREQUENCIES.values()) == pytest.approx(1)


def test_a_real_texture_keeps_its_detail() -> None:
    pattern = np.zeros((*SIZE, 3), dtype=np.float32)
    pattern[::2] = 60
    frame = Outline(np.full(SIZE, 1e4, dtype=np.float32), 0.0, "frame")
    full = Surface(pattern + 90, np.ones(SIZE, dtype=np.float32), frame, 1.0, 0.3, min(SIZE))
    water = render_water(full, np.random.default_rng(3), texture=pattern + 80)
    assert np.abs(water[1::2].mean() - water[::2].mean()) > 5
