"""INT8 quantisation without telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import write_network

pytestmark = pytest.mark.slow

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
