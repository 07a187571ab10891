"""What runs a network: OpenVINO and ONNX Runtime, behind one protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from droneseg.core.runtimes import RuntimeName
from droneseg.inference.runtimes.base import Runtime


@dataclass(frozen=True)
class Network:
    """A network that shall be run, and all that a runtime may want to know of it.

    Attributes:
        file: ONNX file: (N, 3, h, w) float32 to logits (N, C, h, w).
        sha256: Of that file.
        patch: Height and width of a tile.
        precision: f32, or fastest: bfloat16 where the machine computes it in hardware.
        takes_bytes: Whether tiles come as bytes (N, h, w, 3), to be divided by 255.
        wants_scores: Whether logits will be asked for, rather than the winning class of each pixel.
        cache: Folder for compiled networks; None for none.
    """

    file: Path
    sha256: str
    patch: tuple[int, int]
    precision: Literal["f32", "fastest"]
    takes_bytes: bool
    wants_logits: bool
    cache: Path | None


def start_runtime(name: RuntimeName, network: Network) -> Runtime:
    """Start a runtime with a network.

    Raises:
        ModelError: If it cannot run the network.
    """
    return _STARTERS[_automatic() if name is RuntimeName.AUTO else name](network)


def _openvino(network: Network) -> Runtime:
    from droneseg.inference.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime(
        network.file,
        network.patch,
        precision=network.precision,
        takes_bytes=network.takes_bytes,
        first="scores" if network.wants_logits else "winners",
        cache=network.cache,
        network_sha256=network.sha256,
    )


def _onnxruntime(network: Network) -> Runtime:
    from droneseg.inference.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(network.file, network.patch, takes_bytes=network.takes_bytes)


# imported when asked for: each takes a while
_STARTERS: dict[RuntimeName, Callable[[Network], Runtime]] = {
    RuntimeName.OPENVINO: _openvino,
    RuntimeName.ONNXRUNTIME: _onnxruntime,
}


def _automatic() -> RuntimeName:
    """Return ONNX Runtime if it can use a GPU, else OpenVINO."""
    if _may_have_cuda():
        from droneseg.inference.runtimes.onnxruntime import has_cuda

        if has_cuda():
            return RuntimeName.ONNXRUNTIME
    return RuntimeName.OPENVINO


def _may_have_cuda() -> bool:
    """Say whether the GPU build of ONNX Runtime is installed, without importing it."""
    found = find_spec("onnxruntime")
    folders = found.submodule_search_locations if found else None
    return any(any(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders or ())
