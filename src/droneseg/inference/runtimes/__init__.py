"""Inference runtimes, OpenVINO and ONNX Runtime, behind one protocol; each is imported on demand."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.inference.runtimes.base import Runtime


@dataclass(frozen=True)
class Network:
    """A network and the options that a runtime needs to load it.

    Attributes:
        file: ONNX file: (N, 3, h, w) float32 to logits (N, C, h, w).
        sha256: SHA-256 of the file.
        patch: Height and width of a tile.
        precision: `f32`, or `fastest`, which is bfloat16 where the CPU supports it in hardware.
        takes_bytes: Whether tiles are uint8 (N, h, w, 3), to be divided by 255 by the runtime.
        wants_logits: Whether logits will be requested rather than classes.
        cache: Folder for compiled networks; None disables the cache.
        output: Name of the output with the logits; None for the first output.
    """

    file: Path
    sha256: str
    patch: tuple[int, int]
    precision: Literal["f32", "fastest"]
    takes_bytes: bool
    wants_logits: bool
    cache: Path | None
    output: str | None = None


def start_runtime(name: RuntimeName, network: Network) -> Runtime:
    """Load a network with a runtime.

    Raises:
        ModelError: If the runtime cannot run the network.
    """
    return _STARTERS[_automatic() if name is RuntimeName.AUTO else name](network)


def runtimes_to_try(name: RuntimeName) -> tuple[RuntimeName, ...]:
    """Return the runtimes in the order of preference; with `auto` all of them, otherwise only the one named."""
    if name is not RuntimeName.AUTO:
        return (name,)
    first = _automatic()
    return (first, *(other for other in RUNTIMES if other is not first))


def _openvino(network: Network) -> Runtime:
    from droneseg.inference.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime(
        network.file,
        network.patch,
        precision=network.precision,
        takes_bytes=network.takes_bytes,
        first="logits" if network.wants_logits else "argmax",
        cache=network.cache,
        network_sha256=network.sha256,
        logits=network.output,
    )


def _onnxruntime(network: Network) -> Runtime:
    from droneseg.inference.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(network.file, network.patch, takes_bytes=network.takes_bytes, logits=network.output)


# functions, so that a runtime is imported only when it is used: each takes a while to import
_STARTERS: dict[RuntimeName, Callable[[Network], Runtime]] = {
    RuntimeName.OPENVINO: _openvino,
    RuntimeName.ONNXRUNTIME: _onnxruntime,
}


def _automatic() -> RuntimeName:
    """Return ONNX Runtime if it can use a GPU, otherwise OpenVINO."""
    if _may_have_cuda():
        from droneseg.inference.runtimes.onnxruntime import has_cuda

        if has_cuda():
            return RuntimeName.ONNXRUNTIME
    return RuntimeName.OPENVINO


def _may_have_cuda() -> bool:
    """Return whether the GPU build of ONNX Runtime is installed, without importing it."""
    spec = find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec else None
    return any(any(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders or ())
