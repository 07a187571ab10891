"""One row of the benchmark in a process of its own: loads a predictor, then answers one photograph at each "go".

Speaks JSON lines: `ready` after the first mask, `seconds` for each "go", `peak_mb` at the end.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from droneseg.core.masks import Mask, encode_mask


class StockRow:
    """nnU-Net's own predictor."""

    name = "nnU-Net's predictor, torch"

    def __init__(self, task: dict[str, Any]) -> None:
        from droneseg.nnunet.paths import NnunetPaths
        from droneseg.nnunet.predictor import NnunetPredictor

        folder = Path(task["model"])
        self._predictor = NnunetPredictor(folder, NnunetPaths(folder, folder, folder), mirrored=task["mirrored"])
        self._image = Path(task["image"])

    def predict(self) -> tuple[Mask, dict[str, float]]:
        """Go from the file to the mask; what takes how long inside is not known."""
        return self._predictor.segment_file(self._image), {}


class BundleRow:
    """A bundle with one profile and runtime."""

    def __init__(self, task: dict[str, Any]) -> None:
        from droneseg.core.runtimes import RuntimeName
        from droneseg.inference.segmenter import BundleSegmenter
        from droneseg.model.bundle import read_bundle

        self._segmenter = BundleSegmenter(
            read_bundle(Path(task["model"])),
            profile=task["profile"],
            runtime=RuntimeName(task["runtime"]),
            cache=Path(task["cache"]),
        )
        self.name = self._segmenter.runtime
        self._image = Path(task["image"])

    def predict(self) -> tuple[Mask, dict[str, float]]:
        """Go from the file to the mask; returns also the seconds of each part."""
        from droneseg.core.images import decode_image

        begin = time.perf_counter()
        image = decode_image(self._image.read_bytes())
        decode_s = time.perf_counter() - begin
        done = self._segmenter.segment(image)
        return done.mask, {"decode": decode_s, **done.timings_s}


def serve(task: dict[str, Any], commands: TextIO, replies: TextIO) -> None:
    """Answer commands until they end."""

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    row: StockRow | BundleRow = StockRow(task) if task["kind"] == "stock" else BundleRow(task)
    mask, _ = row.predict()
    encode_mask(mask)
    np.save(task["mask"], mask)
    reply(ready=row.name)
    for _command in commands:
        begin = time.perf_counter()
        mask, parts_s = row.predict()
        predicted = time.perf_counter()
        encode_mask(mask)
        end = time.perf_counter()
        reply(seconds=end - begin, parts_s=parts_s and {**parts_s, "encode": end - predicted})
    reply(peak_mb=_peak_mb())


def _peak_mb() -> float:
    """Return the peak memory of this process in megabytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss is inherited from the process that started this one; this is not
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return float("nan")  # it does not say
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    # what the libraries print goes to stderr: stdout is for replies
    channel, sys.stdout = sys.stdout, sys.stderr
    serve(json.loads(sys.argv[1]), sys.stdin, channel)
