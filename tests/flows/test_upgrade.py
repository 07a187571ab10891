"""An upgraded bundle has the same networks, and blocks for ground resolution, context, self-check and calibration."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from droneseg.core.camera import given_ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DatasetError, ModelError
from droneseg.core.images import read_image
from droneseg.core.metrics import compute_metrics, confusion
from droneseg.data.dataset import list_pairs, read_true_mask
from droneseg.data.synthetic import generate_scene
from droneseg.flows import upgrade
from droneseg.flows.export import add_reference
from droneseg.flows.upgrade import CalibrationImages, add_blocks
from droneseg.inference.batch import ViewOptions
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import (
    INT8_NETWORK_NAME,
    Bundle,
    Profile,
    TrainingGround,
    model_id_of,
    read_bundle,
    write_bundle,
)
from droneseg.monitoring.drift import read_reference
from support.bundles import CONTEXT, make_bundle
from support.projects import make_photographs

GROUND = TrainingGround(gsd_m=0.02, gsd_range_m=(0.015, 0.03), source="a tape measure")
FORMAT_2_BLOCKS = ("ground", "context", "self_check", "calibration")


@pytest.fixture
def old(tmp_path: Path) -> Bundle:
    """Return a bundle as version 0.1 wrote it."""
    bundle = make_bundle(tmp_path / "old")
    file = bundle.folder / "manifest.json"
    content = json.loads(file.read_text()) | {"format_version": 1}
    file.write_text(json.dumps({key: value for key, value in content.items() if key not in FORMAT_2_BLOCKS}, indent=2))
    return read_bundle(bundle.folder)


def calibration_images(folder: Path, count: int) -> CalibrationImages:
    return CalibrationImages("a test", list_pairs(make_photographs(folder, count)).pairs)


def test_a_bundle_of_format_1_keeps_its_id_and_its_predictions(old: Bundle, tmp_path: Path) -> None:
    assert old.model_id == model_id_of((old.folder / "manifest.json").read_bytes())
    assert all(getattr(old.manifest, block) is None for block in FORMAT_2_BLOCKS)
    upgraded = add_blocks(old, tmp_path / "new", ground=GROUND)
    assert read_bundle(old.folder).model_id == old.model_id != upgraded.model_id
    image = generate_scene(0, 70, 50)[0]
    expected = BundleSegmenter(old).segment(image).mask
    assert np.array_equal(BundleSegmenter(upgraded).segment(image, plain=True).mask, expected)
    assert np.array_equal(BundleSegmenter(old).segment(image, given_ground(0.01)).mask, expected)


def test_the_upgrade_adds_blocks_and_keeps_everything_else(old: Bundle, tmp_path: Path) -> None:
    manifest = add_blocks(old, tmp_path / "new", ground=GROUND).manifest
    assert (manifest.format_version, manifest.ground, manifest.context) == (2, GROUND, CONTEXT)
    assert manifest.self_check is not None
    assert manifest.calibration is None
    assert manifest.profiles == old.manifest.profiles
    assert manifest.provenance == old.manifest.provenance
    assert manifest.files["model.onnx"] == old.manifest.files["model.onnx"]
    assert set(manifest.files) == {"model.onnx", manifest.self_check.image, manifest.self_check.expected}


def test_images_are_resampled_only_if_the_ground_resolution_is_known(old: Bundle, tmp_path: Path) -> None:
    image, ground = generate_scene(0, 70, 50)[0], given_ground(0.01)
    known, unknown = (add_blocks(old, tmp_path / name, ground=value) for name, value in (("a", GROUND), ("b", None)))
    assert BundleSegmenter(known).segment(image, ground).ground.scale == 0.5
    assert unknown.manifest.context is None
    assert BundleSegmenter(unknown).segment(image, ground).ground.scale == 1


def test_another_network_fails_the_self_check_of_the_upgraded_bundle(old: Bundle, tmp_path: Path) -> None:
    upgraded = add_blocks(old, tmp_path / "new")
    check = upgraded.manifest.self_check
    assert check is not None
    expected = upgraded.folder / check.expected
    values = {name: np.roll(table, 1, axis=0).tolist() for name, table in json.loads(expected.read_text()).items()}
    expected.write_text(json.dumps(values))
    spoilt = write_bundle(
        tmp_path / "spoilt",
        lambda files: upgraded.manifest.model_copy(update={"files": files}),
        {name: upgraded.folder / name for name in upgraded.manifest.files},
    )
    BundleSegmenter(read_bundle(old.folder))
    with pytest.raises(ModelError, match="self-check"):
        BundleSegmenter(spoilt)


def test_the_calibration_is_fitted_on_the_images(old: Bundle, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    images = calibration_images(tmp_path / "photographs", 20)
    progress = lambda done, total: steps.append((done, total))  # noqa: E731  # a list of calls
    first = add_blocks(old, tmp_path / "a", ground=GROUND, images=images, progress=progress)
    calibration = first.manifest.calibration
    assert calibration is not None
    assert calibration.source == "a test"
    assert calibration.unlike_training is not None
    centre = calibration.unlike_training.features["warmth"].centre
    means = [read_image(pair.image).mean(axis=(0, 1)) for pair in images.pairs]
    assert centre == pytest.approx(np.median([red / (red + blue) for red, _, blue in means]), abs=0.02)
    assert steps == [(done, 20) for done in range(1, 21)]


def test_a_calibration_is_kept_until_images_are_presented_differently(old: Bundle, tmp_path: Path) -> None:
    images = calibration_images(tmp_path / "photographs", 20)
    first = add_blocks(old, tmp_path / "a", ground=GROUND, images=images)
    again = add_blocks(first, tmp_path / "b")
    assert again.manifest.ground == GROUND
    assert again.manifest.calibration == first.manifest.calibration
    finer = GROUND.model_copy(update={"gsd_m": 0.018})
    assert add_blocks(first, tmp_path / "c", ground=finer).manifest.calibration is None


def test_unusable_images_and_maps_are_refused_before_anything_is_computed(
    old: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "build_self_check", lambda *_: pytest.fail("the self-check was computed"))
    with pytest.raises(DatasetError, match="3 images are too few for a calibration"):
        add_blocks(old, tmp_path / "new", images=calibration_images(tmp_path / "photographs", 3))
    with pytest.raises(DatasetError, match=r"a has no maps\. [\s\S]*b has no maps\. Write them with"):
        add_blocks(old, tmp_path / "new", maps=[tmp_path / "a", tmp_path / "b"])


def test_too_few_images_for_a_calibration_write_nothing(old: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="19 images are too few"):
        add_blocks(old, tmp_path / "new", images=calibration_images(tmp_path / "photographs", 19))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("values", [(0.03, 0.02), (0.021, 0.03), (0.0, 0.03)])
def test_a_range_must_contain_the_ground_resolution(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"it must contain gsd_m, 0\.02"):
        TrainingGround(gsd_m=0.02, gsd_range_m=values, source="a tape measure")


@pytest.mark.parametrize(("gsd_m", "pixels"), [(None, 1200), (0.01, 300)], ids=["unknown", "half as coarse"])
def test_a_drift_reference_describes_images_at_the_resolution_of_the_model(
    old: Bundle, tmp_path: Path, gsd_m: float | None, pixels: int
) -> None:
    upgraded = add_blocks(old, tmp_path / "new", ground=GROUND)
    bundle = add_reference(
        upgraded.folder,
        make_photographs(tmp_path / "photographs", 24),
        tmp_path / "reference",
        split_file=None,
        part="val",
        view=ViewOptions(gsd_m=gsd_m),
        max_pixels=10_000,
    )
    assert set(read_reference(bundle).table["megapixels"]) == {pixels / 1e6}
    assert bundle.manifest.ground == GROUND


def test_a_bundle_of_format_1_with_a_new_drift_reference_has_format_2(old: Bundle, tmp_path: Path) -> None:
    photographs = make_photographs(tmp_path / "photographs", 24)
    bundle = add_reference(old.folder, photographs, tmp_path / "new", split_file=None, part="val", max_pixels=10_000)
    assert bundle.manifest.format_version == 2
    assert bundle.manifest.drift_reference is not None
    assert bundle.manifest.drift_reference.images == 24


def with_signed_int8(bundle: Bundle, folder: Path) -> Bundle:
    """Write a copy of a bundle with an INT8 network whose input is quantised to signed integers."""
    model = onnx.load(bundle.network("fast"))
    model.graph.node[0].input[0] = "dequantised"
    for kind, source, target in (
        ("DequantizeLinear", "quantised", "dequantised"), ("QuantizeLinear", "patch", "quantised")
    ):  # fmt: skip
        model.graph.node.insert(0, helper.make_node(kind, [source, "scale", "zero"], [target]))
    constants = {"scale": np.float32(1 / 255), "zero": np.array(-128, np.int8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, folder.parent / INT8_NETWORK_NAME)
    profiles = bundle.manifest.profiles | {"int8": Profile(network=INT8_NETWORK_NAME, mirroring=False, precision="f32")}
    files = {name: bundle.folder / name for name in bundle.manifest.files}
    return write_bundle(
        folder,
        lambda records: bundle.manifest.model_copy(update={"profiles": profiles, "files": records}),
        files | {INT8_NETWORK_NAME: folder.parent / INT8_NETWORK_NAME},
    )


def test_the_upgrade_stores_int8_activations_as_unsigned_integers(old: Bundle, tmp_path: Path) -> None:
    signed = with_signed_int8(old, tmp_path / "signed")
    upgraded = add_blocks(signed, tmp_path / "new")
    constants = onnx.load(upgraded.network("int8")).graph.initializer
    zero = next(numpy_helper.to_array(constant) for constant in constants if constant.name == "zero")
    assert (zero.dtype, zero) == (np.uint8, 0)
    assert upgraded.manifest.files["model.onnx"] == old.manifest.files["model.onnx"]
    image = generate_scene(0, 70, 50)[0]
    masks = [BundleSegmenter(each, profile="int8").segment(image).mask for each in (signed, upgraded)]
    assert np.array_equal(*masks)
    again = add_blocks(upgraded, tmp_path / "again")
    assert again.manifest.files == upgraded.manifest.files


def test_quality_is_measured_again_together_with_the_drift_reference(old: Bundle, tmp_path: Path) -> None:
    photographs = make_photographs(tmp_path / "photographs", 24)
    bundle = add_reference(
        old.folder, photographs, tmp_path / "new", split_file=None, part="val", quality=True, max_pixels=10_000
    )
    truths = [read_true_mask(pair) for pair in list_pairs(photographs).pairs]
    masks = [BundleSegmenter(old).segment(read_image(pair.image)).mask for pair in list_pairs(photographs).pairs]
    expected = compute_metrics(
        [confusion(truth, mask, 6) for truth, mask in zip(truths, masks, strict=True)], DEFAULT_CLASSES
    )
    quality = bundle.manifest.quality
    assert quality is not None
    assert (quality["images"], quality["miou"]) == (24, expected.miou)
    assert quality["data"] == "photographs of photographs"
    assert bundle.manifest.profiles[old.manifest.default_profile].figures["miou"] == round(expected.miou or 0, 4)
