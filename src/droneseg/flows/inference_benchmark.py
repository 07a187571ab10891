"""Inference benchmark and the untrained baseline model."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.errors import DronesegError
from droneseg.core.files import atomic_directory, write_text
from droneseg.core.images import DEFAULT_MAX_PIXELS, encode_png, read_image
from droneseg.core.masks import Mask
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.core.system import describe_machine, usable_cores
from droneseg.data.convert import convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import generate_scene, write_samples
from droneseg.flows.export import export_model
from droneseg.model.bundle import read_bundle
from droneseg.nnunet.checkpoint import count_gflop, write_random_model
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths
from droneseg.nnunet.preprocess import plan_dataset

_SCENES = 12
_SIZE = (960, 736)
_SUMMARY = "stock.json"


@dataclass(frozen=True)
class BaselineModel:
    """The stock plan with seeded, untrained weights.

    Attributes:
        trained: Model folder of nnU-Net.
        bundle: The same as a bundle, with an INT8 network.
        gflop: Arithmetic of one pass over one tile, 10^9 operations, a multiplication and its addition as two.
    """

    trained: Path
    bundle: Path
    gflop: float


def load_baseline_model(cache: Path, report: Callable[[str], None]) -> BaselineModel:
    """Make the stock model, or take it from an earlier run of the same versions.

    Args:
        cache: Folder in which it is kept.
        report: Told what happens next.
    """
    folder = cache / f"stock-{version('droneseg')}-{version('nnunetv2')}"
    if not (folder / _SUMMARY).is_file():
        report("planning the stock network and exporting it, once")
        with atomic_directory(folder, marker=_SUMMARY, replace=True) as aside:
            _make(aside, report)
    summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
    read_bundle(folder / "bundle")
    return BaselineModel(folder / summary["trained"], folder / "bundle", summary["gflop"])


def _make(folder: Path, report: Callable[[str], None]) -> None:
    paths = NnunetPaths(folder / "nnUNet_raw", folder / "nnUNet_preprocessed", folder / "nnUNet_results")
    write_samples(folder / "data", count=_SCENES, size=_SIZE, seed=0)
    stems = [f"{index:03d}" for index in range(_SCENES)]
    write_split(Split(tuple(stems[:-4]), tuple(stems[-4:])), folder / "split.json")
    convert_dataset(folder / "data", paths.raw, split_file=folder / "split.json", max_pixels=DEFAULT_MAX_PIXELS)
    plan_dataset(paths, show_progress=False)
    trained = write_random_model(paths)
    export_model(
        trained,
        paths,
        folder / "bundle",
        checkpoint=FINAL_CHECKPOINT,
        int8=True,
        licence="none needed: untrained",
        images=4,
        on_step=report,
    )
    summary = {"trained": str(trained.relative_to(folder)), "gflop": count_gflop(paths)}
    write_text(folder / _SUMMARY, json.dumps(summary) + "\n")


IMAGE_SIZE = (960, 736)
_SEED = 3

Report = Callable[[str], None]


@dataclass
class Row:
    """One way to predict, and what was measured of it.

    Attributes:
        name: stock-tta, stock, or a profile, with a runtime behind it if it is not OpenVINO.
        task: What its process is told.
        reference: The stock row that does the same passes.
        seconds: From the bytes of the file to the bytes of the mask, one per round.
        parts_s: Of these, by part, where the parts are known.
        start_s: From the start of the process to the first mask, with a warm model cache.
        peak_mb: Peak memory of the process.
        runtime: What ran the network.
        mask: The answer, shape (H, W), dtype uint8.
    """

    name: str
    task: dict[str, Any]
    reference: str | None
    seconds: list[float] = field(default_factory=list)
    parts_s: list[dict[str, float]] = field(default_factory=list)
    start_s: float = float("nan")
    peak_mb: float = float("nan")
    runtime: str = ""
    mask: Mask | None = None


class _Process:
    """The process of a row."""

    def __init__(self, row: Row) -> None:
        begin = time.perf_counter()
        self._running = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "droneseg.flows.benchmark_worker", json.dumps(row.task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._row = row
        row.runtime = str(self._read()["ready"])
        row.start_s = time.perf_counter() - begin

    def go(self) -> None:
        """Predict once more."""
        self._write("go\n")
        answer = self._read()
        self._row.seconds.append(answer["seconds"])
        if answer["parts_s"]:
            self._row.parts_s.append(answer["parts_s"])

    def end(self) -> None:
        """Let the process end by itself."""
        if self._running.stdin:
            self._running.stdin.close()
        self._row.peak_mb = self._read()["peak_mb"]
        self._running.wait(timeout=60)
        self.kill()

    def kill(self) -> None:
        """End it, if it still runs, and let go of its streams."""
        self._running.kill()
        self._running.wait()
        for stream in (self._running.stdin, self._running.stdout, self._running.stderr):
            if stream:
                stream.close()

    def _write(self, text: str) -> None:
        if self._running.stdin:
            self._running.stdin.write(text)
            self._running.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._running.stdout.readline() if self._running.stdout else ""
        if not line:
            errors = self._running.stderr.read() if self._running.stderr else ""
            raise DronesegError(f"The benchmark of {self._row.name} failed:\n{errors[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run_benchmark(
    stock: BaselineModel, *, model: Path | None, image: Path | None, cache: Path, rounds: int, report: Report
) -> dict[str, Any]:
    """Measure every row.

    Args:
        stock: The stock plan with untrained weights, as a training folder and as a bundle.
        model: A bundle of your own to set beside it, or None.
        image: A photograph; None for a generated one of 960x736.
        cache: Folder for compiled networks.
        rounds: How often each row predicts, taking turns.
        report: Told what happens next.

    Returns:
        `machine`, `image`, `network` (arithmetic of the stock network) and `rows`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        picture = _as_png(image, Path(temporary))
        rows = _rows(stock, model, picture, cache, Path(temporary))
        processes: list[_Process] = []
        try:
            for row in rows:
                report(f"starting {row.name}")
                if row.task["kind"] == "bundle":
                    _Process(row).end()  # fills the cache
                    row.seconds.clear()
                processes.append(_Process(row))
            for number in range(rounds):
                report(f"round {number + 1} of {rounds}")
                for process in processes:
                    process.go()
            for process in processes:
                process.end()
        finally:
            for process in processes:
                process.kill()
        for row in rows:
            row.mask = np.load(row.task["mask"])
    report("measuring arithmetic")
    return _result(rows, stock, image)


def _as_png(image: Path | None, folder: Path) -> Path:
    """Return a PNG, which nnU-Net's reader takes, too."""
    pixels = read_image(image) if image else generate_scene(_SEED, *IMAGE_SIZE)[0]
    (folder / "image.png").write_bytes(encode_png(pixels))
    return folder / "image.png"


def _rows(stock: BaselineModel, model: Path | None, image: Path, cache: Path, folder: Path) -> list[Row]:
    rows = [
        Row(name, {"kind": "stock", "model": str(stock.trained), "mirrored": mirrored}, None)
        for name, mirrored in (("stock-tta", True), ("stock", False))
    ]
    bundles = [(stock.bundle, "")] + ([(model, "model-")] if model else [])
    for bundle, prefix in bundles:
        for profile in read_bundle(bundle).manifest.profiles:
            for runtime in RUNTIMES:
                task = {"kind": "bundle", "model": str(bundle), "profile": profile, "runtime": runtime}
                name = prefix + profile + ("" if runtime is RuntimeName.OPENVINO else f"-{runtime}")
                # a model of your own has other weights than the stock rows, so there is nothing to agree with
                reference = None if prefix else ("stock-tta" if profile == "exact" else "stock")
                rows.append(Row(name, task, reference))
    for row in rows:
        row.task |= {"image": str(image), "cache": str(cache), "mask": str(folder / f"{row.name}.npy")}
    return rows


def _result(rows: Sequence[Row], stock: BaselineModel, image: Path | None) -> dict[str, Any]:
    by_name = {row.name: row for row in rows}
    medians = {row.name: statistics.median(row.seconds) for row in rows}
    shown = []
    for row in rows:
        reference = by_name[row.reference] if row.reference else None
        agreement = None
        if reference is not None and reference.mask is not None and row.mask is not None:
            agreement = float((reference.mask == row.mask).mean())
        shown.append(
            {
                "name": row.name,
                "runtime": row.runtime,
                "seconds_median": medians[row.name],
                "seconds": row.seconds,
                "parts_s_median": _medians(row.parts_s),
                "ratio_to_stock_tta": medians["stock-tta"] / medians[row.name],
                "ratio_to_stock": medians["stock"] / medians[row.name],
                "agreement": agreement,
                "peak_mb": row.peak_mb,
                "start_s": row.start_s,
            }
        )
    network_s = _medians(by_name["fast"].parts_s)["network"]
    return {
        "machine": describe_machine(),
        "image": str(image) if image else "generated, {}x{}".format(*IMAGE_SIZE),
        "network": {
            "gflop": stock.gflop,
            "fast_gflops": stock.gflop / network_s,
            "bf16_matmul_gflops": _matmul_gflops(),
        },
        "rows": shown,
    }


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(each[part] for each in rounds) for part in rounds[0]} if rounds else {}


_MATMUL = """
import time, torch
torch.set_num_threads({threads})
a = torch.randn(4096, 4096).bfloat16()
times = []
for _ in range(4):
    begin = time.perf_counter(); a @ a; times.append(time.perf_counter() - begin)
print(2 * 4096**3 / min(times[1:]) / 1e9)
"""


def _matmul_gflops() -> float | None:
    """Return what a large bf16 matrix product reaches on this machine."""
    if find_spec("torch") is None:
        return None
    script = _MATMUL.format(threads=usable_cores())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)
