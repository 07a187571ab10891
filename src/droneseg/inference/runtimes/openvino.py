"""OpenVINO on a CPU: normalisation, network and decision in one compiled graph."""

import hashlib
import threading
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import BundleError, ModelError
from droneseg.core.masks import Mask
from droneseg.core.system import usable_cores
from droneseg.inference.runtimes.compiled import CompiledNetworks
from droneseg.inference.runtimes.protocol import Patches, batch_for
from droneseg.inference.runtimes.silent_openvino import ov
from droneseg.inference.scores import Probabilities, require_finite

Answer: TypeAlias = Literal["scores", "winners"]
"""What a compiled graph gives: logits, or the winning class of each pixel and its probability."""

ops = ov.opset13


class OpenVinoRuntime:
    """A network on the CPU through OpenVINO.

    One tile's batch runs at a time, on all cores; callers from other threads wait. That is as fast as running them
    side by side, and needs the memory for one.

    Args:
        network: ONNX file: (N, 3, h, w) float32 to logits (N, C, h, w).
        patch: Height and width of a tile.
        precision: f32, or bf16 where the CPU computes it in hardware.
        takes_bytes: Whether tiles come as bytes (N, h, w, 3), to be divided by 255 in the graph.
        first: What will be asked for first: that graph is compiled at once, the other one when it is needed.
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
        first: Answer,
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
        # kept, as the file may be replaced by another model's before the second graph is asked for
        self._bytes = _verified_bytes(network, network_sha256)
        about = self._options | {"patch": patch, "takes_bytes": takes_bytes}
        self._kept = CompiledNetworks(cache, network_sha256, about) if cache else None
        self._requests: dict[tuple[Answer, int], ov.InferRequest] = {}
        self._request(first, 1)

    def scores(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, shape (N, C, H, W), dtype float32."""
        with self._lock:
            return np.array(self._run("scores", patches).get_output_tensor(0).data, dtype=np.float32)

    def winners(self, patches: Patches) -> tuple[Mask, Probabilities]:
        """Return class ids, shape (N, H, W), uint8, and the probability of each, float32."""
        with self._lock:
            done = self._run("winners", patches)
            ids = np.array(done.get_output_tensor(0).data, dtype=np.uint8)
            winning = np.array(done.get_output_tensor(1).data, dtype=np.float32)
        require_finite(winning)
        return ids, winning

    def _run(self, answer: Answer, patches: Patches) -> ov.InferRequest:
        request = self._request(answer, len(patches))
        request.infer([ov.Tensor(patches, shared_memory=True)])
        return request

    def _request(self, answer: Answer, batch: int) -> ov.InferRequest:
        """Return the request for this answer to a batch of this size, made when first asked for."""
        if (answer, batch) not in self._requests:
            graph = f"{answer} of {batch}"
            compiled = self._kept.load(self._core, graph, self._options) if self._kept else None
            if compiled is None:
                compiled = self._compile(answer, batch)
                if self._kept:
                    self._kept.keep(self._core, graph, compiled)
            self._requests[answer, batch] = compiled.create_infer_request()
        return self._requests[answer, batch]

    def _compile(self, answer: Answer, batch: int) -> ov.CompiledModel:
        try:
            model = self._core.read_model(self._bytes, b"")
            model.reshape([batch, 3, *self._patch])
            return self._core.compile_model(self._with_ends(model, answer), "CPU", self._options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run {self._network}: {error}") from error

    def _with_ends(self, model: ov.Model, answer: Answer) -> ov.Model:
        """Put normalisation before the network, and the decision behind it if that is what is asked for."""
        logits = model.get_results()[0].input_value(0)
        outputs = [logits] if answer == "scores" else _decide(logits)
        ended = ov.Model(outputs, model.get_parameters(), "droneseg")
        prepared = ov.preprocess.PrePostProcessor(ended)
        prepared.input().model().set_layout(ov.Layout("NCHW"))
        if self._takes_bytes:
            prepared.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            prepared.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        return prepared.build()


def _verified_bytes(network: Path, sha256: str) -> bytes:
    data = network.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(f"{network} was changed while it was loaded.")
    return data


def _decide(logits: ov.Output) -> list[ov.Output]:
    """Return the class of the highest logit, the first of equal ones, and its softmax probability.

    Written class by class: OpenVINO makes one pass over the pixels of that, where its own operators over the classes
    took longer than a small network.
    """
    classes = logits.get_partial_shape()[1].get_length()
    each = ops.split(logits, np.int64(1), classes).outputs()
    best, ids = each[0], ops.constant(np.zeros((1, 1, 1, 1), np.float32)).output(0)
    for number, score in enumerate(each[1:], start=1):
        ids = ops.select(ops.greater(score, best), np.float32(number), ids).output(0)
        best = ops.maximum(best, score).output(0)
    total = ops.exp(ops.subtract(each[0], best))
    for score in each[1:]:
        total = ops.add(total, ops.exp(ops.subtract(score, best)))
    channel = np.array([1])
    winning = ops.squeeze(ops.divide(np.float32(1), total), channel)
    return [ops.squeeze(ops.convert(ids, "u8"), channel).output(0), winning.output(0)]
