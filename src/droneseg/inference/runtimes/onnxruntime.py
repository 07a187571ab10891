"""ONNX Runtime on CPU and CUDA."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from droneseg.core.errors import ModelError
from droneseg.core.masks import Mask
from droneseg.core.system import usable_cores
from droneseg.inference.runtimes.base import Patches, Probabilities, argmax_with_confidence, batch_for, softmax

_CUDA = "CUDAExecutionProvider"
# the exceptions of ONNX Runtime have no common base class
_ERRORS = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def has_cuda() -> bool:
    """Return whether ONNX Runtime can use an NVIDIA GPU."""
    return _CUDA in ort.get_available_providers()


class OnnxRuntime:
    """Runs a network with ONNX Runtime in float32.

    Args:
        network: ONNX file that maps float32 tiles (N, 3, h, w) to logits (N, C, h, w).
        patch: Height and width of a tile.
        takes_bytes: Whether callers pass uint8 tiles (N, h, w, 3), which this class divides by 255.
        logits: Name of the output with the logits; None for the first output.

    Raises:
        ModelError: If ONNX Runtime cannot read the network.
    """

    def __init__(self, network: Path, patch: tuple[int, int], *, takes_bytes: bool, logits: str | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 3
        providers = [_CUDA, "CPUExecutionProvider"] if has_cuda() else ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(network, options, providers=providers)
        except _ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot run {network}: {error}") from error
        self._input = self._session.get_inputs()[0].name
        self._output = logits or self._session.get_outputs()[0].name
        self._takes_bytes = takes_bytes
        self._lock = threading.Lock()
        self.batch = batch_for(patch)
        self.name = f"ONNX Runtime f32 ({self._session.get_providers()[0].removesuffix('ExecutionProvider')})"

    def logits(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, shape (N, C, H, W), dtype float32."""
        values = patches
        if self._takes_bytes:
            values = np.ascontiguousarray(patches.transpose(0, 3, 1, 2), dtype=np.float32)
            values /= 255
        with self._lock:
            logits: NDArray[np.float32] = self._session.run([self._output], {self._input: values})[0]
        return logits

    def argmax(self, patches: Patches, temperature: float = 1.0) -> tuple[Mask, Probabilities]:
        """Return the predicted class ids (uint8) and their probabilities (float32), each of shape (N, H, W)."""
        return _argmax(self.logits(patches), temperature)

    def argmax_and_softmax(
        self, patches: Patches, temperature: float = 1.0
    ) -> tuple[Mask, Probabilities, NDArray[np.float32]]:
        """Return the results of `argmax`, and the probabilities of all classes, shape (N, C, H, W), dtype float32."""
        logits = self.logits(patches)
        return *_argmax(logits, temperature), np.stack([softmax(tile, temperature) for tile in logits])


def _argmax(logits: NDArray[np.float32], temperature: float) -> tuple[Mask, Probabilities]:
    results = [argmax_with_confidence(tile, temperature) for tile in logits]
    return np.stack([ids for ids, _ in results]), np.stack([probabilities for _, probabilities in results])
