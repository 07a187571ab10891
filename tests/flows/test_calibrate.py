"""Calibration on images with true masks."""

from pathlib import Path

import numpy as np
import pytest

from droneseg.core.errors import DatasetError
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.data.synthetic import generate_scene
from droneseg.flows.calibrate import fit_calibration, fit_temperature
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.unlike_training import describe, features_of
from droneseg.model.bundle import Bundle, Calibration, FeatureRange
from support.bundles import CONTEXT, make_bundle

CLASSES = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def scenes(count: int) -> list[tuple[Image, Mask]]:
    return [generate_scene(seed, 96, 72) for seed in range(count)]


def drawn(temperature: float, pixels: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    """Random logits, and classes drawn with the probabilities of these logits at a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (CLASSES, pixels)).astype(np.float32)
    # the class of the largest sum of a logit and Gumbel noise has the probability of the softmax
    return logits, (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=0).astype(np.uint8)


def test_calibration_of_a_network_that_is_right_keeps_the_temperature(bundle: Bundle) -> None:
    colours = np.array([(0, 0, 0), (5, 5, 5), (0, 0, 250), (0, 250, 0), (250, 0, 0), (250, 250, 250)], np.uint8)
    truths = [np.random.default_rng(seed).integers(1, CLASSES, (72, 96)).astype(np.uint8) for seed in range(20)]
    assert fit_calibration(bundle, ((colours[truth], truth) for truth in truths), source="").temperature == 1


def ranges_of(calibration: Calibration) -> dict[str, FeatureRange]:
    assert calibration.unlike_training is not None
    return calibration.unlike_training.features


def test_pixels_without_a_label_do_not_count_for_the_temperature() -> None:
    logits, truth = drawn(1.6, 20_000)
    unlabelled = np.full_like(truth, CLASSES)
    both = fit_temperature(np.concatenate([logits, logits[::-1]], axis=1), np.concatenate([truth, unlabelled]))
    assert both == fit_temperature(logits, truth)
    with pytest.raises(DatasetError, match="No pixel of these images has a label"):
        fit_temperature(logits, unlabelled)


@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0])
def test_temperature_of_drawn_classes_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, abs=0.03)


def test_temperature_never_makes_the_model_more_confident() -> None:
    assert fit_temperature(*drawn(0.5)) == 1


def test_calibration_has_a_temperature_and_ranges_for_new_images(bundle: Bundle) -> None:
    found = fit_calibration(bundle, scenes(60), source="60 generated scenes")
    assert found.source == "60 generated scenes"
    assert found.temperature > 1  # the network knows only colours
    assert found.unlike_training is not None
    assert found.unlike_training.source == "60 generated scenes"
    segmenter = BundleSegmenter(bundle)
    for factor, least, most in ((1, 0, 3), (0.1, 20, 20)):
        images = [(generate_scene(seed, 96, 72)[0] * factor).astype(np.uint8) for seed in range(1000, 1020)]
        new = [features_of(segmenter.segment(image).statistics, None) for image in images]
        assert least <= sum(bool(describe(values, found.unlike_training)) for values in new) <= most


def test_calibration_of_a_bundle_with_several_views_limits_their_disagreement(bundle: Bundle, tmp_path: Path) -> None:
    assert "disagreement" not in ranges_of(fit_calibration(bundle, scenes(20), source=""))
    several = make_bundle(tmp_path / "bundle", context=CONTEXT)
    found = ranges_of(fit_calibration(several, scenes(20), source=""))["disagreement"]
    assert found.low is None
    assert found.high is not None
    assert 0 < found.centre < found.high < 1


def test_too_few_images_are_an_error(bundle: Bundle) -> None:
    with pytest.raises(DatasetError, match="19 images are too few for a calibration; use at least 20"):
        fit_calibration(bundle, scenes(19), source="")
