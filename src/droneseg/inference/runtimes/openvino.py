"""OpenVINO runtime and its compiled-model cache."""

import hashlib
import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import BundleError, ModelError
from droneseg.core.files import write_bytes
from droneseg.core.masks import Mask
from droneseg.core.system import no_telemetry, usable_cores
from droneseg.inference.runtimes.base import Patches, Probabilities, batch_for, require_finite

with no_telemetry():
    import openvino as ov


# Compiled networks on disk, each with its checksum.
#
# OpenVINO's own cache reads the whole network before it finds what it kept of it, and a flipped byte in what it kept
# changes masks without a word.

logger = logging.getLogger(__name__)

# Part of every name: change it when what is compiled around the network changes.
_VERSION = "2"
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_KEPT_BYTES = 2 * 10**9


class CompiledNetworks:
    """A folder of compiled networks, each named after all that it depends on.

    Args:
        folder: Made when first written to.
        network_sha256: Of the network's file.
        options: What it is compiled with, and for which tiles.
    """

    def __init__(self, folder: Path, network_sha256: str, options: dict[str, object]) -> None:
        self._folder = folder
        self._about = {"network": network_sha256, "options": options, "version": _VERSION, "openvino": ov.__version__}

    def load(self, core: ov.Core, graph: str, options: dict[str, object]) -> ov.CompiledModel | None:
        """Return the network compiled as this graph, or None if it was not kept or cannot be used any more."""
        file = self._file(core, graph)
        try:
            if not file.is_file():
                return None
            # mapped, not read: the weights are then in memory once
            content = np.memmap(file, dtype=np.uint8, mode="r")
            network, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
            if hashlib.sha256(network.data).digest() != checksum.tobytes():
                raise ValueError("its checksum does not fit")
            compiled = core.import_model(ov.Tensor(network), "CPU", options)
        except (RuntimeError, ValueError) as error:
            logger.warning("%s is damaged and made anew: %s", file, str(error).splitlines()[0])
            return None
        except OSError as error:
            logger.warning("the compiled network cannot be read, so this start is slow: %s", error)
            return None
        with suppress(OSError):  # somebody else's, or on a disk that is read only
            os.utime(file)
        return compiled

    def keep(self, core: ov.Core, graph: str, compiled: ov.CompiledModel) -> None:
        """Write the network for the next start; what was not used for longest goes."""
        try:
            network = compiled.export_model().getvalue()
            write_bytes(self._file(core, graph), network + hashlib.sha256(network).digest())
            self._forget_oldest()
        except OSError as error:
            logger.warning("the compiled network is not kept, so the next start is slow again: %s", error)

    def _forget_oldest(self) -> None:
        total = 0
        files = {file: file.stat() for file in self._folder.glob("*.blob")}
        for file, stat in sorted(files.items(), key=lambda item: -item[1].st_mtime):
            total += stat.st_size
            if total > _KEPT_BYTES:
                file.unlink(missing_ok=True)

    def _file(self, core: ov.Core, graph: str) -> Path:
        processor = {name: core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")}
        about = self._about | {"graph": graph, "processor": processor}
        return self._folder / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]}.blob"


Output: TypeAlias = Literal["scores", "winners"]
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
        first: Output,
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
        self._requests: dict[tuple[Output, int], ov.InferRequest] = {}
        self._request(first, 1)

    def logits(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, shape (N, C, H, W), dtype float32."""
        with self._lock:
            return np.array(self._run("scores", patches).get_output_tensor(0).data, dtype=np.float32)

    def argmax(self, patches: Patches) -> tuple[Mask, Probabilities]:
        """Return class ids, shape (N, H, W), uint8, and the probability of each, float32."""
        with self._lock:
            done = self._run("winners", patches)
            ids = np.array(done.get_output_tensor(0).data, dtype=np.uint8)
            winning = np.array(done.get_output_tensor(1).data, dtype=np.float32)
        require_finite(winning)
        return ids, winning

    def _run(self, answer: Output, patches: Patches) -> ov.InferRequest:
        request = self._request(answer, len(patches))
        request.infer([ov.Tensor(patches, shared_memory=True)])
        return request

    def _request(self, answer: Output, batch: int) -> ov.InferRequest:
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

    def _compile(self, answer: Output, batch: int) -> ov.CompiledModel:
        try:
            model = self._core.read_model(self._bytes, b"")
            model.reshape([batch, 3, *self._patch])
            return self._core.compile_model(self._with_ends(model, answer), "CPU", self._options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run {self._network}: {error}") from error

    def _with_ends(self, model: ov.Model, answer: Output) -> ov.Model:
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
