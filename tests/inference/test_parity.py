"""Predictions equal those of nnU-Net's own functions."""

import json
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.images import DEFAULT_MAX_PIXELS, Image
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.data.convert import ConversionOptions, convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import generate_scene, write_samples
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.sliding_window import gaussian, nonzero_box, normalisation_table, window_starts
from droneseg.model.bundle import Bundle
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths

pytestmark = pytest.mark.slow

PATCH = (64, 48)
SIZES = {
    "exactly the patch": (64, 48),
    "smaller than the patch": (41, 30),
    "one pixel wide": (90, 1),
    "one pixel high": (1, 70),
    "several tiles": (150, 131),
    "one tile high, several wide": (64, 111),
    "one more than the patch": (65, 49),
}
NORMALISATIONS = {"rgb_to_0_1": "RGBTo01Normalization", "zscore": "ZScoreNormalization"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> NnunetPaths:
    """A dataset with nnU-Net's plan."""
    from droneseg.nnunet.preprocess import plan_dataset

    root = tmp_path_factory.mktemp("parity")
    write_samples(root / "data", count=6, size=(96, 80), seed=5)
    write_split(Split(("000", "001", "002", "003"), ("004", "005")), root / "split.json")
    layout = NnunetPaths(root / "raw", root / "preprocessed", root / "results")
    convert_dataset(root / "data", layout.raw, ConversionOptions(root / "split.json"), max_pixels=DEFAULT_MAX_PIXELS)
    plan_dataset(layout, show_progress=False)
    return layout


@pytest.fixture(scope="module", params=[("rgb_to_0_1", 1), ("zscore", 1), ("rgb_to_0_1", 2)], ids=str)
def model(request: pytest.FixtureRequest, planned: NnunetPaths) -> tuple[Path, Bundle, NnunetPaths]:
    """An untrained model as nnU-Net's folder and as our bundle."""
    from droneseg.flows.export import export_model
    from droneseg.nnunet.checkpoint import write_random_model
    from droneseg.nnunet.plans import add_configuration, read_plans, write_plans

    normalisation, folds = request.param
    name = f"2d_{normalisation}_{folds}".replace("_", "")
    plans = add_configuration(
        read_plans(planned), name, patch_size=PATCH, batch_size=2, base_features=4, max_features=16
    )
    plans["configurations"][name]["normalization_schemes"] = [NORMALISATIONS[normalisation]] * 3
    write_plans(planned, plans)
    trained = write_random_model(planned, configuration=name, folds=folds, seed=11)
    bundle = export_model(
        trained, planned, planned.results / f"bundle-{name}", checkpoint=FINAL_CHECKPOINT, licence="none", images=4,
        on_step=lambda _: None,
    )  # fmt: skip
    return trained, bundle, planned


def stock_mask(trained: Path, layout: NnunetPaths, image: Image, *, mirrored: bool) -> np.ndarray:
    from PIL import Image as pillow

    from droneseg.nnunet.predictor import NnunetPredictor

    file = layout.results / "stock.png"
    pillow.fromarray(image).save(file)
    return NnunetPredictor(trained, layout, mirrored=mirrored).segment_file(file)


def scene(height: int, width: int) -> Image:
    return np.ascontiguousarray(generate_scene(77, max(width, 32), max(height, 32))[0][:height, :width])


def same(found: np.ndarray, wanted: np.ndarray, bundle: Bundle) -> bool:
    """Equal but for one pixel or 0.05 %: sums in another order round otherwise.

    Of several folds nnU-Net rounds each to float16 before it averages them, a bundle averages inside its graph: half a
    per cent of these untrained networks' near-ties fall differently.
    """
    share = 0.0005 if len(bundle.manifest.provenance.folds) == 1 else 0.005
    return found.shape == wanted.shape and np.count_nonzero(found != wanted) <= max(1, share * wanted.size)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", SIZES)
def test_exact_profile_equals_nnunet_with_mirroring(
    model: tuple[Path, Bundle, NnunetPaths], case: str, runtime: RuntimeName
) -> None:
    trained, bundle, layout = model
    image = scene(*SIZES[case])
    found = BundleSegmenter(bundle, profile="exact", runtime=runtime).segment(image).mask
    assert same(found, stock_mask(trained, layout, image, mirrored=True), bundle)


@pytest.mark.parametrize("case", SIZES)
def test_single_float32_pass_equals_nnunet_without_mirroring(
    model: tuple[Path, Bundle, NnunetPaths], case: str
) -> None:
    trained, bundle, layout = model
    image = scene(*SIZES[case])
    # ONNX Runtime computes the fast profile in float32
    found = BundleSegmenter(bundle, profile="fast", runtime=RuntimeName.ONNXRUNTIME).segment(image).mask
    wanted = stock_mask(trained, layout, image, mirrored=False)
    # stock sums in float16, which this profile does not copy: it flips near-ties
    assert np.mean(found == wanted) > 0.99


def test_black_border_is_cropped_like_nnunet(model: tuple[Path, Bundle, NnunetPaths]) -> None:
    trained, bundle, layout = model
    image = np.zeros((130, 120, 3), np.uint8)
    image[17:101, 30:111] = scene(84, 81)
    found = BundleSegmenter(bundle, profile="exact").segment(image).mask
    assert same(found, stock_mask(trained, layout, image, mirrored=True), bundle)
    assert not found[:17].any()


def test_window_starts_equal_nnunet() -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    for patch in (16, 48, 100, 768):
        for size in (*range(patch, 4 * patch, max(1, patch // 13)), 10 * patch + 7):
            for step in (0.5, 0.25, 1.0, 0.33):
                assert window_starts(size, patch, step) == compute_steps_for_sliding_window((size,), (patch,), step)[0]


@pytest.mark.parametrize("patch", [(64, 48), (768, 1024), (33, 47), (7, 5), (1, 9), (384, 384)])
def test_gaussian_equals_nnunet(patch: tuple[int, int]) -> None:
    import torch
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    wanted = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")).numpy()
    assert np.array_equal(gaussian(patch), wanted)


@pytest.mark.parametrize("normalisation", ["rgb_to_0_1", "zscore"])
def test_preprocessing_equals_nnunet(planned: NnunetPaths, normalisation: str) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = json.loads(planned.plans_file.read_text())
    plans["configurations"]["2d"]["normalization_schemes"] = [NORMALISATIONS[normalisation]] * 3
    image = np.zeros((60, 70, 3), np.uint8)
    image[5:50, 9:66] = scene(45, 57)
    manager = PlansManager(plans)
    wanted, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        image.transpose(2, 0, 1)[:, None].astype(np.float32), None, {"spacing": (999, 1, 1)}, manager,
        manager.get_configuration("2d"), json.loads((planned.raw_dataset / "dataset.json").read_text()),
    )  # fmt: skip
    cropped = image[nonzero_box(image)]
    table = normalisation_table(cropped, normalisation)
    found = np.stack([table[channel][cropped[..., channel]] for channel in range(3)])
    assert np.allclose(found, wanted[:, 0], rtol=0, atol=2e-6)
