"""Compiled networks on disk, each with its checksum.

OpenVINO's own cache reads the whole network before it finds what it kept of it, and a flipped byte in what it kept
changes masks without a word.
"""

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from droneseg.core.files import write_bytes
from droneseg.inference.runtimes.silent_openvino import ov

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
