"""Images are resampled, corrected and predicted at several scales as documented, and the views are combined exactly."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.camera import UNKNOWN_GROUND, WarningCode, given_ground
from droneseg.core.classes import Normalisation
from droneseg.core.errors import ModelError
from droneseg.core.runtimes import RuntimeName
from droneseg.data.synthetic import generate_scene
from droneseg.inference.runtimes.base import argmax_and_max
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.sliding_window import (
    SlidingWindowConfig,
    count_tiles,
    gaussian,
    logit_map,
    normalisation_table,
    sliding_window_inference,
    window_starts,
)
from droneseg.inference.views import (
    View,
    ViewCombiner,
    brightness,
    exposure_tables,
    plan_views,
    resample,
    resample_mask,
)
from droneseg.model.bundle import Bundle, Exposure, Manifest, write_bundle
from support.bundles import CONTEXT, TRAINED_AT, VIEWS, make_bundle, write_network

PATCH = (100, 200)
UNKNOWN, COARSER, FINER = WarningCode.UNKNOWN_SCALE, WarningCode.COARSER_THAN_TRAINED, WarningCode.FINER_THAN_TRAINED
REGIONS = [2, 3, 5]  # water, soft surfaces, landing zones


# Plans


@pytest.mark.parametrize(
    ("size", "gsd_m", "scale", "seen", "smaller", "warnings"),
    [
        # two tiles wide: the whole image and a view half-way, reduced by the square root of 2
        ((200, 400), 0.025, 1.0, (200, 400), [(141, 283), (100, 200)], ()),
        # reduced by half to one tile
        ((200, 400), 0.0125, 0.5, (100, 200), [], ()),
        # at most four times smaller than the tiles
        ((1000, 2000), 0.025, 1.0, (1000, 2000), [(500, 1000), (250, 500)], ()),
        # less than twice as large as a tile: only the whole image
        ((150, 300), 0.025, 1.0, (150, 300), [(100, 200)], ()),
        # hardly larger than a tile
        ((102, 204), 0.025, 1.0, (102, 204), [(100, 200)], ()),
        # not larger than a tile
        ((100, 200), 0.025, 1.0, (100, 200), [], ()),
        # the side with more tiles counts
        ((200, 200), 0.025, 1.0, (200, 200), [(141, 141), (100, 100)], ()),
        # coarsest training image
        ((100, 200), 0.037, 1.48, (148, 296), [(100, 200)], ()),
        ((100, 200), 0.0371, 1.484, (148, 297), [(100, 200)], (COARSER,)),
        # 0.1 m per pixel would need four times the size
        ((200, 400), 0.1, 2.0, (400, 800), [(200, 400), (100, 200)], (COARSER,)),
        # enlarged to six tiles, or not at all if there are more
        ((400, 800), 0.05, 1.5, (600, 1200), [(300, 600), (150, 300)], (COARSER,)),
        ((1000, 2000), 0.05, 1.0, (1000, 2000), [(500, 1000), (250, 500)], (COARSER,)),
        # half a tile, and less than that
        ((100, 200), 0.0125, 0.5, (50, 100), [], ()),
        ((100, 200), 0.012, 0.48, (48, 96), [], (FINER,)),
        ((1, 1), 0.001, 0.04, (1, 1), [], (FINER,)),
    ],
)
def test_plan_with_a_known_scale_has_the_resolution_of_the_training(
    size: tuple[int, int],
    gsd_m: float,
    scale: float,
    seen: tuple[int, int],
    smaller: list[tuple[int, int]],
    warnings: tuple[WarningCode, ...],
) -> None:
    plan = plan_views(size, PATCH, given_ground(gsd_m), TRAINED_AT, VIEWS)
    assert plan.scale == pytest.approx(scale)
    assert (plan.size, plan.warnings) == (seen, warnings)
    weight = 1 / (len(smaller) + 1)
    assert plan.views == tuple(View(of_view, weight, only_regions=True) for of_view in smaller)


@pytest.mark.parametrize(
    ("size", "scale", "seen", "whole"),
    [
        ((1000, 2000), 0.2, (200, 400), (100, 200)),
        ((600, 300), 1 / 3, (200, 100), (100, 50)),
        ((150, 300), 1.0, (150, 300), (100, 200)),
        ((110, 220), 1.0, (110, 220), (100, 200)),
        ((100, 200), 1.0, (100, 200), None),
        ((50, 100), 1.0, (50, 100), None),
    ],
)
def test_plan_with_an_unknown_scale_has_two_tiles_and_the_whole_image(
    size: tuple[int, int], scale: float, seen: tuple[int, int], whole: tuple[int, int] | None
) -> None:
    plan = plan_views(size, PATCH, UNKNOWN_GROUND, TRAINED_AT, VIEWS)
    assert plan.scale == pytest.approx(scale)
    assert (plan.size, plan.warnings) == (seen, (UNKNOWN,))
    assert plan.views == (() if whole is None else (View(whole, 0.7, only_regions=False),))


@pytest.mark.parametrize("gsd_m", [None, 0.005])
def test_plan_without_training_resolution_leaves_the_image_as_it_is(gsd_m: float | None) -> None:
    plan = plan_views((1000, 2000), PATCH, given_ground(gsd_m), None, VIEWS)
    assert (plan.size, plan.views, plan.scale, plan.warnings) == ((1000, 2000), (), 1.0, (UNKNOWN,))


@pytest.mark.parametrize("gsd_m", [None, 0.025])
def test_plan_without_context_has_no_smaller_views(gsd_m: float | None) -> None:
    assert plan_views((1000, 2000), PATCH, given_ground(gsd_m), TRAINED_AT, None).views == ()


def known_or_unknown_scale(gsd_m: float | None, tiles: float) -> float:
    """An image of known scale is at most doubled, and not beyond 6 tiles; any other is reduced to 2 tiles."""
    return min(1, 2 / tiles) if gsd_m is None else min(2, max(1, 6 / tiles), gsd_m / 0.025)


@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    patch=st.tuples(st.integers(8, 1024), st.integers(8, 1024)),
    gsd_m=st.none() | st.floats(1e-4, 10),
)
def test_plans_stay_within_their_limits(size: tuple[int, int], patch: tuple[int, int], gsd_m: float | None) -> None:
    plan = plan_views(size, patch, given_ground(gsd_m), TRAINED_AT, CONTEXT)
    tiles = max(side / tile for side, tile in zip(size, patch, strict=True))
    assert plan.scale == pytest.approx(known_or_unknown_scale(gsd_m, tiles))
    assert all(abs(seen - max(1, side * plan.scale)) <= 0.5 for seen, side in zip(plan.size, size, strict=True))
    assert len(plan.views) <= 2
    assert all(0 < view.weight < 1 for view in plan.views)
    assert sum(view.weight for view in plan.views) < 1
    larger = plan.size
    for view in plan.views:
        assert all(1 <= part <= side for part, side in zip(view.size, larger, strict=True))
        larger = view.size
    if plan.views:
        fits_a_tile = all(part <= tile + 1 for part, tile in zip(larger, patch, strict=True))
        a_quarter = all(abs(part - max(1, side / 4)) <= 0.5 for part, side in zip(larger, plan.size, strict=True))
        assert fits_a_tile or a_quarter


# Resampling


def test_smaller_images_are_means_of_areas() -> None:
    grey = np.array([[0, 40, 100, 100], [80, 120, 0, 0], [7, 7, 252, 0], [7, 7, 0, 0]], np.uint8)
    image = np.stack([grey, 255 - grey, np.zeros_like(grey)], axis=-1)
    smaller = resample(image, (2, 2))
    assert smaller[..., 0].tolist() == [[60, 50], [7, 63]]
    assert smaller[..., 1].tolist() == [[195, 205], [248, 192]]
    assert not smaller[..., 2].any()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_reduction_preserves_the_mean(rows: int, columns: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (6 * rows, 6 * columns, 3), dtype=np.uint8)
    for factor in (2, 3, 6):
        smaller = resample(image, (6 * rows // factor, 6 * columns // factor))
        assert np.abs(smaller.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() <= 1


def test_larger_images_are_interpolated_linearly() -> None:
    image = np.repeat(np.array([[[0], [100]]], np.uint8), 3, axis=2)
    assert resample(image, (2, 4))[..., 0].tolist() == [[0, 25, 75, 100]] * 2


def test_images_of_the_right_size_are_not_copied() -> None:
    image, mask = np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), np.uint8)
    assert resample(image, (3, 4)) is image
    assert resample_mask(mask, (3, 4)) is mask


def test_masks_are_resampled_without_new_classes() -> None:
    mask = np.array([[1, 5], [3, 2]], np.uint8)
    assert resample_mask(mask, (4, 4)).tolist() == [[1, 1, 5, 5]] * 2 + [[3, 3, 2, 2]] * 2
    assert resample_mask(np.repeat(np.repeat(mask, 3, 0), 3, 1), (2, 2)).tolist() == mask.tolist()


# Exposure


def blocks(*colours: int | tuple[int, int, int]) -> NDArray[np.uint8]:
    """An image of 8x8 blocks in these colours, side by side; brightness is measured once in each block."""
    pixels = [(colour,) * 3 if isinstance(colour, int) else colour for colour in colours]
    return np.repeat(np.repeat(np.array([pixels], np.uint8), 8, axis=0), 8, axis=1)


FIVE = blocks(40, 60, 80, 100, 120)


def exposure(*methods: str, low: float = 0.41, high: float = 0.48, target: float = 0.6) -> Exposure:
    return Exposure(methods=methods, range=(low, high), target=target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (FIVE, 80 / 255),
        (blocks((100, 0, 0)), 0.299 * 100 / 255),
        (blocks((0, 100, 0)), 0.587 * 100 / 255),
        (blocks((0, 0, 100)), 0.114 * 100 / 255),
        (blocks(0, 0, 0, 50, 70, 200), 70 / 255),  # black is ignored
        (blocks(10, 10, 10, 250, 250), 10 / 255),  # the median, not the mean
        (blocks(0, 0), 0.0),
        (blocks(255), 1.0),
    ],
)
def test_brightness_is_the_median_luma(image: NDArray[np.uint8], expected: float) -> None:
    assert brightness(image) == pytest.approx(expected)


# exponent of the gamma: ln(0.6) / ln(80 / 255) = 0.44066; the percentiles are 40 and 120
GAMMA = {0: 0, 40: 113, 60: 135, 80: 153, 120: 183, 255: 255}
STRETCH = {0: 0, 20: 0, 40: 0, 60: 64, 100: 191, 120: 255, 200: 255, 255: 255}
MIXED = {0: 0, 40: 56, 60: 99, 120: 219, 255: 255}


@pytest.mark.parametrize(("method", "values"), [("gamma", GAMMA), ("stretch", STRETCH), ("mixed", MIXED)])
def test_exposure_tables_have_the_computed_values(method: str, values: dict[int, int]) -> None:
    (table,) = exposure_tables(FIVE, exposure(method))
    assert table is not None
    assert (table.dtype, table.shape) == (np.uint8, (256,))
    assert {value: int(table[value]) for value in values} == values


def test_stretch_ignores_the_darkest_and_the_brightest_percent() -> None:
    (table,) = exposure_tables(blocks(*range(200)), exposure("stretch", low=0.9, high=1))
    assert table is not None
    assert [int(table[value]) for value in (1, 2, 3, 196, 198)] == [0, 0, 1, 254, 255]


def test_exposure_tables_are_in_the_order_of_the_methods() -> None:
    tables = exposure_tables(FIVE, exposure("stretch", "gamma"))
    assert [int(table[60]) for table in tables if table is not None] == [64, 135]


def test_bright_images_are_darkened() -> None:
    (table,) = exposure_tables(blocks(200, 210, 220), exposure("gamma"))
    assert table is not None
    assert table[210] == 153  # 0.6


@pytest.mark.parametrize(
    ("image", "correction"),
    [
        (FIVE, None),
        (FIVE, exposure("mixed", low=79.99 / 255, high=0.9)),
        (FIVE, exposure("mixed", low=0.1, high=80.01 / 255)),
        (blocks(0, 0), exposure("mixed")),
        (blocks(255), exposure("mixed")),
    ],
    ids=["no correction", "darkest in the range", "brightest in the range", "black", "white"],
)
def test_images_that_need_no_correction_are_unchanged(image: NDArray[np.uint8], correction: Exposure | None) -> None:
    assert exposure_tables(image, correction) == (None,)


@pytest.mark.parametrize("value", [1, 30, 90, 200, 254])
def test_uniform_images_get_finite_tables(value: int) -> None:
    for table in exposure_tables(blocks(value), exposure("gamma", "stretch", "mixed")):
        assert table is not None
        assert (np.diff(table.astype(int)) >= 0).all()
        assert (table[0], table[255]) == (0, 255)


# Combination


def logits_of(*values: float, size: tuple[int, int] = (1, 1)) -> NDArray[np.float32]:
    """Logits of six classes that are the same in every pixel."""
    return np.broadcast_to(np.array(values, np.float32)[:, None, None], (6, *size)).copy()


@pytest.mark.parametrize(
    ("weight", "temperature", "winner", "probability"),
    [
        # exp(0.7) of 4 + exp(0.7) + exp(0.3), where 0.7 of the votes say water and 0.3 landing zone
        (0.7, 1.0, 2, 0.27347),
        (0.3, 1.0, 5, 0.27347),
        # the same with halved exponents
        (0.7, 2.0, 2, 0.21564),
    ],
)
def test_whole_view_wins_by_its_weight(weight: float, temperature: float, winner: int, probability: float) -> None:
    whole = View((1, 1), weight, only_regions=False)
    combiner = ViewCombiner([(whole, logits_of(0, 0, 1, 0, 0, 0))], (4, 5), REGIONS, temperature)
    ids, winning = combiner.classify(logits_of(0, 0, 0, 0, 0, 1, size=(4, 5)), 0)
    assert (ids == winner).all()
    assert winning == pytest.approx(np.full((4, 5), probability), abs=1e-5)
    assert combiner.disagreement == 1


def softmax_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


def test_coarse_views_exchange_only_region_classes() -> None:
    # objects in the tiles: obstacle, moving object, and a landing zone that the coarse view calls water
    tiles = np.stack([(0, 3, 0, 0, 0, 2), (0, 0, 0, 0, 3, 2), (0, 0, 1, 0, 0, 2)], axis=1).astype(np.float32)[:, None]
    coarse = logits_of(0, 50, 9, 0, 50, 0)
    combiner = ViewCombiner([(View((1, 1), 0.5, only_regions=True), coarse)], (1, 3), REGIONS, 1.0)
    ids, winning = combiner.classify(tiles, 0)
    assert ids.tolist() == [[1, 4, 2]]
    obstacle = np.exp(3) / (np.exp(3) + np.exp(2) + 4)  # as without the coarse view
    # the regions have (exp(1) + 1 + exp(2)) of (exp(1) + exp(2) + 4); the logits of their means are 5, 0 and 1
    regions = (np.exp(1) + 1 + np.exp(2)) / (np.exp(1) + np.exp(2) + 4)
    water = regions * np.exp(5) / (np.exp(5) + 1 + np.exp(1))
    assert winning[0] == pytest.approx([obstacle, obstacle, water], abs=1e-5)


def expected_probabilities(
    tiles: NDArray[np.float32], coarse: Sequence[tuple[View, NDArray[np.float32]]], temperature: float
) -> NDArray[np.float64]:
    """Probabilities of a whole image at once, from views that are enlarged as a whole."""
    _, height, width = tiles.shape
    enlarged = [
        np.stack([np.asarray(pillow.fromarray(channel).resize((width, height), 2)) for channel in logits])
        for _, logits in coarse
    ]
    rest = 1 - sum(view.weight for view, _ in coarse)
    mixed = rest * tiles.astype(np.float64)
    for (view, _), logits in zip(coarse, enlarged, strict=True):
        mixed += view.weight * logits
    if not coarse[0][0].only_regions:
        return softmax_of(mixed / temperature)
    alone = softmax_of(tiles.astype(np.float64) / temperature)
    result = alone.copy()
    result[REGIONS] = softmax_of(mixed[REGIONS] / temperature) * alone[REGIONS].sum(axis=0)
    return result


@pytest.mark.parametrize("only_regions", [False, True])
@pytest.mark.parametrize("heights", [[150], [1] * 150, [64, 64, 22], [7, 100, 43]], ids=str)
def test_bands_of_any_height_give_the_same_result(heights: list[int], only_regions: bool) -> None:
    rng = np.random.default_rng(1)
    size = (150, 37)
    tiles = rng.normal(0, 3, (6, *size)).astype(np.float32)
    sizes = ((71, 19), (33, 9)) if only_regions else ((61, 15),)
    weight = 1 / 3 if only_regions else 0.7
    coarse = [
        (View(of_view, weight, only_regions), rng.normal(0, 3, (6, *of_view)).astype(np.float32)) for of_view in sizes
    ]
    combiner = ViewCombiner(coarse, size, REGIONS, 1.3)
    tops = np.cumsum([0, *heights])
    parts = [combiner.classify(tiles[:, top : top + rows], int(top)) for top, rows in zip(tops, heights, strict=False)]
    ids, winning = (np.concatenate(bands) for bands in zip(*parts, strict=True))
    expected = expected_probabilities(tiles, coarse, 1.3)
    assert expected.sum(axis=0) == pytest.approx(np.ones(size))
    assert np.array_equal(ids, expected.argmax(axis=0))
    assert winning == pytest.approx(expected.max(axis=0), abs=1e-5)
    smallest = np.stack([np.asarray(pillow.fromarray(channel).resize((37, 150), 2)) for channel in coarse[-1][1]])
    in_tiles, in_smallest = tiles.argmax(axis=0), smallest.argmax(axis=0)
    exchanged = np.isin(in_tiles, REGIONS) & np.isin(in_smallest, REGIONS) & (in_tiles != in_smallest)
    assert combiner.disagreement == pytest.approx(exchanged.mean())


@pytest.mark.parametrize("only_regions", [False, True])
def test_combined_probabilities_sum_to_one(only_regions: bool) -> None:
    rng = np.random.default_rng(2)
    view = View((5, 4), 0.4, only_regions)
    combiner = ViewCombiner([(view, rng.normal(0, 9, (6, 5, 4)).astype(np.float32))], (20, 16), REGIONS, 0.7)
    combined, _ = combiner._combine(rng.normal(0, 9, (6, 20, 16)).astype(np.float32), 0)
    assert combined.min() >= 0
    assert combined.sum(axis=0) == pytest.approx(np.ones((20, 16)), abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken", ["tiles", "view"])
def test_logits_that_are_not_finite_raise_an_error(broken: str, value: float) -> None:
    tiles, coarse = logits_of(0, 0, 0, 0, 0, 1, size=(4, 4)), logits_of(0, 0, 1, 0, 0, 0)
    {"tiles": tiles, "view": coarse}[broken][2, 0, 0] = value
    combiner = ViewCombiner([(View((1, 1), 0.7, only_regions=False), coarse)], (4, 4), REGIONS, 1.0)
    with pytest.raises(ModelError, match="non-finite"):
        combiner.classify(tiles, 0)


def test_lowest_class_wins_ties() -> None:
    scores = np.random.default_rng(3).integers(-2, 2, (6, 40, 50)).astype(np.float32)
    ids, best = argmax_and_max(scores)
    assert np.array_equal(ids, scores.argmax(axis=0))
    assert np.array_equal(best, scores.max(axis=0))


# Tiles


class RecordingRuntime:
    """Runtime whose logits are the red byte for class 0 and 100 for class 1, and that keeps the tiles."""

    name, batch = "recording", 2

    def __init__(self) -> None:
        self.tiles: list[NDArray[np.uint8]] = []

    def logits(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.tiles.extend(patches.copy())
        red = patches[..., 0].astype(np.float32)
        return np.stack([red, np.full_like(red, 100)], axis=1)

    def argmax(self, patches: NDArray[np.uint8], temperature: float = 1.0) -> tuple[NDArray[np.uint8], object]:
        logits = self.logits(patches)
        return logits.argmax(axis=1).astype(np.uint8), softmax_of(logits.transpose(1, 0, 2, 3)).max(axis=0)


def window(patch: tuple[int, int], border: str = "mirror", mirror_axes: tuple[int, ...] = ()) -> SlidingWindowConfig:
    return SlidingWindowConfig(patch, 0.5, mirror_axes, accumulate_float16=False, border=border)  # type: ignore[arg-type]


def grey_image(rows: object) -> NDArray[np.uint8]:
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("rows", "patch", "mirrored", "black"),
    [
        ([[1, 2, 3]], (1, 9), [[3, 2, 1, 1, 2, 3, 3, 2, 1]], [[0, 0, 0, 1, 2, 3, 0, 0, 0]]),
        ([[1], [2]], (5, 2), [[1, 1], [1, 1], [2, 2], [2, 2], [1, 1]], [[0, 0], [1, 0], [2, 0], [0, 0], [0, 0]]),
        ([[7]], (2, 3), [[7] * 3] * 2, [[0, 7, 0], [0, 0, 0]]),
        ([[1, 2], [3, 4]], (2, 2), [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    ],
)
@pytest.mark.parametrize("border", ["mirror", "black"])
def test_tiles_are_padded_by_their_border(
    rows: object, patch: tuple[int, int], mirrored: object, black: object, border: str
) -> None:
    runtime, image = RecordingRuntime(), grey_image(rows)
    found = sliding_window_inference(runtime, image, (None,), window(patch, border))
    (tile,) = runtime.tiles
    assert tile[..., 0].tolist() == (mirrored if border == "mirror" else black)
    assert found.mask.shape == image.shape[:2]


def test_tables_are_applied_before_the_border_is_mirrored() -> None:
    runtime, inverted = RecordingRuntime(), np.arange(256, dtype=np.uint8)[::-1].copy()
    sliding_window_inference(runtime, grey_image([[1, 2]]), (inverted,), window((1, 4)))
    assert runtime.tiles[0][..., 0].tolist() == [[254, 254, 253, 253]]


@pytest.mark.parametrize("axes", [(), (0, 1)])
@pytest.mark.parametrize("size", [(4, 4), (9, 11)])
def test_logits_are_averaged_over_the_tables(size: tuple[int, int], axes: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    halved, zero = (np.arange(256) // 2).astype(np.uint8), np.zeros(256, np.uint8)
    tables = (None, halved, zero)
    expected = (image[..., 0].astype(float) + halved[image[..., 0]]) / 3
    runtime = RecordingRuntime()
    logits, _ = logit_map(runtime, image, tables, window((4, 4), mirror_axes=axes))
    assert logits[0] == pytest.approx(expected, rel=1e-5)
    assert logits[1] == pytest.approx(np.full(size, 100), rel=1e-5)
    tiles = count_tiles(size, window((4, 4)))
    assert len(runtime.tiles) == tiles * len(tables) * 2 ** len(axes)
    found = sliding_window_inference(runtime, image, tables, window((4, 4), mirror_axes=axes))
    assert np.array_equal(found.mask, expected <= 100)


# Whole path


def texture_network(path: Path) -> Path:
    """A network of one 3x3 convolution with random weights: its output depends on scale, exposure and borders."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    write_network(path)
    weights = np.random.default_rng(5).normal(0, 2, (6, 3, 3, 3)).astype(np.float32)
    model = onnx.load(path)
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "kernel"))
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT
    onnx.save(model, path)
    return path


def windows_alone(segmenter: BundleSegmenter, image: NDArray[np.uint8], *, exact: bool) -> NDArray[np.uint8]:
    """nnU-Net's sliding window, tile by tile over the whole image: zeros beyond it, steps of half a tile."""
    patch, dtype = (16, 24), np.float16 if exact else np.float32
    before = [max(tile - side, 0) // 2 for side, tile in zip(image.shape, patch, strict=False)]
    after = [max(tile - side, 0) - first for side, tile, first in zip(image.shape, patch, before, strict=False)]
    padded = np.pad(image, [*zip(before, after, strict=True), (0, 0)])
    weights = gaussian(patch).astype(np.float32)
    total, weight = np.zeros((6, *padded.shape[:2]), dtype), np.zeros(padded.shape[:2], dtype)
    for top in window_starts(padded.shape[0], 16, 0.5):
        for left in window_starts(padded.shape[1], 24, 0.5):
            area = slice(top, top + 16), slice(left, left + 24)
            tile = padded[area][None]
            logits = segmenter._runtime.logits(np.ascontiguousarray(tile))
            if exact:
                for axes in ((0,), (1,), (0, 1)):
                    flipped = np.ascontiguousarray(np.flip(tile, [1 + axis for axis in axes]))
                    logits += np.flip(segmenter._runtime.logits(flipped), [2 + axis for axis in axes])
                logits /= 4
            total[:, *area] = (total[:, *area] + logits[0] * weights).astype(dtype)
            weight[area] = (weight[area] + weights).astype(dtype)
    mean = (total / weight)[:, before[0] : before[0] + image.shape[0], before[1] : before[1] + image.shape[1]]
    return mean.argmax(axis=0).astype(np.uint8)


def dark_scene(height: int, width: int) -> NDArray[np.uint8]:
    return (254 * (generate_scene(4, width, height)[0] / 255) ** 2.5).astype(np.uint8) + 1


@pytest.mark.parametrize("size", [(61, 83), (16, 24), (40, 9), (7, 100)])
@pytest.mark.parametrize("gsd_m", [None, 0.01])
@pytest.mark.parametrize("case", ["plain", "format 1", "exact"])
def test_plain_format_1_and_exact_use_the_pixels_as_they_are(
    tmp_path: Path, case: str, gsd_m: float | None, size: tuple[int, int]
) -> None:
    network = texture_network(tmp_path / "network.onnx")
    new = make_bundle(tmp_path / "new", network=network, ground=TRAINED_AT, context=CONTEXT)
    old = make_bundle(tmp_path / "old", network=network, format_version=1)
    segmenter = BundleSegmenter(
        old if case == "format 1" else new,
        profile="exact" if case == "exact" else "fast",
        runtime=RuntimeName.ONNXRUNTIME,
    )
    image = dark_scene(*size)
    found = segmenter.segment(image, given_ground(gsd_m), plain=case == "plain")
    assert np.array_equal(found.mask, windows_alone(segmenter, image, exact=case == "exact"))
    assert (found.seen_size, found.disagreement, found.ground.scale) == (size, None, 1.0)
    with_views = BundleSegmenter(new, runtime=RuntimeName.ONNXRUNTIME).segment(image, given_ground(gsd_m))
    assert not np.array_equal(with_views.mask, found.mask)


def changed(bundle: Bundle, folder: Path, **update: object) -> Bundle:
    def build(files: object) -> Manifest:
        return bundle.manifest.model_copy(update={**update, "files": files})

    return write_bundle(folder, build, {name: bundle.folder / name for name in bundle.manifest.files})


@pytest.mark.parametrize("normalisation", list(Normalisation))
@pytest.mark.parametrize("methods", [("mixed",), ("gamma", "stretch")], ids=str)
@pytest.mark.parametrize("size", [(16, 24), (11, 9)], ids=["one tile", "less than a tile"])
def test_exposure_is_corrected_before_the_normalisation(
    tmp_path: Path, normalisation: Normalisation, methods: tuple[str, ...], size: tuple[int, int]
) -> None:
    correction = exposure(*methods, target=0.44)
    plain = make_bundle(
        tmp_path / "plain",
        network=texture_network(tmp_path / "network.onnx"),
        ground=TRAINED_AT,
        context=VIEWS.model_copy(update={"exposure": correction}),
    )
    bundle = changed(plain, tmp_path / "bundle", normalisation=normalisation)
    segmenter = BundleSegmenter(bundle, runtime=RuntimeName.ONNXRUNTIME)
    image = dark_scene(*size)
    logits = np.zeros((6, *size))
    for table in exposure_tables(image, correction):
        assert table is not None
        copy = table[image]
        lookup = None if normalisation == Normalisation.RGB_TO_0_1 else normalisation_table(copy, normalisation)
        logits += logit_map(segmenter._runtime, copy, (lookup,), window((16, 24), "black"))[0] / len(methods)
    found = segmenter.segment(image, given_ground(0.025)).mask
    assert (found == logits.argmax(axis=0)).mean() > 0.99
    assert (found == segmenter.segment(image, plain=True).mask).mean() < 0.97


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> BundleSegmenter:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return BundleSegmenter(make_bundle(folder, ground=TRAINED_AT, context=CONTEXT))


@pytest.mark.parametrize("gsd_m", [None, 0.004, 0.025, 0.2])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (300, 1), (3, 400), (211, 17), (61, 83)])
def test_mask_has_the_size_of_the_image(segmenter: BundleSegmenter, size: tuple[int, int], gsd_m: float | None) -> None:
    found = segmenter.segment(dark_scene(*size), given_ground(gsd_m))
    assert (found.mask.shape, found.mask.dtype) == (size, np.uint8)
    assert 0 < found.confidence <= 1
    assert sum(found.class_fractions.values()) == pytest.approx(1)
    tiles = max(size[0] / 16, size[1] / 24)
    assert found.ground.scale == pytest.approx(known_or_unknown_scale(gsd_m, tiles), rel=1e-4)


@pytest.mark.parametrize("gsd_m", [0.0125, 0.05])
def test_mask_of_a_resampled_image_aligns_with_its_pixels(tmp_path: Path, gsd_m: float) -> None:
    ids = np.random.default_rng(0).integers(1, 6, (10, 13)).astype(np.uint8)
    colours = np.array([(0, 0, 0), (5, 5, 5), (0, 0, 250), (0, 250, 0), (250, 0, 0), (250, 250, 250)], np.uint8)
    expected = np.repeat(np.repeat(ids, 8, axis=0), 8, axis=1)
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", ground=TRAINED_AT))
    found = segmenter.segment(colours[expected], given_ground(gsd_m)).mask
    inner = np.tile(np.pad(np.ones((4, 4), bool), 2), ids.shape)  # without the borders between blocks
    assert np.array_equal(found[inner], expected[inner])
    if gsd_m < 0.025:
        assert np.array_equal(found, expected)  # each block of 8x8 becomes 4x4 whole pixels


@pytest.mark.parametrize("gsd_m", [None, 0.0125, 0.025])
def test_black_border_is_cropped_before_the_views(tmp_path: Path, gsd_m: float | None) -> None:
    network = texture_network(tmp_path / "network.onnx")
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", network=network, ground=TRAINED_AT, context=CONTEXT))
    image = dark_scene(61, 83)
    framed = np.zeros((100, 101, 3), np.uint8)
    framed[20:81, 5:88] = image
    alone, found = (segmenter.segment(pixels, given_ground(gsd_m)) for pixels in (image, framed))
    assert np.array_equal(found.mask[20:81, 5:88], alone.mask)
    outside = found.mask.copy()
    outside[20:81, 5:88] = 0
    assert not outside.any()
    share = 61 * 83 / (100 * 101)
    assert found.confidence == pytest.approx(alone.confidence * share + 1 - share)
    assert (found.seen_size, found.statistics, found.ground) == (alone.seen_size, alone.statistics, alone.ground)
