"""A cell has the least favourable value of its pixels, for any height of the bands of rows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from droneseg.core.classes import BACKGROUND_ID, DEFAULT_CLASSES
from droneseg.core.landing_grid import LandingGrid

WATER_ID, SOFT_ID, MOVING_ID, LANDING_ID = (
    DEFAULT_CLASSES.id_of(name) for name in ("water", "soft-surfaces", "moving-objects", "landing-zones")
)


def probabilities(size: tuple[int, int]) -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).dirichlet(np.ones(len(DEFAULT_CLASSES)), size)
    return np.moveaxis(drawn, 2, 0).astype(np.float32)


def blocks(values: NDArray[np.float32], step: int) -> list[list[NDArray[np.float32]]]:
    height, width = values.shape
    return [[values[y : y + step, x : x + step] for x in range(0, width, step)] for y in range(0, height, step)]


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("max_cells", [10_000, 400, 30])
def test_cells_have_the_least_favourable_value_for_any_bands(rows: int, max_cells: int) -> None:
    values = probabilities((37, 23))
    grid = LandingGrid.empty(DEFAULT_CLASSES, (37, 23), max_cells=max_cells)
    for first in range(0, 37, rows):
        grid.add(values[:, first : first + rows], first)
    danger = sum(values[i] for i in (BACKGROUND_ID, *DEFAULT_CLASSES.unsafe_ids))
    expected = {
        "danger": [[block.max() for block in row] for row in blocks(danger, grid.step)],
        "moving": [[block.max() for block in row] for row in blocks(values[MOVING_ID], grid.step)],
        "landing": [[block.min() for block in row] for row in blocks(values[LANDING_ID], grid.step)],
        "both": [[b.min() for b in row] for row in blocks(values[LANDING_ID] + values[SOFT_ID], grid.step)],
        "most_soft": [[block.max() for block in row] for row in blocks(values[SOFT_ID], grid.step)],
    }
    for name, layer in expected.items():
        assert np.allclose(getattr(grid, name), layer), name
    water = (values.argmax(axis=0) == WATER_ID).astype(np.float32)
    found = grid.likeliest & (1 << WATER_ID) > 0
    assert np.array_equal(found, [[block.max() > 0 for block in row] for row in blocks(water, grid.step)])


def test_the_number_of_cells_is_limited() -> None:
    grid = LandingGrid.empty(DEFAULT_CLASSES, (3000, 4000), max_cells=500_000)
    assert grid.danger.size <= 500_000
    assert grid.step == 5


def test_cells_beyond_the_image_are_not_whole() -> None:
    grid = LandingGrid.empty(DEFAULT_CLASSES, (10, 7), max_cells=20)
    assert grid.step == 2
    assert grid.whole.shape == (5, 4)
    assert grid.whole[:, :3].all()
    assert not grid.whole[:, 3].any()


def test_cells_are_measured_in_pixels_of_the_photograph() -> None:
    grid = LandingGrid.empty(DEFAULT_CLASSES, (100, 200), (slice(10, 210), slice(0, 400)), max_cells=5000)
    assert grid.cell == (4, 4)


@pytest.mark.parametrize(
    ("resampled", "photograph", "max_cells", "farthest"),
    [
        ((100, 200), (100, 200), 10**6, 0),
        ((100, 200), (100, 200), 5000, np.hypot(0.5, 0.5)),
        ((100, 200), (400, 600), 10**6, np.hypot(1.5, 1)),
        ((100, 200), (200, 400), 5000, np.hypot(1.5, 1.5)),
        ((100, 200), (50, 100), 5000, np.hypot(0.25, 0.25)),
    ],
    ids=["a pixel", "pooled", "reduced", "reduced and pooled", "enlarged and pooled"],
)
def test_slack_is_the_distance_of_the_farthest_pixel_from_the_centre_of_its_cell(
    resampled: tuple[int, int], photograph: tuple[int, int], max_cells: int, farthest: float
) -> None:
    height, width = photograph
    grid = LandingGrid.empty(DEFAULT_CLASSES, resampled, (slice(0, height), slice(0, width)), max_cells=max_cells)
    assert grid.slack == pytest.approx(farthest)
