"""OpenVINO runtime, and its cache of compiled networks."""

import hashlib
import json
import logging
import os
import threading
from contextlib import suppress
from functools import reduce
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

logger = logging.getLogger(__name__)
ops = ov.opset13

Output: TypeAlias = Literal["logits", "argmax", "softmax"]
"""Output of a compiled graph: logits; the predicted class of each pixel and its probability (argmax); or these two and
the probabilities of all classes (softmax)."""

# part of every cache key; change it when the graph around the network changes
_VERSION = "3"
_SCALAR = (1, 1, 1, 1)
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_MAX_CACHE_BYTES = 2 * 10**9


class CompiledNetworks:
    """Cache folder of compiled networks. File names are hashes of everything that the compilation depends on.

    OpenVINO's own cache has to read the whole network to find the compiled one, and has no checksums: a flipped byte in
    it changes masks without an error.

    Args:
        folder: Cache folder; created by the first write.
        network_sha256: SHA-256 of the network's file.
        options: Compilation options and tile size.
    """

    def __init__(self, folder: Path, network_sha256: str, options: dict[str, object]) -> None:
        self._folder = folder
        self._key = {"network": network_sha256, "options": options, "version": _VERSION, "openvino": ov.__version__}

    def load(self, core: ov.Core, graph: str, options: dict[str, object]) -> ov.CompiledModel | None:
        """Return the compiled network for this graph, or None if it is not in the cache or cannot be used."""
        file = self._file(core, graph)
        try:
            if not file.is_file():
                return None
            # memory-mapped, so that the weights are in memory only once
            content = np.memmap(file, dtype=np.uint8, mode="r")
            network, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
            if hashlib.sha256(network.data).digest() != checksum.tobytes():
                raise ValueError("checksum mismatch")
            compiled = core.import_model(ov.Tensor(network), "CPU", options)
        except (RuntimeError, ValueError) as error:
            logger.warning("discarding corrupt cache file %s: %s", file, str(error).splitlines()[0])
            return None
        except OSError as error:
            logger.warning("cannot read the compiled network from the cache; this start takes longer: %s", error)
            return None
        with suppress(OSError):  # owned by another user, or on a read-only disk
            os.utime(file)
        return compiled

    def store(self, core: ov.Core, graph: str, compiled: ov.CompiledModel) -> None:
        """Write a compiled network to the cache, and delete the least recently used ones beyond the size limit."""
        try:
            network = compiled.export_model().getvalue()
            write_bytes(self._file(core, graph), network + hashlib.sha256(network).digest())
            self._delete_oldest()
        except OSError as error:
            logger.warning("cannot cache the compiled network; the next start takes longer: %s", error)

    def _delete_oldest(self) -> None:
        total = 0
        files = {file: file.stat() for file in self._folder.glob("*.blob")}
        for file, stat in sorted(files.items(), key=lambda item: -item[1].st_mtime):
            total += stat.st_size
            if total > _MAX_CACHE_BYTES:
                file.unlink(missing_ok=True)

    def _file(self, core: ov.Core, graph: str) -> Path:
        processor = {name: core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")}
        key = self._key | {"graph": graph, "processor": processor}
        return self._folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.blob"


class OpenVinoRuntime:
    """Runs a network on the CPU with OpenVINO.

    One batch runs at a time, on all cores; callers from other threads wait. This is as fast as running batches in
    parallel and needs memory for only one.

    Args:
        network: ONNX file: (N, 3, h, w) float32 to logits (N, C, h, w).
        patch: Height and width of a tile.
        precision: `f32`, or `fastest`, which is bfloat16 where the CPU supports it in hardware.
        takes_bytes: Whether tiles are uint8 (N, h, w, 3), to be divided by 255 in the graph.
        first: Output whose graph is compiled immediately; the other graphs are compiled on first use.
        cache: Folder for compiled networks, which speeds up the next start; None disables the cache.
        network_sha256: SHA-256 of the ONNX file.
        logits: Name of the network's output with the logits; None for the first output.

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
        logits: str | None = None,
    ) -> None:
        self.batch = batch_for(patch)
        self._lock = threading.Lock()
        self._logits = logits
        self._core, self._network, self._patch, self._takes_bytes = ov.Core(), network, patch, takes_bytes
        # kept in memory because the file may be replaced before another graph is compiled
        self._bytes = _verified_bytes(network, network_sha256)
        self._cache_folder, self._network_sha256 = cache, network_sha256
        bf16 = precision == "fastest" and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._configure("bf16" if bf16 else "f32")
        try:
            self._request(first, 1)
        except ModelError:
            if not bf16:
                raise
            # for example if ONEDNN_MAX_CPU_ISA disables the instructions that OpenVINO found in the processor
            self._configure("f32")
            self._request(first, 1)
            logger.warning("OpenVINO cannot run %s in bfloat16 on this processor; float32 is used", network)

    def _configure(self, precision: Literal["bf16", "f32"]) -> None:
        """Set the precision of the graphs that are compiled from now on."""
        self._options: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": usable_cores(),
        }
        self.name = f"OpenVINO {precision}"
        key = self._options | {"patch": self._patch, "takes_bytes": self._takes_bytes}
        folder = self._cache_folder
        self._cache = CompiledNetworks(folder, self._network_sha256, key) if folder else None
        self._requests: dict[tuple[Output, int], ov.InferRequest] = {}

    def logits(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, shape (N, C, H, W), dtype float32."""
        with self._lock:
            request = self._request("logits", len(patches))
            logits = np.empty(tuple(request.get_output_tensor(0).shape), np.float32)
            # OpenVINO writes into the new array; a copy of its own output takes a twentieth of the network's time
            request.set_output_tensor(0, ov.Tensor(logits, shared_memory=True))
            request.infer([ov.Tensor(patches, shared_memory=True)])
        return logits

    def argmax(self, patches: Patches, temperature: float = 1.0) -> tuple[Mask, Probabilities]:
        """Return the predicted class ids (uint8) and their probabilities (float32), each of shape (N, H, W)."""
        with self._lock:
            # the softmax graph also gives these outputs, and replaces the other graph once it is compiled
            if ("softmax", len(patches)) in self._requests:
                return self._softmax(patches, temperature)[:2]
            return self._argmax(patches, temperature, "argmax")

    def argmax_and_softmax(
        self, patches: Patches, temperature: float = 1.0
    ) -> tuple[Mask, Probabilities, NDArray[np.float32]]:
        """Return the results of `argmax`, and the probabilities of all classes, shape (N, C, H, W), dtype float32."""
        with self._lock:
            # each graph has its own memory for activations, so only this one is kept
            self._requests.pop(("argmax", len(patches)), None)
            return self._softmax(patches, temperature)

    def _softmax(self, patches: Patches, temperature: float) -> tuple[Mask, Probabilities, NDArray[np.float32]]:
        request = self._request("softmax", len(patches))
        probabilities = np.empty(tuple(request.model_outputs[2].shape), np.float32)
        # set for every inference, because the request keeps the address only
        request.set_output_tensor(2, ov.Tensor(probabilities, shared_memory=True))
        return *self._argmax(patches, temperature, "softmax"), probabilities

    def _argmax(self, patches: Patches, temperature: float, output: Output) -> tuple[Mask, Probabilities]:
        request = self._request(output, len(patches))
        inputs = patches, np.full(_SCALAR, 1 / temperature, np.float32)
        request.infer([ov.Tensor(values, shared_memory=True) for values in inputs])
        ids = np.array(request.get_output_tensor(0).data, dtype=np.uint8)
        probabilities = np.array(request.get_output_tensor(1).data, dtype=np.float32)
        require_finite(probabilities)
        return ids, probabilities

    def _request(self, output: Output, batch: int) -> ov.InferRequest:
        """Return the inference request for this output and batch size; compile its graph on first use."""
        if (output, batch) not in self._requests:
            graph = f"{output} of {batch}{f', {self._logits}' if self._logits else ''}"
            compiled = self._cache.load(self._core, graph, self._options) if self._cache else None
            if compiled is None:
                compiled = self._compile(output, batch)
                if self._cache:
                    self._cache.store(self._core, graph, compiled)
            self._requests[output, batch] = compiled.create_infer_request()
        return self._requests[output, batch]

    def _compile(self, output: Output, batch: int) -> ov.CompiledModel:
        try:
            model = self._core.read_model(self._bytes, b"")
            model.reshape([batch, 3, *self._patch])
            return self._core.compile_model(self._add_pre_and_postprocessing(model, output), "CPU", self._options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run {self._network}: {error}") from error

    def _add_pre_and_postprocessing(self, model: ov.Model, output: Output) -> ov.Model:
        """Add normalisation before the network and, unless `output` is logits, argmax and softmax after it."""
        result = model.output(self._logits).get_node() if self._logits else model.get_results()[0]
        logits = result.input_value(0)
        outputs, parameters = [logits], model.get_parameters()
        if output != "logits":
            parameters.append(ops.parameter(_SCALAR, np.float32, "inverse_temperature"))
            ids, winning, probabilities = _softmax(logits, parameters[-1].output(0))
            outputs = [ids, winning, *([probabilities] if output == "softmax" else [])]
        ended = ov.Model(outputs, parameters, "droneseg")
        prepared = ov.preprocess.PrePostProcessor(ended)
        prepared.input(0).model().set_layout(ov.Layout("NCHW"))
        if self._takes_bytes:
            prepared.input(0).tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            prepared.input(0).preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        return prepared.build()


def _verified_bytes(network: Path, sha256: str) -> bytes:
    data = network.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(f"{network} changed while it was being loaded. Load the model again.")
    return data


def _softmax(logits: ov.Output, inverse_temperature: ov.Output) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Add the class with the largest logit, its probability and the probabilities of all classes to the graph.

    The lowest class id wins ties.

    The graph is built class by class, which OpenVINO fuses into one pass over the pixels. Its own reductions over the
    class axis took longer than a small network.
    """
    classes = logits.get_partial_shape()[1].get_length()
    by_class = ops.split(logits, np.int64(1), classes).outputs()
    best, ids = by_class[0], ops.constant(np.zeros((1, 1, 1, 1), np.float32)).output(0)
    for number, logit in enumerate(by_class[1:], start=1):
        ids = ops.select(ops.greater(logit, best), np.float32(number), ids).output(0)
        best = ops.maximum(best, logit).output(0)
    terms = [ops.exp(ops.multiply(ops.subtract(logit, best), inverse_temperature)) for logit in by_class]
    total = reduce(ops.add, terms)
    channel = np.array([1])
    winning = ops.divide(np.float32(1), total)
    probabilities = ops.multiply(ops.concat(terms, 1), winning)
    return (
        ops.squeeze(ops.convert(ids, "u8"), channel).output(0),
        ops.squeeze(winning, channel).output(0),
        probabilities.output(0),
    )
