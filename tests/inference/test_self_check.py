"""A runtime whose predictions differ from those that the bundle expects is refused at load."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.classes import Normalisation
from droneseg.core.errors import BundleError, ModelError
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.core.settings import Settings
from droneseg.data.synthetic import generate_self_check_image
from droneseg.inference.runtimes.onnxruntime import OnnxRuntime
from droneseg.inference.runtimes.openvino import OpenVinoRuntime
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.self_check import build_self_check, read_self_check
from droneseg.model.bundle import (
    INT8_NETWORK_NAME,
    NETWORK_NAME,
    Bundle,
    Calibration,
    Profile,
    write_bundle,
)
from droneseg.model.store import pull_model
from droneseg.serving.app import create_app
from support.bundles import BIASES, WEIGHTS, make_bundle, write_network
from support.shared import make_once
from support.waiting import wait_until

PATCH = (48, 64)
ROOT = Path(__file__).parents[2]


def with_self_check(bundle: Bundle, folder: Path, **changes: object) -> Bundle:
    """Write a copy of a bundle with a self-check."""
    folder.parent.mkdir(exist_ok=True)
    image = generate_self_check_image(*bundle.manifest.patch_size[::-1])
    block, files = build_self_check(bundle, image, folder.parent)
    return write_bundle(
        folder,
        lambda records: bundle.manifest.model_copy(update={"self_check": block, "files": records, **changes}),
        {name: bundle.folder / name for name in bundle.manifest.files} | files,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with a self-check."""
    return with_self_check(make_bundle(tmp_path / "unchecked", patch=PATCH), tmp_path / "checked" / "bundle")


def flip(runtime: type[OpenVinoRuntime] | type[OnnxRuntime], patch: pytest.MonkeyPatch) -> None:
    """Make a runtime return the mirror image of its results, as if it were faulty."""
    logits, argmax = runtime.logits, runtime.argmax
    patch.setattr(runtime, "logits", lambda *args: logits(*args)[..., ::-1])
    if runtime is OpenVinoRuntime:  # the argmax of the other one uses its logits
        patch.setattr(runtime, "argmax", lambda *args: tuple(values[..., ::-1] for values in argmax(*args)))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_correct_runtime_passes(bundle: Bundle, runtime: RuntimeName, profile: str) -> None:
    segmenter = BundleSegmenter(bundle, profile=profile, runtime=runtime)
    assert segmenter.info.self_check.startswith(f"{segmenter.runtime} passed; its difference is 0.0")


@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_expected_probabilities_are_those_of_a_prediction(tmp_path: Path, normalisation: Normalisation) -> None:
    plain = make_bundle(tmp_path / "unchecked", patch=PATCH)
    plain = write_bundle(
        tmp_path / "normalised",
        lambda files: plain.manifest.model_copy(update={"normalisation": normalisation, "files": files}),
        {NETWORK_NAME: plain.network("fast")},
    )
    bundle = with_self_check(plain, tmp_path / "new" / "bundle")
    image, expected = read_self_check(bundle, "fast")
    segmenter = BundleSegmenter(bundle, runtime=RuntimeName.ONNXRUNTIME)
    assert segmenter.info.self_check.startswith("ONNX Runtime f32 (CPU) passed; its difference is 0.0000")
    prediction = segmenter.segment(image)
    assert expected.sum(axis=0).mean() == pytest.approx(prediction.confidence, abs=1e-3)
    cells = prediction.mask.reshape(6, PATCH[0] // 6, 8, PATCH[1] // 8).swapaxes(1, 2).reshape(48, -1)
    shares = np.array([(cells == number).mean(axis=1) for number in range(6)]).reshape(expected.shape)
    assert np.array_equal(expected > 0, shares > 0)
    assert (expected < shares + 1e-3).all()


@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_wrong_runtime_is_replaced(
    bundle: Bundle, profile: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("droneseg"), "propagate", True)
    flip(OpenVinoRuntime, monkeypatch)
    segmenter = BundleSegmenter(bundle, profile=profile)
    assert segmenter.runtime.startswith("ONNX Runtime")
    assert segmenter.info.self_check.startswith("ONNX Runtime f32 (CPU) passed")
    assert "; OpenVINO " in segmenter.info.self_check
    assert "was refused; its difference is 0." in segmenter.info.self_check
    assert f"self-check of profile {profile}: OpenVINO" in caplog.text
    image = generate_self_check_image(90, 70)
    expected = BundleSegmenter(bundle, profile=profile, runtime=RuntimeName.ONNXRUNTIME).segment(image)
    assert np.array_equal(segmenter.segment(image).mask, expected.mask)


def test_runtime_that_cannot_run_the_network_is_replaced(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise ModelError("unsupported layer")

    monkeypatch.setattr(OpenVinoRuntime, "_compile", fail)
    segmenter = BundleSegmenter(bundle)
    assert segmenter.runtime.startswith("ONNX Runtime")
    assert "openvino was refused: unsupported layer" in segmenter.info.self_check


def test_runtime_with_non_finite_results_is_replaced(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise ModelError("The network returned non-finite logits")

    monkeypatch.setattr(OpenVinoRuntime, "argmax", fail)
    assert BundleSegmenter(bundle).runtime.startswith("ONNX Runtime")


def test_chosen_runtime_that_is_wrong_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(OpenVinoRuntime, monkeypatch)
    with pytest.raises(ModelError, match=r"fails its self-check .* OpenVINO .* was refused.* or the runtime auto\.$"):
        BundleSegmenter(bundle, runtime=RuntimeName.OPENVINO)


def test_model_is_refused_if_no_runtime_passes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(OpenVinoRuntime, monkeypatch)
    flip(OnnxRuntime, monkeypatch)
    with pytest.raises(
        ModelError, match=r"OpenVINO .* was refused.*; ONNX Runtime .* was refused.* another profile\.$"
    ):
        BundleSegmenter(bundle)


def test_bundle_without_self_check_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(OpenVinoRuntime, monkeypatch)
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle"))
    assert segmenter.runtime.startswith("OpenVINO")
    assert segmenter.info.self_check == "not checked: the bundle has no self-check"


def test_temperature_does_not_change_the_self_check(bundle: Bundle, tmp_path: Path) -> None:
    hot = write_bundle(
        tmp_path / "hot",
        lambda _files: bundle.manifest.model_copy(update={"calibration": Calibration(temperature=9, source="this")}),
        {name: bundle.folder / name for name in bundle.manifest.files},
    )
    assert BundleSegmenter(hot).info.self_check == BundleSegmenter(bundle).info.self_check


def change_json(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Return a function that changes the expected probabilities of a bundle."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "self_check.json").read_text())
        (folder / "self_check.json").write_text(json.dumps(change(content)))

    return apply


@pytest.mark.parametrize(
    "change",
    [
        change_json(lambda _content: {}),
        change_json(lambda _content: []),
        change_json(lambda _content: {NETWORK_NAME: [[0.5]]}),
        change_json(lambda _content: {NETWORK_NAME: "x"}),
    ],
)
def test_malformed_self_check_is_an_error(bundle: Bundle, tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(bundle.folder)
    broken = write_bundle(
        tmp_path / "broken",
        lambda files: bundle.manifest.model_copy(update={"files": files}),
        {name: bundle.folder / name for name in bundle.manifest.files},
    )
    with pytest.raises(BundleError, match=r"The self-check of .*broken has .* Export the model again\."):
        BundleSegmenter(broken)


def test_building_refuses_runtimes_that_disagree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_bundle(tmp_path / "unchecked", patch=PATCH)
    flip(OpenVinoRuntime, monkeypatch)
    with pytest.raises(ModelError, match="OpenVINO and ONNX Runtime differ by 0"):
        with_self_check(plain, tmp_path / "new" / "bundle")


def test_int8_network_that_openvino_gets_wrong_runs_with_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_network(tmp_path / "int8.onnx")
    plain = make_bundle(tmp_path / "unchecked", patch=PATCH)
    profiles = plain.manifest.profiles | {"int8": Profile(network=INT8_NETWORK_NAME, mirroring=False, precision="f32")}
    plain = write_bundle(
        tmp_path / "int8",
        lambda files: plain.manifest.model_copy(update={"profiles": profiles, "files": files}),
        {NETWORK_NAME: plain.network("fast"), INT8_NETWORK_NAME: tmp_path / "int8.onnx"},
    )
    compile_graph = OpenVinoRuntime._compile

    def compile_wrongly(runtime: OpenVinoRuntime, *args: object) -> object:
        """Compile the INT8 network with the weights of other classes."""
        if runtime._network.name == INT8_NETWORK_NAME:
            write_network(tmp_path / "wrong.onnx", np.roll(WEIGHTS, 1, axis=0), np.roll(BIASES, 1))
            runtime._bytes = (tmp_path / "wrong.onnx").read_bytes()
        return compile_graph(runtime, *args)

    monkeypatch.setattr(OpenVinoRuntime, "_compile", compile_wrongly)
    bundle = with_self_check(plain, tmp_path / "new" / "bundle")
    assert BundleSegmenter(bundle, profile="int8").runtime.startswith("ONNX Runtime")
    assert BundleSegmenter(bundle, profile="fast").runtime.startswith("OpenVINO")


def test_model_info_and_doctor_name_the_refused_runtime(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(OpenVinoRuntime, monkeypatch)
    monkeypatch.chdir(tmp_path)
    settings = Settings(model=bundle.folder, cache_dir=tmp_path / "cache", records_url="none", reports_url="none")
    with TestClient(create_app(settings)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        described = client.get("/model_info").json()
    assert described["framework"].startswith("ONNX Runtime")
    assert re.search(r"; OpenVINO (bf16|f32) was refused; its difference is 0", described["self_check"])
    monkeypatch.setenv("DRONESEG_MODEL", str(bundle.folder))
    monkeypatch.setenv("DRONESEG_CACHE_DIR", str(tmp_path / "cache"))
    findings = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert findings["model"] == f"{bundle.model_id}, profile fast, ONNX Runtime f32 (CPU)"
    assert findings["self-check"] == described["self_check"]


def test_service_without_a_correct_runtime_responds_503_and_doctor_gives_the_reason(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(OpenVinoRuntime, monkeypatch)
    flip(OnnxRuntime, monkeypatch)
    monkeypatch.chdir(tmp_path)
    settings = Settings(model=bundle.folder, cache_dir=tmp_path / "cache", records_url="none", reports_url="none")
    with TestClient(create_app(settings)) as client:
        wait_until(lambda: "fails its self-check" in client.get("/model_info").text)
        assert client.get("/model_info").status_code == 503
    monkeypatch.setenv("DRONESEG_MODEL", str(bundle.folder))
    findings = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert findings["model"].startswith("cannot be used: Profile fast of ")


_LOAD = """
import sys
from pathlib import Path
from droneseg.core.runtimes import RuntimeName
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle
for profile in ("exact", "fast"):
    segmenter = BundleSegmenter(read_bundle(Path(sys.argv[1])), profile=profile, runtime=RuntimeName.OPENVINO)
    print(segmenter.info.self_check)
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_champion_passes_with_limited_instruction_sets(
    instructions: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def pull(folder: Path) -> None:
        for name in (".dvc/config", "nnUNet_results.dvc"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "dvc-remote").symlink_to(ROOT / "dvc-remote")
        pull_model(folder / "nnUNet_results/champion")

    folder = make_once(tmp_path_factory, "champion", pull)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder / "nnUNet_results/champion")],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.startswith("OpenVINO") and " passed; " in line for line in done.stdout.splitlines()] == [True, True]
