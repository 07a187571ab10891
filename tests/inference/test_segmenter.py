"""A bundle gives the same masks with all runtimes, numbers of tiles and numbers of threads."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.camera import UNKNOWN_GROUND, given_ground
from droneseg.core.classes import ClassTable, Role, SegmentationClass
from droneseg.core.errors import BundleError, ConfigurationError, ModelError
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.data.synthetic import generate_scene
from droneseg.flows.upgrade import add_blocks
from droneseg.inference.runtimes.base import Runtime, softmax
from droneseg.inference.runtimes.openvino import OpenVinoRuntime
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import Bundle, Calibration, NnunetLogits, read_bundle, write_bundle
from droneseg.training.class_folding import fold_outputs
from support.bundles import BIASES, TRAINED_AT, VIEWS, WEIGHTS, make_bundle, write_network

COLOURS = {1: (5, 5, 5), 2: (0, 0, 250), 3: (0, 250, 0), 4: (250, 0, 0), 5: (250, 250, 250)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def picture(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose pixels are coloured by class, and the classes."""
    ids = np.random.default_rng(seed).integers(1, 6, (height, width)).astype(np.uint8)
    table = np.array([(0, 0, 0), *COLOURS.values()], np.uint8)
    return table[ids], ids


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("profile", ["exact", "fast"])
@pytest.mark.parametrize("size", [(16, 24), (7, 9), (1, 40), (50, 1), (61, 83), (16, 100)])
def test_mask_pixels_align_with_image_pixels(
    bundle: Bundle, runtime: RuntimeName, profile: str, size: tuple[int, int]
) -> None:
    image, ids = picture(*size)
    found = BundleSegmenter(bundle, profile=profile, runtime=runtime).segment(image)
    assert np.array_equal(found.mask, ids)
    assert 0.5 < found.confidence <= 1
    assert sum(found.class_fractions.values()) == pytest.approx(1)
    assert found.model_id == bundle.model_id
    assert set(found.timings_s) == {"preprocess", "network", "postprocess"}


def test_second_start_uses_the_compiled_network(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, ids = picture(40, 60)
    BundleSegmenter(bundle, cache=tmp_path).segment(image)
    compiled: list[int] = []
    monkeypatch.setattr(OpenVinoRuntime, "_compile", lambda _runtime, batch: compiled.append(batch))
    assert np.array_equal(BundleSegmenter(bundle, cache=tmp_path).segment(image).mask, ids)
    assert not compiled


def test_unreadable_cache_only_slows_the_start(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, ids = picture(40, 60)
    BundleSegmenter(bundle, cache=tmp_path).segment(image)
    real = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent == tmp_path:  # root, who runs tests in containers, may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert np.array_equal(BundleSegmenter(bundle, cache=tmp_path).segment(image).mask, ids)


def test_float32_is_used_where_bfloat16_cannot_be_compiled(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_graph = OpenVinoRuntime._compile

    def fail_in_bf16(runtime: OpenVinoRuntime, *args: object) -> object:
        if runtime._options["INFERENCE_PRECISION_HINT"] == "bf16":
            raise ModelError("object is not initialized")
        return compile_graph(runtime, *args)

    monkeypatch.setattr(OpenVinoRuntime, "_compile", fail_in_bf16)
    image, ids = picture(40, 60)
    segmenter = BundleSegmenter(bundle, runtime=RuntimeName.OPENVINO)
    assert segmenter.runtime == "OpenVINO f32"
    assert np.array_equal(segmenter.segment(image).mask, ids)


@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_corrupt_compiled_network_is_recompiled(
    bundle: Bundle,
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("droneseg"), "propagate", True)
    image, ids = picture(40, 60)
    BundleSegmenter(bundle, cache=tmp_path).segment(image)
    files = list(tmp_path.iterdir())
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes({"flipped": content, "short": content[:100], "empty": b""}[damage])
    with caplog.at_level("WARNING", "droneseg"):
        assert np.array_equal(BundleSegmenter(bundle, cache=tmp_path).segment(image).mask, ids)
    assert "discarding corrupt cache file" in caplog.text
    caplog.clear()
    BundleSegmenter(bundle, cache=tmp_path).segment(image)
    assert not caplog.text


def test_black_border_is_background(bundle: Bundle) -> None:
    image, ids = picture(30, 40)
    framed = np.zeros((50, 70, 3), np.uint8)
    framed[12:42, 20:60] = image
    found = BundleSegmenter(bundle).segment(framed).mask
    assert np.array_equal(found[12:42, 20:60], ids)
    assert found.sum() == ids.sum(dtype=np.int64)


@pytest.mark.parametrize("gsd_m", [0.025, 0.005])
def test_black_image_is_background_if_the_scale_of_the_model_is_known(tmp_path: Path, gsd_m: float) -> None:
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", ground=TRAINED_AT, context=VIEWS))
    result = segmenter.segment(np.zeros((20, 30, 3), np.uint8), given_ground(gsd_m))
    assert set(np.unique(result.mask)) == {0}
    assert (result.confidence, result.class_fractions["background"]) == (1, 1)


def test_black_image_is_predicted(bundle: Bundle) -> None:
    assert set(np.unique(BundleSegmenter(bundle).segment(np.zeros((20, 30, 3), np.uint8)).mask)) == {1}


def test_segmenter_refuses_arrays_that_are_not_rgb_images(bundle: Bundle) -> None:
    segmenter = BundleSegmenter(bundle)
    image = picture(40, 50)[0]
    with pytest.raises(TypeError, match="float64"):
        segmenter.segment(image.astype(float) / 255)
    with pytest.raises(ValueError, match=r"\(40, 50\)"):
        segmenter.segment(image[..., 0])


def test_segmenter_accepts_a_flipped_view(bundle: Bundle) -> None:
    image, ids = picture(40, 50)
    assert np.array_equal(BundleSegmenter(bundle).segment(image[::-1, ::-1]).mask, ids[::-1, ::-1])


def test_eight_threads_give_the_same_masks_as_one(bundle: Bundle) -> None:
    segmenter = BundleSegmenter(bundle)
    images = [generate_scene(seed, 70 + 3 * seed, 50)[0] for seed in range(24)]
    directory_lock = [segmenter.segment(image).mask for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: segmenter.segment(image).mask, images * 4))
    assert all(np.array_equal(a, b) for a, b in zip(directory_lock * 4, together, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("profile", ["exact", "fast"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_divides_the_logits(
    bundle: Bundle, tmp_path: Path, runtime: RuntimeName, profile: str, temperature: float
) -> None:
    calibration = Calibration(temperature=temperature, source="this test")
    calibrated = write_bundle(
        tmp_path / "calibrated",
        lambda files: bundle.manifest.model_copy(update={"calibration": calibration, "files": files}),
        {name: bundle.folder / name for name in bundle.manifest.files},
    )
    image, ids = picture(16, 24)
    found = BundleSegmenter(calibrated, profile=profile, runtime=runtime).segment(image)
    logits = np.einsum("kc,hwc->khw", np.array(WEIGHTS), image / 255) + np.array(BIASES)[:, None, None]
    exponentials = np.exp(logits / temperature)
    expected = (exponentials.max(axis=0) / exponentials.sum(axis=0)).mean()
    assert found.confidence == pytest.approx(expected, abs=2e-3)
    assert np.array_equal(found.mask, ids)


class _Counting:
    """Runtime that counts the tiles it predicts."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.tiles = runtime, 0

    def __getattr__(self, name: str) -> Callable[[np.ndarray], object]:
        def run(patches: np.ndarray, *args: object) -> object:
            self.tiles += len(patches)
            return getattr(self._runtime, name)(patches, *args)

        return run if name in ("argmax", "logits") else getattr(self._runtime, name)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("gsd_m", [None, 0.01, 0.025, 0.04])
@pytest.mark.parametrize("size", [(16, 24), (7, 9), (61, 83), (160, 230)])
def test_tiles_are_counted_before_the_prediction(
    tmp_path: Path, size: tuple[int, int], gsd_m: float | None, plain: bool
) -> None:
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", ground=TRAINED_AT, context=VIEWS))
    counting = segmenter._runtime = _Counting(segmenter._runtime)  # type: ignore[assignment]
    ground = given_ground(gsd_m)
    segmenter.segment(picture(*size)[0], ground, plain=plain)
    assert segmenter.count_tiles(size, ground, plain=plain) == counting.tiles  # type: ignore[attr-defined]


def test_unknown_profile_error_lists_the_profiles(bundle: Bundle) -> None:
    with pytest.raises(ConfigurationError, match="has no profile 'int8'; it has exact, fast"):
        BundleSegmenter(bundle, profile="int8")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_non_finite_logits_raise_an_error(tmp_path: Path, runtime: RuntimeName, profile: str) -> None:
    write_network(tmp_path / "nan.onnx", biases=(0, 0, float("nan"), 0, 0, 0))
    broken = make_bundle(tmp_path / "bundle", network=tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match="non-finite"):
        BundleSegmenter(broken, profile=profile, runtime=runtime).segment(picture(40, 40)[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_invalid_network_file_is_an_error(tmp_path: Path, runtime: RuntimeName) -> None:
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ModelError, match="cannot run"):
        BundleSegmenter(make_bundle(tmp_path / "bundle", network=tmp_path / "text.onnx"), runtime=runtime)


def test_serving_packages_import_neither_torch_nor_nnunet() -> None:
    script = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "nnunetv2"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import droneseg
found = 0
for package in ("serving", "inference", "model", "monitoring"):
    try:
        base = importlib.import_module(f"droneseg.{package}")
    except ModuleNotFoundError as error:
        assert error.name == f"droneseg.{package}", error
        continue
    for module in pkgutil.walk_packages(base.__path__, base.__name__ + "."):
        importlib.import_module(module.name)
        found += 1
print(found)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_openvino_telemetry_is_off(tmp_path: Path) -> None:
    script = (
        "import sys, droneseg.inference.runtimes.openvino\n"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry')])"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "intel").exists()


def test_model_replaced_on_disk_does_not_change_the_loaded_one(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    bundle = make_bundle(tmp_path / "bundle", patch=(16, 24))
    expected = BundleSegmenter(bundle).segment(large).mask
    segmenter = BundleSegmenter(bundle)
    segmenter.segment(large[:16, :24])  # one tile: the graph for several is not compiled yet
    write_network(tmp_path / "bundle" / "model.onnx", biases=(99, 0, 0, 0, 0, 0))
    assert np.array_equal(segmenter.segment(large).mask, expected)
    with pytest.raises(BundleError, match="changed while it was being loaded"):
        BundleSegmenter(bundle)


@pytest.mark.parametrize(
    ("gsd_m", "codes"),
    [
        (None, ["unknown_scale"]),
        (TRAINED_AT.gsd_m, []),
        (TRAINED_AT.gsd_range_m[0] / 2, ["finer_than_trained"]),
        (TRAINED_AT.gsd_range_m[1] * 2, ["coarser_than_trained"]),
    ],
)
@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_pixels_used_as_they_are_get_a_warning_about_their_scale(
    tmp_path: Path, profile: str, gsd_m: float | None, codes: list[str]
) -> None:
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", ground=TRAINED_AT, context=VIEWS), profile=profile)
    result = segmenter.segment(picture(40, 60)[0], given_ground(gsd_m) if gsd_m else UNKNOWN_GROUND, plain=True)
    assert list(result.ground.warnings) == codes
    assert result.ground.scale == 1


FOLDED_IDS = (0, 1, 1, 2, 3, 2)
FOLDED = ClassTable(
    tuple(
        SegmentationClass(number, name, (number, 0, 0), role)
        for number, (name, role) in enumerate(
            [("background", None), ("danger", Role.OBSTACLE), ("ground", Role.LANDING), ("car", Role.MOVING)]
        )
    )
)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """A bundle with six classes of similar logits, and the same network with its classes folded to four."""
    folder = tmp_path_factory.mktemp("folded")
    network = folder / "six.onnx"
    write_network(network, 0.3 * np.array(WEIGHTS), (-1, 0.5, 0, 0, 0, -0.4))
    whole = make_bundle(folder / "whole", network=network)
    fold_outputs(network, FOLDED_IDS, keep_classes=True)
    plain = make_bundle(folder / "plain", network=network, classes=FOLDED)
    form = NnunetLogits(folds=1, class_ids=FOLDED_IDS)
    profiles = plain.manifest.profiles
    profiles = profiles | {"exact": profiles["exact"].model_copy(update={"nnunet_logits": form})}
    files = {name: plain.folder / name for name in plain.manifest.files}
    write_bundle(folder / "form", lambda _: plain.manifest.model_copy(update={"profiles": profiles}), files)
    # adds the self-check, which both profiles have to pass at every load
    return whole, add_blocks(read_bundle(folder / "form"), folder / "folded")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exact_gives_the_folded_class_of_nnunets_choice(folded: tuple[Bundle, Bundle], runtime: RuntimeName) -> None:
    whole, bundle = folded
    image = generate_scene(3, 50, 41)[0]
    before = BundleSegmenter(whole, profile="exact", runtime=runtime).segment(image).mask
    exact = BundleSegmenter(bundle, profile="exact", runtime=runtime).segment(image, landing=True)
    assert np.array_equal(exact.mask, np.array(FOLDED_IDS, np.uint8)[before])
    assert set(exact.class_fractions) == set(FOLDED.names)
    assert 1 / 4 <= exact.confidence <= 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_profiles_give_the_class_of_the_largest_summed_probability(
    folded: tuple[Bundle, Bundle], runtime: RuntimeName
) -> None:
    whole, bundle = folded
    image = generate_scene(3, 50, 41)[0]
    before = softmax(BundleSegmenter(whole, profile="exact", runtime=runtime).logits(image))
    sums = np.stack([before[np.array(FOLDED_IDS) == number].sum(axis=0) for number in range(len(FOLDED))])
    found = BundleSegmenter(bundle, profile="fast", runtime=runtime).segment(image).mask
    largest = np.sort(sums, axis=0)
    clear = largest[-1] - largest[-2] > 0.01  # bfloat16 decides close ones otherwise
    assert np.array_equal(found[clear], sums.argmax(axis=0)[clear])
    assert (found != np.array(FOLDED_IDS)[before.argmax(axis=0)]).any(), "sums and choices do not differ"
    exact = BundleSegmenter(bundle, profile="exact", runtime=runtime)
    assert np.allclose(softmax(exact.logits(image)), sums, atol=5e-3)
    _, probabilities, _ = exact.probabilities(image)
    assert np.abs(np.asarray(probabilities, np.float32) / 255 - sums).max() < 0.01
