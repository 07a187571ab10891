"""Loader of crops at random scales: geometry, sampling, normalisation and reproducibility."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from droneseg.core.classes import DEFAULT_CLASSES, Normalisation
from droneseg.data.synthetic import generate_scene
from droneseg.nnunet.case_arrays import CaseArrays
from droneseg.nnunet.data_loading import CaseSampler, Crop, CropLoader, draw_factor, normalise, place_crop, read_crop
from droneseg.nnunet.trainer_settings import TrainerSettings
from support.crop_cases import arrays, coordinates, write_case


@pytest.fixture
def ramp(tmp_path: Path) -> dict[str, CaseArrays]:
    """A case whose colours are the coordinates, with one pixel of class 4."""
    label = np.full((200, 240), 3, np.uint8)
    label[150, 30] = 4
    write_case(tmp_path / "raw", "ramp", coordinates(200, 240), label)
    return arrays(tmp_path / "raw", "ramp")


def loader(cases: Mapping[str, CaseArrays], settings: dict[str, Any], **changes: Any) -> CropLoader:
    options: dict[str, Any] = {
        "batch_size": 4,
        "crop": (64, 64),
        "gsd_m": {},
        "normalisation": Normalisation.RGB_TO_0_1,
    }
    sampler = CaseSampler(list(cases), frozenset(), None)
    chosen = TrainerSettings(**({"crop_scales": (1, 1)} | settings))
    return CropLoader(cases, sampler, chosen, **(options | changes))


def rows_and_columns(crop: torch.Tensor) -> tuple[int, int]:
    """Return how many rows and columns of the ramp a crop shows."""
    spans = [int(crop[channel].max()) - int(crop[channel].min()) + 1 for channel in (0, 1)]
    return spans[0], spans[1]


def test_crop_at_factor_1_is_a_slice_and_is_reflected_beyond_the_border(ramp: dict[str, CaseArrays]) -> None:
    image, label = coordinates(200, 240), ramp["ramp"].targets(0)
    inside, targets = read_crop(ramp["ramp"], Crop(130, 20, 1.0), (50, 70))
    np.testing.assert_array_equal(inside, image[130:180, 20:90])
    np.testing.assert_array_equal(targets, label[130:180, 20:90])
    beyond, _ = read_crop(ramp["ramp"], Crop(-20, 200, 1.0), (230, 60))
    padded = np.pad(image, ((20, 10), (0, 20), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(beyond, padded[:230, 200:260])


@pytest.mark.parametrize("factor", [0.2, 0.3, 0.5, 0.8, 1.3, 2.5])
def test_crop_shows_the_window_at_the_factor(ramp: dict[str, CaseArrays], factor: float) -> None:
    crop, _ = read_crop(ramp["ramp"], Crop(20, 30, factor), (32, 32))
    # centres of the crop's pixels in the photograph, where the window is inside it
    rows = 20 + (np.arange(32) + 0.5) / factor - 0.5
    columns = 30 + (np.arange(32) + 0.5) / factor - 0.5
    tolerance = 1.5 + 0.7 / factor
    np.testing.assert_allclose(crop[:, 5, 0][rows < 195], rows[rows < 195], atol=tolerance)
    np.testing.assert_allclose(crop[5, :, 1][columns < 235], columns[columns < 235], atol=tolerance)


def test_labels_stay_on_their_pixels_at_every_scale_and_turn(tmp_path: Path) -> None:
    label = generate_scene(3, 260, 300)[1]
    write_case(tmp_path / "raw", "scene", DEFAULT_CLASSES.colours()[label], label)
    cases = arrays(tmp_path / "raw", "scene")
    settings = {"crop_scales": (0.4, 2.5), "rotation_share": 0.5, "whole_share": 0.1}
    np.random.seed(0)  # noqa: NPY002  # nnU-Net's loaders use the global state
    crops = loader(cases, settings, batch_size=40)
    batch = next(crops)
    for image, target in zip(batch["data"].permute(0, 2, 3, 1).numpy(), batch["target"][:, 0].numpy(), strict=True):
        distances = np.abs(image[:, :, None].astype(int) - DEFAULT_CLASSES.colours()[None, None].astype(int)).sum(-1)
        # pixels between two classes have mixed colours
        clear = distances.min(-1) < 20
        assert clear.mean() > 0.5
        assert (distances.argmin(-1) == target)[clear].mean() > 0.99


def test_scale_1_is_the_ground_resolution_of_the_model(ramp: dict[str, CaseArrays]) -> None:
    known = loader(ramp, {"model_gsd": 0.02}, gsd_m={"ramp": 0.04})
    assert rows_and_columns(next(known)["data"][0]) == pytest.approx((32, 32), abs=1)
    coarser = loader(ramp, {"model_gsd": 0.02, "crop_scales": (0.5, 0.5)}, gsd_m={"ramp": 0.02})
    assert rows_and_columns(next(coarser)["data"][0]) == pytest.approx((128, 128), abs=2)
    unknown = loader(ramp, {"model_gsd": 0.02})
    assert rows_and_columns(next(unknown)["data"][0]) == (64, 64)


def test_whole_photographs_fill_the_longer_side(ramp: dict[str, CaseArrays]) -> None:
    whole = loader(ramp, {"whole_share": 1.0})
    assert all(rows_and_columns(crop) == pytest.approx((200, 240), abs=8) for crop in next(whole)["data"])


def test_validation_crops_are_at_scale_1_without_augmentation(ramp: dict[str, CaseArrays]) -> None:
    settings = {"crop_scales": (0.4, 2.5), "whole_share": 0.5, "rotation_share": 1.0, "exposure_share": 1.0}
    for crop in next(loader(ramp, settings, training=False, batch_size=8))["data"]:
        assert rows_and_columns(crop) == (64, 64)
        assert (crop[0, 1:] > crop[0, :-1]).all(), "not turned"


@pytest.mark.parametrize(("sampling", "near_1"), [("uniform", 0.38), ("triangular", 0.61)])
def test_scales_are_drawn_by_their_logarithm(sampling: str, near_1: float) -> None:
    settings = TrainerSettings(crop_scales=(0.4, 2.5), scale_sampling=sampling)  # type: ignore[arg-type]  # a parameter
    rng = np.random.default_rng(0)
    scales = np.array([draw_factor(settings, (100, 100), (50, 50), 0.5, rng) / 0.5 for _ in range(4000)])
    assert scales.min() > 0.4
    assert scales.max() < 2.5
    # from 1/sqrt(2) to sqrt(2): 0.6931 of 1.8326 in the logarithm
    assert np.mean((scales > 0.5**0.5) & (scales < 2**0.5)) == pytest.approx(near_1, abs=0.03)


def test_windows_stay_inside_the_photograph_or_contain_it() -> None:
    rng = np.random.default_rng(0)
    for point in (None, (0, 0), (99, 199)):
        for _ in range(50):
            top, left = place_crop((100, 200), (60.0, 300.0), point, rng)
            assert 0 <= top <= 40
            assert -100 <= left <= 0


def test_oversampled_crops_contain_a_pixel_of_a_random_class(ramp: dict[str, CaseArrays]) -> None:
    batch = next(loader(ramp, {}, oversample=1.0, batch_size=60))
    with_rare = (batch["target"] == 4).flatten(1).any(1).float().mean()
    assert with_rare > 0.4, "one of two classes is drawn"
    rare = next(loader(ramp, {}, oversample=0.0, batch_size=60))
    assert (rare["target"] == 4).flatten(1).any(1).float().mean() < 0.3


def test_crops_of_partly_labelled_cases_contain_a_label(tmp_path: Path) -> None:
    label = np.full((200, 240), 6, np.uint8)
    label[:40, :60] = 3
    write_case(tmp_path / "raw", "partly", coordinates(200, 240), label)
    cases = arrays(tmp_path / "raw", "partly", ignore=6)
    batch = next(loader(cases, {}, ignore=6, batch_size=40))
    assert (batch["target"] != 6).flatten(1).any(1).float().mean() > 0.6


def test_generated_cases_are_drawn_at_their_share() -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", *(f"a__{number}" for number in range(8))]
    generated = frozenset(names[2:])
    drawn = Counter(CaseSampler(names, generated, 0.25).draw(rng) in generated for _ in range(2000))
    assert drawn[True] / 2000 == pytest.approx(0.25, abs=0.03)
    drawn = Counter(CaseSampler(names, generated, None).draw(rng) in generated for _ in range(2000))
    assert drawn[True] / 2000 == pytest.approx(0.8, abs=0.03)
    assert CaseSampler(["a"], frozenset(), 0.25).draw(rng) == "a"


def test_fine_classes_and_weights_are_loaded_and_default_to_unknown(tmp_path: Path) -> None:
    label = np.full((80, 80), 3, np.uint8)
    targets = np.dstack([np.full_like(label, 7), np.full_like(label, 50), np.zeros_like(label)])
    write_case(tmp_path / "raw", "fine", coordinates(80, 80), label, targets)
    write_case(tmp_path / "raw", "plain", coordinates(80, 80), label)
    batch = next(loader(arrays(tmp_path / "raw", "fine", "plain"), {}, batch_size=30))
    seen = {(name, *target[:, 10, 10].tolist()) for name, target in zip(batch["keys"], batch["target"], strict=True)}
    assert seen == {("fine", 3, 7, 50), ("plain", 3, 0, 100)}


def test_deep_supervision_has_a_target_for_each_stride(ramp: dict[str, CaseArrays]) -> None:
    batch = next(loader(ramp, {}, strides=[(1, 1), (2, 2), (4, 4)]))
    assert [tuple(target.shape) for target in batch["target"]] == [(4, 1, side, side) for side in (64, 32, 16)]


def test_normalisation_is_that_of_nnunet(ramp: dict[str, CaseArrays]) -> None:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
        RGBTo01Normalization,
        ZScoreNormalization,
    )

    image = coordinates(200, 240)
    for normalisation, scheme in (
        (Normalisation.RGB_TO_0_1, RGBTo01Normalization),
        (Normalisation.ZSCORE, ZScoreNormalization),
    ):
        run = scheme(use_mask_for_norm=False, intensityproperties={}).run
        # the last channel is empty, which the first scheme refuses to take for colours
        expected = [run(np.maximum(image[..., channel], 1).astype(np.float32)) for channel in (0, 1)]
        batch = next(loader(ramp, {}, normalisation=normalisation, training=False))
        data = normalise(batch, torch.device("cpu"), channels_last=True)
        assert data.is_contiguous(memory_format=torch.channels_last)
        for crop, original in zip(data.numpy(), batch["data"].numpy(), strict=True):
            rows, columns = original[0, 1, 0], original[1, 0, 1]
            np.testing.assert_allclose(crop[0, 1, 1], expected[0][rows, 50], atol=2e-2)
            np.testing.assert_allclose(crop[1, 1, 1], expected[1][50, columns], atol=2e-2)


def test_global_seed_determines_the_batches(ramp: dict[str, CaseArrays]) -> None:
    settings = {"crop_scales": (0.4, 2.5), "blur_share": 1.0, "shadow_share": 0.5}
    batches = []
    for seed in (5, 5, 6):
        np.random.seed(seed)  # noqa: NPY002  # nnU-Net's loaders use the global state
        crops = loader(ramp, settings)
        next(crops)
        batches.append(next(crops)["data"])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
