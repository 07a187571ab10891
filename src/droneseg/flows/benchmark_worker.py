"""Worker process of the inference benchmark: predicts the same image once per command with one configuration.

Commands are lines on stdin; replies are JSON lines on stdout: `ready` after the first mask, `seconds` and `parts_s` for
each command, and `peak_mb` at the end of stdin.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from droneseg.core.class_files import DESCRIPTION_NAME, classes_of
from droneseg.core.files import read_json
from droneseg.core.masks import Mask, encode_mask


@dataclass(frozen=True)
class Task:
    """Task of one worker process, passed as a JSON object on its command line.

    Attributes:
        kind: "stock" for nnU-Net's own predictor, "bundle" for a bundle.
        model: nnU-Net's model folder, or the folder of the bundle.
        image: Image file to predict.
        mask: File to which the first mask is written, in NumPy's format.
        mirrored: Whether nnU-Net's predictor averages over mirrored images.
        profile: Profile of the bundle.
        runtime: Name of the runtime for the bundle.
        cache: Folder for compiled networks of the bundle.
    """

    kind: Literal["stock", "bundle"]
    model: str
    image: str
    mask: str
    mirrored: bool = False
    profile: str = ""
    runtime: str = ""
    cache: str = ""


class StockPredictor:
    """nnU-Net's own predictor."""

    name = "nnU-Net's predictor, torch"

    def __init__(self, task: Task) -> None:
        from droneseg.nnunet.paths import NnunetPaths
        from droneseg.nnunet.predictor import NnunetPredictor

        folder = Path(task.model)
        self.classes = classes_of(read_json(folder / DESCRIPTION_NAME, expected="Expected the dataset of the model."))
        self._predictor = NnunetPredictor(folder, NnunetPaths(folder, folder, folder), mirrored=task.mirrored)
        self._image = Path(task.image)

    def predict(self) -> tuple[Mask, dict[str, float]]:
        """Read the image file and return its mask, shape (H, W), dtype uint8; times of the stages are unknown."""
        return self._predictor.segment_file(self._image), {}


class BundlePredictor:
    """Model bundle with one profile and one runtime."""

    def __init__(self, task: Task) -> None:
        from droneseg.core.runtimes import RuntimeName
        from droneseg.inference.segmenter import BundleSegmenter
        from droneseg.model.bundle import read_bundle

        self._segmenter = BundleSegmenter(
            read_bundle(Path(task.model)),
            profile=task.profile,
            runtime=RuntimeName(task.runtime),
            cache=Path(task.cache),
        )
        self.name, self.classes = self._segmenter.runtime, self._segmenter.classes
        self._image = Path(task.image)

    def predict(self) -> tuple[Mask, dict[str, float]]:
        """Read the image file and return its mask, shape (H, W), dtype uint8, and the seconds of each stage."""
        from droneseg.core.images import decode_image

        begin = time.perf_counter()
        image = decode_image(self._image.read_bytes())
        decode_s = time.perf_counter() - begin
        # nnU-Net's predictor also takes the pixels as they are
        prediction = self._segmenter.segment(image, plain=True)
        return prediction.mask, {"decode": decode_s, **prediction.timings_s}


def serve(task: Task, commands: TextIO, replies: TextIO) -> None:
    """Predict once per line of `commands`, and write the measurements to `replies`."""

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    predictor: StockPredictor | BundlePredictor
    predictor = StockPredictor(task) if task.kind == "stock" else BundlePredictor(task)
    mask, _ = predictor.predict()
    encode_mask(mask, predictor.classes)
    np.save(task.mask, mask)
    reply(ready=predictor.name)
    for _command in commands:
        begin = time.perf_counter()
        mask, parts_s = predictor.predict()
        predicted = time.perf_counter()
        encode_mask(mask, predictor.classes)
        end = time.perf_counter()
        reply(seconds=end - begin, parts_s=parts_s and {**parts_s, "encode": end - predicted})
    reply(peak_mb=peak_memory_mb())


def peak_memory_mb() -> float:
    """Return the peak memory of this process in megabytes; NaN on Windows."""
    status = Path("/proc/self/status")
    if status.is_file():
        # unlike VmHWM, ru_maxrss is inherited from the parent process
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    # the output of libraries goes to stderr, because stdout is for replies
    channel, sys.stdout = sys.stdout, sys.stderr
    serve(Task(**json.loads(sys.argv[1])), sys.stdin, channel)
