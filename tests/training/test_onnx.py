"""INT8 quantisation: activations that OpenVINO computes correctly, and no telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from droneseg.training.onnx import make_activations_unsigned, quantise
from support.bundles import write_network

pytestmark = pytest.mark.slow

SHAPE = (1, 16, 24, 32)

_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from droneseg.training.onnx import quantise
patches = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
quantise(Path(sys.argv[1]), Path(sys.argv[2]), patches)
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


def test_quantise_sends_no_telemetry(tmp_path: Path) -> None:
    write_network(tmp_path / "network.onnx")
    # in a subprocess, since NNCF disables its telemetry under pytest
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(tmp_path / "network.onnx"), str(tmp_path / "int8.onnx")],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert (tmp_path / "int8.onnx").stat().st_size > 0
    assert not (tmp_path / "intel").exists()


def concatenating_network(seed: int = 0) -> onnx.ModelProto:
    """Return a quantised network: the convolution of two concatenated inputs with signed activations."""
    rng = np.random.default_rng(seed)
    constants = {
        "scale": np.float32(0.03),
        "zero": np.array(-28, np.int8),
        # half of the range: sums of two products saturate in 16 bits on CPUs without VNNI
        "weights": rng.integers(-64, 64, (8, 32, 3, 3)).astype(np.int8),
        "weights_scale": np.full(8, 0.01, np.float32),
        "weights_zero": np.zeros(8, np.int8),
    }
    nodes = [helper.make_node("DequantizeLinear", ["weights", "weights_scale", "weights_zero"], ["kernel"], axis=0)]
    for name in ("a", "b"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"q{name}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{name}", "scale", "zero"], [f"d{name}"]))
    nodes.append(helper.make_node("Concat", ["da", "db"], ["both"], axis=1))
    nodes.append(helper.make_node("Conv", ["both", "kernel"], ["logits"], pads=[1] * 4))
    graph = helper.make_graph(
        nodes,
        "concatenation",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("a", "b")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 8, 24, 32))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run_with_onnxruntime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_unsigned_activations_are_right_with_openvino() -> None:
    inputs = {name: np.random.default_rng(1).uniform(-3, 4, SHAPE).astype(np.float32) for name in ("a", "b")}
    model = concatenating_network()
    expected = run_with_onnxruntime(model, inputs)
    assert make_activations_unsigned(model) == 1
    np.testing.assert_allclose(run_with_onnxruntime(model, inputs), expected, atol=1e-3)
    core = openvino.Core()
    network = core.read_model(model.SerializeToString(), b"")
    found = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]
    assert np.abs(found - expected).mean() < 0.005 * expected.std()


def test_unsigned_activations_leave_weights_alone() -> None:
    model = concatenating_network()
    make_activations_unsigned(model)
    types = {constant.name: numpy_helper.to_array(constant).dtype for constant in model.graph.initializer}
    assert (types["zero"], types["weights"], types["weights_zero"]) == (np.uint8, np.int8, np.int8)
    assert make_activations_unsigned(model) == 0


def test_quantised_network_has_unsigned_activations_and_half_range_weights(tmp_path: Path) -> None:
    write_network(tmp_path / "network.onnx")
    patches = np.random.default_rng(0).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    quantise(tmp_path / "network.onnx", tmp_path / "int8.onnx", patches)
    model = onnx.load(tmp_path / "int8.onnx")
    values = [numpy_helper.to_array(constant) for constant in model.graph.initializer]
    weights = [value for value in values if value.dtype == np.int8 and value.ndim == 4]
    assert weights
    assert all(np.abs(value.astype(int)).max() <= 64 for value in weights)
    assert any(value.dtype == np.uint8 for value in values)
    assert make_activations_unsigned(model) == 0
