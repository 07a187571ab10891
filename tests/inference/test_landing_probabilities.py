"""The probabilities for landing sites are those of the mask, whatever the runtime, the profile and the size."""

import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.camera import UNKNOWN_GROUND, Ground, given_ground
from droneseg.core.classes import BACKGROUND_ID, DEFAULT_CLASSES, Role
from droneseg.core.landing_grid import LandingGrid
from droneseg.core.runtimes import RuntimeName
from droneseg.data.synthetic import generate_scene
from droneseg.inference.landing import LandingOptions, admissible, find_sites
from droneseg.inference.probability_map import QUANTISATION_ERROR
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.self_check import start_checked_runtime
from droneseg.model.bundle import Bundle, Calibration
from support.bundles import TRAINED_AT, VIEWS, make_bundle, write_network

WARM = Calibration(temperature=2.0, source="test")
LAYERS = [field.name for field in fields(LandingGrid) if field.name not in ("classes", "pixels", "box", "step")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return make_bundle(folder, ground=TRAINED_AT, context=VIEWS, calibration=WARM)


# one tile, with and without padding; tiles with views; a photograph of half the ground resolution
CASES = [
    ((16, 24), UNKNOWN_GROUND),
    ((10, 20), UNKNOWN_GROUND),
    ((60, 90), UNKNOWN_GROUND),
    ((60, 90), given_ground(0.0125)),
]


@pytest.mark.parametrize("runtime", RuntimeName)
@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize(("size", "ground"), CASES)
def test_probabilities_for_landing_are_those_of_the_map(
    bundle: Bundle, size: tuple[int, int], ground: Ground, profile: str, runtime: RuntimeName
) -> None:
    image = generate_scene(1, size[1], size[0])[0]
    segmenter = BundleSegmenter(bundle, profile=profile, runtime=runtime)
    before = segmenter.segment(image, ground)
    found = segmenter.segment(image, ground, landing=True)
    after = segmenter.segment(image, ground)
    for other in (found, after):
        assert np.array_equal(other.mask, before.mask)
        assert other.confidence == pytest.approx(before.confidence, abs=1e-6)
    values = segmenter.probabilities(image, ground)[2].values.astype(np.float32) / 255
    expected = LandingGrid.empty(DEFAULT_CLASSES, (values.shape[1], values.shape[2]))
    expected.add(values, 0)
    assert found.landing_grid is not None
    for name in set(LAYERS) - {"likeliest"}:
        layer = getattr(found.landing_grid, name)
        assert np.abs(layer - getattr(expected, name)).max() <= 4 * QUANTISATION_ERROR + 1e-5, name


def test_threads_do_not_mix_their_probabilities(bundle: Bundle) -> None:
    images = [generate_scene(seed, 24, 16)[0] for seed in range(6)]
    alone = [BundleSegmenter(bundle).segment(image, landing=True) for image in images]
    segmenter, wrong = BundleSegmenter(bundle), []

    def check(number: int) -> None:
        for turn in range(12):
            index = (number + turn) % len(images)
            found = segmenter.segment(images[index], landing=turn % 3 != 0)
            grid, expected = found.landing_grid, alone[index].landing_grid
            same = grid is None or (expected is not None and np.array_equal(grid.danger, expected.danger))
            if not same or not np.array_equal(found.mask, alone[index].mask):
                wrong.append((number, turn))

    threads = [threading.Thread(target=check, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", RuntimeName)
def test_later_predictions_do_not_overwrite_probabilities(bundle: Bundle, name: RuntimeName) -> None:
    runtime, _ = start_checked_runtime(bundle, "fast", name, None)
    first, second = (generate_scene(seed, 24, 16)[0][None] for seed in range(2))
    probabilities = runtime.argmax_and_softmax(first)[2]
    expected = probabilities.copy()
    runtime.argmax(second)
    later = runtime.argmax_and_softmax(second)[2]
    assert np.array_equal(probabilities, expected)
    assert not np.array_equal(later, expected)


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_black_areas_within_a_photograph_are_no_landing_zone(tmp_path: Path, profile: str) -> None:
    network = tmp_path / "everything-is-landing-zone.onnx"
    write_network(network, np.zeros((6, 3)), (0, 0, 0, 0, 0, 9))
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", network=network), profile=profile)
    image = np.full((60, 90, 3), 255, np.uint8)
    image[10:20, 30:70] = image[:5, :7] = 0
    unseen = ~image.any(axis=2)
    image[30, 60] = image[40:42, 60:62] = 0  # too small for an area
    grid = segmenter.segment(image, landing=True).landing_grid
    assert grid is not None
    assert np.array_equal(grid.danger == 1, unseen)
    assert np.array_equal(grid.likeliest == 1 << BACKGROUND_ID, unseen)
    assert (grid.danger[~unseen] < 0.01).all()


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("size", [(1, 1), (2, 40), (60, 90)])
def test_a_black_photograph_has_no_admissible_ground(bundle: Bundle, size: tuple[int, int], profile: str) -> None:
    found = BundleSegmenter(bundle, profile=profile).segment(np.zeros((*size, 3), np.uint8), landing=True)
    assert found.landing_grid is not None
    assert (found.landing_grid.danger == 1).all()
    for allow in ((Role.LANDING,), (Role.LANDING, Role.SOFT)):
        options = LandingOptions(radius_px=0.1, clearance_px=0, clearance_people_px=0, allow=allow)
        assert not admissible(found.landing_grid, BundleSegmenter(bundle).landing_policy, allow).any()
        assert find_sites(found, BundleSegmenter(bundle).landing_policy, options).sites == ()
