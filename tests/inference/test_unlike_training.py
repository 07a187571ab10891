"""Images unlike the training images are reported, with the reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow
from PIL import ImageFilter

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.prediction import image_statistics
from droneseg.data.synthetic import generate_scene
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.unlike_training import describe, features_of, fit_ranges, scores
from droneseg.model.bundle import Calibration, FeatureRange, TrainingGround, UnlikeTraining
from support.bundles import CONTEXT, make_bundle

SIZE = (96, 72)
TRAINING = [generate_scene(seed, *SIZE)[0] for seed in range(100)]
OTHERS = [generate_scene(seed, *SIZE)[0] for seed in range(1000, 1040)]
GROUND = TrainingGround(gsd_m=0.02, gsd_range_m=(0.01, 0.03), source="test")
CHANGES = {
    "darker": lambda image: (image * 0.1).astype(np.uint8),
    "brighter": lambda image: 255 - (255 - image) // 8,
    "less sharp": lambda image: np.asarray(pillow.fromarray(image).filter(ImageFilter.GaussianBlur(3))),
    "noisier": lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 60, image.shape), 0, 255
    ).astype(np.uint8),
    "less saturated": lambda image: np.repeat(image[..., 1:2], 3, axis=2),
    "bluer": lambda image: (image * np.array([0.3, 1, 1])).astype(np.uint8),
}  # fmt: skip


def features(image: np.ndarray, disagreement: float | None = None) -> dict[str, float]:
    return features_of(image_statistics(image), disagreement)


@pytest.fixture(scope="module")
def ranges() -> UnlikeTraining:
    return fit_ranges([features(image) for image in TRAINING], "100 generated scenes")


def calibration(**features: FeatureRange) -> Calibration:
    return Calibration(source="test", unlike_training=UnlikeTraining(features=features, source="test"))


def test_new_images_of_the_same_kind_are_rarely_reported(ranges: UnlikeTraining) -> None:
    assert sum(bool(describe(features(image), ranges)) for image in TRAINING) <= 2
    assert sum(bool(describe(features(image), ranges)) for image in OTHERS) <= 2


@pytest.mark.parametrize("reason", CHANGES)
def test_changed_images_are_reported_with_the_reason(ranges: UnlikeTraining, reason: str) -> None:
    found = [describe(features(CHANGES[reason](image)), ranges) for image in OTHERS]
    assert sum(reason in reasons for reasons in found) >= 0.95 * len(found)


def test_black_images_are_darker(ranges: UnlikeTraining) -> None:
    assert "darker" in describe(features(np.zeros((72, 96, 3), np.uint8)), ranges)


def test_reasons_are_sorted_by_deviation() -> None:
    entry = FeatureRange(low=0.4, centre=0.5, high=0.6)
    limits = UnlikeTraining(features={"brightness": entry, "contrast": entry, "warmth": entry}, source="")
    values = {"brightness": 0.39, "contrast": 0.9, "warmth": 0.6}
    assert scores(values, limits) == pytest.approx({"brightness": -1.1, "contrast": 4, "warmth": 1})
    assert describe(values, limits) == ("higher in contrast", "darker")


def test_limits_are_separate_on_both_sides_of_the_median() -> None:
    rows = [{"brightness": 0.4 * 1.03**step} for step in range(-50, 0)]
    rows += [{"brightness": 0.4 * 1.01**step} for step in range(51)]
    limits = fit_ranges(rows, "").features["brightness"]
    assert limits.low is not None
    assert limits.high is not None
    assert limits.centre == pytest.approx(0.4)
    assert limits.low == pytest.approx(0.4 * 1.03**-50, rel=0.05)
    assert limits.high == pytest.approx(0.4 * 1.01**50, rel=0.05)


def test_equal_images_do_not_make_the_ranges_empty() -> None:
    limits = fit_ranges([features(TRAINING[0])] * 30, "")
    assert not describe(features(TRAINING[0]), limits)
    assert describe(features(CHANGES["darker"](TRAINING[0])), limits)


def test_views_that_agree_are_not_reported_and_views_that_disagree_are() -> None:
    image = features(TRAINING[0])
    rows = [image | {"disagreement": 0.001 * step} for step in range(100)]
    limits = fit_ranges(rows, "").features["disagreement"]
    assert limits.low is None
    assert limits.high == pytest.approx(0.1, abs=0.01)


def test_prediction_counts_pixels_whose_region_changes_with_the_view(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path / "bundle",
        ground=GROUND,
        context=CONTEXT.model_copy(update={"exposure": None}),
        calibration=calibration(disagreement=FeatureRange(centre=0.01, high=0.2)),
    )
    segmenter = BundleSegmenter(bundle)
    checks = np.indices((32, 48)).sum(axis=0) % 2 == 0
    lawn, roof, shade = (0, 250, 0), (250, 250, 250), (5, 5, 5)
    # in the smaller view, neighbours are averaged: all is landing zone
    found = segmenter.segment(np.where(checks[..., None], lawn, roof).astype(np.uint8))
    assert found.disagreement == 0.5
    assert found.unlike_training == ("classified differently at a smaller size",)
    # obstacles are no region: they are expected to vanish
    found = segmenter.segment(np.where(checks[..., None], shade, roof).astype(np.uint8))
    assert found.disagreement == 0
    assert not found.unlike_training


def test_a_side_without_a_limit_is_not_checked() -> None:
    limits = UnlikeTraining(features={"disagreement": FeatureRange(centre=0.1, high=0.3)}, source="")
    assert describe({"disagreement": 0.0}, limits) == ()
    assert describe({"disagreement": 0.31}, limits) == ("classified differently at a smaller size",)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.7), (0.3, 0.5), (0.6, 0.4)])
def test_ranges_out_of_order_are_malformed(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="each must be larger than the one before"):
        FeatureRange(low=low, centre=0.5, high=high)


def test_prediction_carries_the_warning_and_its_reason(tmp_path: Path) -> None:
    limits = {"brightness": FeatureRange(low=0.2, centre=0.4, high=0.6)}
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", calibration=calibration(**limits)))
    like = segmenter.segment(np.full((16, 24, 3), 100, np.uint8))
    assert like.statistics == image_statistics(np.full((16, 24, 3), 100, np.uint8))
    assert WarningCode.UNLIKE_TRAINING not in like.ground.warnings
    dark = segmenter.segment(np.full((16, 24, 3), 30, np.uint8))
    assert dark.unlike_training == ("darker",)
    [message] = [item.message for item in dark.warnings if item.code == WarningCode.UNLIKE_TRAINING]
    assert message.endswith("It is darker.")


def test_bundle_without_ranges_does_not_report(tmp_path: Path) -> None:
    found = BundleSegmenter(make_bundle(tmp_path / "bundle")).segment(np.zeros((16, 24, 3), np.uint8))
    assert WarningCode.UNLIKE_TRAINING not in found.ground.warnings


def test_features_are_those_of_the_resampled_image_before_the_exposure_correction(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path / "bundle",
        ground=GROUND,
        context=CONTEXT,
        calibration=calibration(brightness=FeatureRange(low=0.2, centre=0.4, high=0.6)),
    )
    segmenter = BundleSegmenter(bundle)
    checks = np.indices((32, 48)).sum(axis=0) % 2 * 80
    image = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    found = segmenter.segment(image, Ground(gsd_m=0.01, source="argument"))
    assert found.seen_size == (16, 24)
    assert found.statistics["sharpness"] == 0  # the checks are averaged
    assert found.statistics["brightness"] == pytest.approx(40 / 255, abs=1e-4)
    assert found.unlike_training == ("darker",)
