"""Probability maps agree with the masks, and their rounding error is as documented."""

import numpy as np
import pytest

from droneseg.core.camera import UNKNOWN_GROUND, Ground, given_ground
from droneseg.data.synthetic import generate_scene
from droneseg.inference.probability_map import QUANTISATION_ERROR, ProbabilityMap, quantise
from droneseg.inference.runtimes.base import softmax
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import Bundle, Calibration
from support.bundles import TRAINED_AT, VIEWS, make_bundle

WARM = Calibration(temperature=2.0, source="test")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return make_bundle(folder, ground=TRAINED_AT, context=VIEWS, calibration=WARM)


def test_bytes_are_rounded_to_the_nearest() -> None:
    probabilities = np.linspace(0, 1, 10_001, dtype=np.float32).reshape(1, 1, -1)
    error = np.abs(quantise(probabilities) / 255 - probabilities)
    assert error.max() <= QUANTISATION_ERROR + 1e-6


def test_bands_of_any_height_give_the_same_map() -> None:
    probabilities = softmax(np.random.default_rng(0).normal(0, 3, (6, 70, 50)).astype(np.float32))
    maps = []
    for ends in ([70], [1, 16, 33, 50, 70], list(range(1, 71))):
        found = ProbabilityMap.empty(6, (70, 50))
        for first, end in zip([0, *ends], ends, strict=False):
            found.add(probabilities[:, first:end], first)
        maps.append(found)
    assert np.allclose(maps[0].samples, np.log(probabilities[:, ::16, ::16]), atol=0.01)
    for other in maps[1:]:
        assert np.array_equal(other.values, maps[0].values)
        assert np.array_equal(other.samples, maps[0].samples)


# one view; one tile row with views; a photograph of half the ground resolution
@pytest.mark.parametrize(
    ("size", "ground"),
    [
        ((16, 24), UNKNOWN_GROUND),
        ((60, 90), UNKNOWN_GROUND),
        ((60, 90), given_ground(0.025)),
        ((60, 90), given_ground(0.0125)),
    ],
)
def test_largest_probability_is_that_of_the_mask(bundle: Bundle, size: tuple[int, int], ground: Ground) -> None:
    image = generate_scene(1, size[1], size[0])[0]
    segmenter = BundleSegmenter(bundle, profile="fast")
    prediction, values, seen = segmenter.probabilities(image, ground)
    expected = segmenter.segment(image, ground)
    assert np.array_equal(prediction.mask, expected.mask)
    assert prediction.confidence == pytest.approx(expected.confidence, abs=1e-5)
    assert values.shape == (6, *size)
    assert np.abs(values.sum(axis=0, dtype=int) - 255).max() <= 6
    assert seen.values.shape[1:] == prediction.seen_size
    assert seen.values.max(axis=0).mean() / 255 == pytest.approx(prediction.confidence, abs=0.003)
    if prediction.seen_size == size:
        largest = values.max(axis=0)
        assert np.array_equal(largest, np.take_along_axis(values, prediction.mask[None].astype(int), axis=0)[0])


def test_temperature_replaces_that_of_the_bundle(bundle: Bundle) -> None:
    image = generate_scene(1, 24, 16)[0]
    segmenter = BundleSegmenter(bundle)
    logits = segmenter.logits(image)
    for temperature, used in ((None, 2.0), (1.0, 1.0)):
        _, values, seen = segmenter.probabilities(image, temperature=temperature)
        assert np.array_equal(values, quantise(softmax(logits, used)))
        assert np.allclose(seen.samples, np.log(softmax(logits, used))[:, ::16, ::16], atol=0.02)


def test_black_border_is_background(bundle: Bundle) -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    image[10:30, 5:45] = generate_scene(3, 40, 20)[0].clip(1)
    _, values, _ = BundleSegmenter(bundle).probabilities(image)
    assert (values[0, :10] == 255).all()
    assert (values[1:, :10] == 0).all()
    assert values[1:, 10:30, 5:45].any()
    black = BundleSegmenter(bundle).probabilities(np.zeros((20, 30, 3), np.uint8))[1]
    assert (black[0] == 255).all()


def test_landing_probability_is_that_of_the_map(bundle: Bundle) -> None:
    image = generate_scene(2, 90, 60)[0]
    segmenter = BundleSegmenter(bundle)
    prediction, landing = segmenter.landing_probability(image)
    _, values, _ = segmenter.probabilities(image)
    assert np.array_equal(prediction.mask, segmenter.segment(image).mask)
    assert np.abs(landing - values[5] / 255).max() < 0.01
