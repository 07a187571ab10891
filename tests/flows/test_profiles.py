"""`best` averages scales, `twin` uses another network, and both profiles are checked like the others."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as pillow
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.camera import UNKNOWN_GROUND, given_ground
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable
from droneseg.core.errors import BundleError, ConfigurationError, ModelError
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.data.synthetic import generate_scene
from droneseg.flows.profiles import ProfileOptions, halve_weights
from droneseg.flows.upgrade import add_blocks
from droneseg.inference.probability_map import quantise
from droneseg.inference.runtimes.onnxruntime import OnnxRuntime
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.views import resample, softmax
from droneseg.model.bundle import TWIN_NETWORK_NAME, Bundle, Calibration, Profile, TrainingGround, write_bundle
from support.bundles import BIASES, TRAINED_AT, VIEWS, WEIGHTS, make_bundle, write_network

CALIBRATION = Calibration(temperature=1.3, source="test")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", patch=(32, 48), ground=TRAINED_AT, context=VIEWS, calibration=CALIBRATION)


@pytest.fixture
def twin(tmp_path: Path) -> Bundle:
    """A bundle with another network and another patch size."""
    write_network(tmp_path / "twin.onnx", WEIGHTS, (*BIASES[:5], BIASES[5] + 1))
    return make_bundle(
        tmp_path / "twin",
        patch=(16, 24),
        network=tmp_path / "twin.onnx",
        ground=TRAINED_AT,
        context=VIEWS,
        calibration=CALIBRATION.model_copy(update={"temperature": 1.9}),
    )


def write_graph(file: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> None:
    """Write a network from `patch` to `y`."""
    constants = [numpy_helper.from_array(np.asarray(values, np.float32), name) for name, values in weights.items()]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name, channels in (("patch", 3), ("y", 6))
    ]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def test_best_averages_the_logits_of_its_scales(bundle: Bundle, tmp_path: Path) -> None:
    upgraded = add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions((1.0, 2.0)))
    # the exposure of both sizes would be corrected separately below
    changes = {"context": VIEWS, "calibration": CALIBRATION}
    upgraded = replace(upgraded, manifest=upgraded.manifest.model_copy(update=changes))
    best, fast = (BundleSegmenter(upgraded, profile=name) for name in ("best", "fast"))
    image = generate_scene(0, 48, 32)[0]
    larger = fast.logits(resample(image, (64, 96)))
    reduced = np.stack([pillow.fromarray(channel).resize((48, 32), pillow.Resampling.BILINEAR) for channel in larger])
    _, values, _ = best.probabilities(image)
    expected = softmax((fast.logits(image) + reduced) / 2, 1.3)
    # the larger image has several tiles, whose borders are mirrored
    assert np.abs(values / 255 - expected).max() < 0.01
    _, plain, _ = best.probabilities(image, plain=True)
    assert np.abs(plain / 255 - softmax(fast.logits(image), 1.3)).max() < 0.01
    assert best.count_tiles((32, 48)) == 1 + 9
    assert best.count_tiles((32, 48), plain=True) == 1


def test_a_scale_uses_the_detail_of_the_photograph(tmp_path: Path) -> None:
    # moving objects where red and blue differ
    constants = {"a": [[0, 0, 0]] * 4 + [[10, 0, -10], [0, 0, 0]], "b": np.eye(6)}
    nodes = [
        helper.make_node("Conv", ["patch", "a"], ["h"]),
        helper.make_node("Abs", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "b"], ["y"]),
    ]
    write_graph(tmp_path / "edges.onnx", nodes, {n: np.reshape(v, (6, -1, 1, 1)) for n, v in constants.items()})
    plain = make_bundle(
        tmp_path / "edges", patch=(32, 48), network=tmp_path / "edges.onnx", ground=TRAINED_AT, context=VIEWS
    )
    upgraded = add_blocks(plain, tmp_path / "new", profiles=ProfileOptions((1.0, 2.0)))
    # lines of one pixel, which vanish if the photograph is reduced by half
    image = np.zeros((64, 96, 3), np.uint8)
    image[::2] = (255, 0, 0)
    image[1::2] = (0, 0, 255)
    ground = given_ground(0.0125)
    best, fast = (BundleSegmenter(upgraded, profile=name).probabilities(image, ground)[2] for name in ("best", "fast"))
    assert best.values.shape == fast.values.shape == (6, 32, 48)
    assert fast.values[4].max() == quantise(softmax(np.zeros((6, 1, 1), np.float32)))[4]
    # logits 0 and 10 are averaged
    assert best.values[4].min() > 0.95 * 255


def test_a_scale_that_enlarges_more_than_twofold_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    upgraded = add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions((1.0, 2.0)))
    best = BundleSegmenter(upgraded, profile="best")
    assert best.count_tiles((32, 48), given_ground(0.025)) == 1 + 9
    assert (
        best.count_tiles((32, 48), given_ground(0.0376))
        == best.count_tiles((48, 72), given_ground(0.025), plain=True) + 1
    )


@pytest.mark.parametrize("size", [(32, 48), (70, 100)])
def test_other_profiles_are_unchanged(bundle: Bundle, twin: Bundle, tmp_path: Path, size: tuple[int, int]) -> None:
    upgraded = add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions((1.0, 1.5), twin))
    without = add_blocks(bundle, tmp_path / "without")
    image = generate_scene(0, size[1], size[0])[0]
    for profile in ("exact", "fast"):
        assert upgraded.manifest.profiles[profile] == bundle.manifest.profiles[profile]
        for ground in (UNKNOWN_GROUND, given_ground(0.02)):
            masks = [
                BundleSegmenter(each, profile=profile).segment(image, ground).mask.tobytes()
                for each in (without, upgraded)
            ]
            assert masks[0] == masks[1]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_twin_has_the_network_patch_and_temperature_of_its_bundle(
    bundle: Bundle, twin: Bundle, tmp_path: Path, runtime: RuntimeName
) -> None:
    upgraded = add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions(twin=twin))
    image = generate_scene(1, 60, 40)[0]
    found = BundleSegmenter(upgraded, profile="twin", runtime=runtime)
    expected = BundleSegmenter(twin, runtime=runtime)
    assert found.info.input_shape == (16, 24, 3)
    assert found.count_tiles((40, 60)) == expected.count_tiles((40, 60))
    maps = [segmenter.probabilities(image)[1] for segmenter in (found, expected)]
    assert np.array_equal(*maps)
    assert "passed" in found.info.self_check


def test_self_check_covers_the_twin(bundle: Bundle, twin: Bundle, tmp_path: Path) -> None:
    upgraded = add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions((1.0, 1.5), twin))
    check = upgraded.manifest.self_check
    assert check is not None
    expected = json.loads((upgraded.folder / check.expected).read_text())
    assert set(expected) == {"model.onnx", TWIN_NETWORK_NAME}
    expected[TWIN_NETWORK_NAME] = np.roll(expected[TWIN_NETWORK_NAME], 1, axis=0).tolist()
    (upgraded.folder / check.expected).write_text(json.dumps(expected))
    spoilt = write_bundle(
        tmp_path / "spoilt",
        lambda files: upgraded.manifest.model_copy(update={"files": files}),
        {name: upgraded.folder / name for name in upgraded.manifest.files},
    )
    for profile in ("exact", "fast", "best"):
        assert "passed" in BundleSegmenter(spoilt, profile=profile).info.self_check
    with pytest.raises(ModelError, match="self-check"):
        BundleSegmenter(spoilt, profile="twin")


def test_an_incompatible_twin_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = TrainingGround(gsd_m=0.05, gsd_range_m=(0.02, 0.1), source="test")
    twin = make_bundle(tmp_path / "other", ground=other)
    with pytest.raises(ConfigurationError, match=r"ground resolution 0\.05 instead of 0\.025"):
        add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions(twin=twin))
    assert not (tmp_path / "new").exists()


def test_a_twin_with_other_classes_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    classes = ClassTable(tuple(replace(entry, name=f"my {entry.name}") for entry in DEFAULT_CLASSES))
    twin = make_bundle(tmp_path / "other", ground=TRAINED_AT, classes=classes)
    with pytest.raises(ConfigurationError, match=r"it has classes my background, .* instead of background, "):
        add_blocks(bundle, tmp_path / "new", profiles=ProfileOptions(twin=twin))
    assert not (tmp_path / "new").exists()


def test_further_profiles_survive_another_upgrade(bundle: Bundle, twin: Bundle, tmp_path: Path) -> None:
    first = add_blocks(bundle, tmp_path / "a", profiles=ProfileOptions((1.0, 1.5), twin))
    again = add_blocks(first, tmp_path / "b")
    assert again.manifest.profiles == first.manifest.profiles
    assert again.manifest.files == first.manifest.files


@pytest.mark.parametrize("scales", [(1.5,), (1.0, 1.0), (1.0, 9.0), ()])
def test_scales_must_differ_and_contain_1(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales"):
        Profile(network="model.onnx", mirroring=True, precision="f32", scales=scales)


def test_exact_cannot_have_scales() -> None:
    with pytest.raises(ValueError, match="half_sums"):
        Profile(network="model.onnx", mirroring=True, precision="f32", half_sums=True, scales=(1.0, 2.0))


def test_profiles_with_one_network_have_one_patch_size(bundle: Bundle, tmp_path: Path) -> None:
    profiles = dict(bundle.manifest.profiles)
    profiles["fast"] = profiles["fast"].model_copy(update={"patch_size": (16, 24), "divisor": (1, 1)})
    with pytest.raises(BundleError, match="same network must have the same patch_size"):
        write_bundle(
            tmp_path / "new",
            lambda files: bundle.manifest.model_copy(update={"profiles": profiles, "files": files}),
            {name: bundle.folder / name for name in bundle.manifest.files},
        )


def test_halved_weights_are_rounded_and_the_file_shrinks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(0, 0.1, (64, 3, 3, 3)), "b": rng.normal(0, 0.1, (6, 64, 1, 1))}
    nodes = [helper.make_node("Conv", ["patch", "a"], ["h"], pads=[1] * 4), helper.make_node("Conv", ["h", "b"], ["y"])]
    write_graph(tmp_path / "whole.onnx", nodes, weights)
    halve_weights(tmp_path / "whole.onnx", tmp_path / "half.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("half.onnx", "whole.onnx")]
    assert sizes[0] < 0.7 * sizes[1]
    patch = rng.random((1, 3, 16, 16), np.float32)
    half, whole = (
        OnnxRuntime(tmp_path / name, (16, 16), takes_bytes=False).logits(patch) for name in ("half.onnx", "whole.onnx")
    )
    assert 0 < np.abs(half - whole).max() < 0.002
    # biases and other small values stay as they are
    assert {entry.name for entry in onnx.load(tmp_path / "half.onnx").graph.initializer} == {"a_float16", "b"}


def test_command_adds_profiles_and_describes_them(bundle: Bundle, twin: Bundle, tmp_path: Path) -> None:
    words = ["models", "upgrade", str(bundle.folder), "--twin", str(twin.folder), "--out"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "new"), "--best-scales", "1,1.5"])
    assert done.exit_code == 0, done.output
    assert "profiles: exact, fast (default), best (2 scales), twin (temperature 1.9)" in done.output
    for wrong in ("1.5", "1,x", "1,1", "1,nan"):
        refused = CliRunner().invoke(app, [*words, str(tmp_path / "wrong"), "--best-scales", wrong])
        assert refused.exit_code == 2
        assert not (tmp_path / "wrong").exists()
