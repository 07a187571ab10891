"""OpenVINO on a CPU: normalisation, network and decision in one compiled graph."""

import threading
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import ModelError
from droneseg.core.machine import usable_cores
from droneseg.core.masks import Mask
from droneseg.inference.runtimes.compiled import CompiledNetworks
from droneseg.inference.runtimes.protocol import Patches, batch_for
from droneseg.inference.runtimes.silent_openvino import ov
from droneseg.inference.scores import Probabilities, require_finite

ops = ov.opset13
_SCORES, _IDS, _WINNING = 0, 1, 2


class OpenVinoRuntime:
    """A network on the CPU through OpenVINO.

    One tile's batch runs at a time, on all cores; callers from other threads wait. That is as fast as running them
    side by side, and needs the memory for one.

    Args:
        network: ONNX file: (N, 3, h, w) float32 to logits (N, C, h, w).
        patch: Height and width of a tile.
        precision: f32, or bf16 where the CPU computes it in hardware.
        takes_bytes: Whether tiles come as bytes (N, h, w, 3), to be divided by 255 in the graph.
        cache: Folder for compiled networks, which makes the next start faster; None for none.
        network_sha256: Of the ONNX file.

    Raises:
        ModelError: If OpenVINO cannot read or compile the network.
    """

    def __init__(
        self,
        network: Path,
        patch: tuple[int, int],
        *,
        precision: Literal["f32", "fastest"],
        takes_bytes: bool,
        cache: Path | None,
        network_sha256: str,
    ) -> None:
        self.batch = batch_for(patch)
        self._lock = threading.Lock()
        core = ov.Core()
        bf16 = precision == "fastest" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._options: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": usable_cores(),
        }
        self.name = f"OpenVINO {'bf16' if bf16 else 'f32'}"
        self._core, self._network, self._patch, self._takes_bytes = core, network, patch, takes_bytes
        about = self._options | {"patch": patch, "takes_bytes": takes_bytes}
        self._kept = CompiledNetworks(cache, network_sha256, about) if cache else None
        self._requests: dict[int, ov.InferRequest] = {}
        self._request(1)

    def scores(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, shape (N, C, H, W), dtype float32."""
        with self._lock:
            return np.array(self._run(patches).get_output_tensor(_SCORES).data, dtype=np.float32)

    def winners(self, patches: Patches) -> tuple[Mask, Probabilities]:
        """Return class ids, shape (N, H, W), uint8, and the probability of each, float32."""
        with self._lock:
            done = self._run(patches)
            ids = np.array(done.get_output_tensor(_IDS).data, dtype=np.uint8)
            winning = np.array(done.get_output_tensor(_WINNING).data, dtype=np.float32)
        require_finite(winning)
        return ids, winning

    def _run(self, patches: Patches) -> ov.InferRequest:
        request = self._request(len(patches))
        request.infer([ov.Tensor(patches, shared_memory=True)])
        return request

    def _request(self, batch: int) -> ov.InferRequest:
        """Return the request for a batch of this size, made when first asked for."""
        if batch not in self._requests:
            compiled = self._kept.load(self._core, batch, self._options) if self._kept else None
            if compiled is None:
                compiled = self._compile(batch)
                if self._kept:
                    self._kept.keep(self._core, batch, compiled)
            self._requests[batch] = compiled.create_infer_request()
        return self._requests[batch]

    def _compile(self, batch: int) -> ov.CompiledModel:
        try:
            model = self._core.read_model(self._network)
            model.reshape([batch, 3, *self._patch])
            return self._core.compile_model(self._with_ends(model), "CPU", self._options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run {self._network}: {error}") from error

    def _with_ends(self, model: ov.Model) -> ov.Model:
        """Put normalisation before the network, and behind it the winning class and its softmax probability."""
        logits = model.get_results()[0].input_value(0)
        best = ops.reduce_max(logits, np.array([1]), keep_dims=True)
        total = ops.reduce_sum(ops.exp(ops.subtract(logits, best)), np.array([1]))
        winning = ops.divide(np.float32(1), total)
        top = ops.topk(logits, np.int32(1), 1, "max", "value", index_element_type="i32", stable=True)
        ids = ops.convert(ops.squeeze(top.output(1), np.array([1])), "u8")
        ended = ov.Model([logits, ids.output(0), winning.output(0)], model.get_parameters(), "droneseg")
        prepared = ov.preprocess.PrePostProcessor(ended)
        prepared.input().model().set_layout(ov.Layout("NCHW"))
        if self._takes_bytes:
            prepared.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            prepared.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        return prepared.build()
