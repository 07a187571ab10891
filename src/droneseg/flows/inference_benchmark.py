"""Inference benchmark: droneseg's runtimes and profiles compared with nnU-Net's own predictor."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from droneseg.core.errors import DronesegError
from droneseg.core.files import atomic_directory, write_text
from droneseg.core.images import DEFAULT_MAX_PIXELS, encode_png, read_image
from droneseg.core.masks import Mask
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.core.system import describe_machine, usable_cores
from droneseg.data.convert import ConversionOptions, convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import generate_scene, write_samples
from droneseg.flows.benchmark_worker import Task
from droneseg.flows.export import StepCallback, export_model
from droneseg.model.bundle import read_bundle
from droneseg.nnunet.checkpoint import count_gflop, write_random_model
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths, cpu_has_bf16
from droneseg.nnunet.preprocess import plan_dataset

IMAGE_SIZE = (960, 736)
_IMAGE_SEED = 3
_SCENES, _VAL_SCENES = 12, 4
_SUMMARY = "stock.json"
_MATMUL_SCRIPT = """
import time, torch
torch.set_num_threads({threads})
a = torch.randn(4096, 4096).bfloat16()
times = []
for _ in range(4):
    begin = time.perf_counter(); a @ a; times.append(time.perf_counter() - begin)
print(2 * 4096**3 / min(times[1:]) / 1e9)
"""


@dataclass(frozen=True)
class BaselineModel:
    """Model with nnU-Net's default ("stock") plan and seeded, untrained weights.

    Attributes:
        trained: nnU-Net's model folder.
        bundle: Bundle with the same weights and an additional INT8 network.
        gflop: Number of floating-point operations in one forward pass over one tile, in units of 10^9; a multiplication
            and the addition of its result count as two.
    """

    trained: Path
    bundle: Path
    gflop: float


class NetworkSpeed(BaseModel):
    """Size and speed of the baseline network.

    Attributes:
        gflop: Number of floating-point operations in one forward pass over one tile, in units of 10^9.
        fast_gflops: Speed of the profile `fast`, in 10^9 operations per second.
        bf16_matmul_gflops: Speed of a large bfloat16 matrix product with torch, in 10^9 operations per second; None
            without torch or a processor with bfloat16.
    """

    gflop: float
    fast_gflops: float
    bf16_matmul_gflops: float | None


class BenchmarkRow(BaseModel):
    """Measurements of one configuration.

    Attributes:
        name: "stock-tta", "stock", or a profile, with the runtime as a suffix unless it is OpenVINO.
        runtime: Display name of the runtime.
        seconds_median: Median of `seconds`.
        seconds: Time from the bytes of the image to the bytes of the mask, one per round.
        parts_s_median: Median seconds of each stage; empty if they are unknown.
        ratio_to_stock_tta: Speedup over the configuration stock-tta.
        ratio_to_stock: Speedup over the configuration stock.
        agreement: Fraction of pixels with the class of the reference configuration; None without one.
        peak_mb: Peak memory of the process in megabytes.
        start_s: Time from the start of the process to the first mask, with compiled networks in the cache.
    """

    name: str
    runtime: str
    seconds_median: float
    seconds: list[float]
    parts_s_median: dict[str, float]
    ratio_to_stock_tta: float
    ratio_to_stock: float
    agreement: float | None
    peak_mb: float
    start_s: float


class InferenceBenchmark(BaseModel):
    """Result of the inference benchmark.

    Attributes:
        machine: Description of the machine.
        image: Path or description of the image.
        network: Size and speed of the baseline network.
        rows: Measurements of each configuration.
    """

    machine: dict[str, str | int]
    image: str
    network: NetworkSpeed
    rows: list[BenchmarkRow]


def load_baseline_model(cache: Path, on_step: StepCallback) -> BaselineModel:
    """Create the baseline model, or load it if it was created earlier with the same package versions.

    Args:
        cache: Folder that stores the model.
        on_step: Callback, called when a step begins.
    """
    folder = cache / f"stock-{version('droneseg')}-{version('nnunetv2')}"
    if not (folder / _SUMMARY).is_file():
        on_step("planning and exporting the baseline network (only once)")
        with atomic_directory(folder, marker=_SUMMARY, replace=True) as staging_dir:
            _create_baseline_model(staging_dir, on_step)
    summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
    read_bundle(folder / "bundle")
    return BaselineModel(folder / summary["trained"], folder / "bundle", summary["gflop"])


def _create_baseline_model(folder: Path, on_step: StepCallback) -> None:
    paths = NnunetPaths(folder / "nnUNet_raw", folder / "nnUNet_preprocessed", folder / "nnUNet_results")
    write_samples(folder / "data", count=_SCENES, size=IMAGE_SIZE, seed=0)
    stems = [f"{index:03d}" for index in range(_SCENES)]
    write_split(Split(tuple(stems[:-_VAL_SCENES]), tuple(stems[-_VAL_SCENES:])), folder / "split.json")
    convert_dataset(
        folder / "data", paths.raw, ConversionOptions(split_file=folder / "split.json"), max_pixels=DEFAULT_MAX_PIXELS
    )
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
        on_step=on_step,
    )
    summary = {"trained": str(trained.relative_to(folder)), "gflop": count_gflop(paths)}
    write_text(folder / _SUMMARY, json.dumps(summary) + "\n")


@dataclass
class _Configuration:
    """A configuration to measure, with its measurements.

    Attributes:
        name: Name as in `BenchmarkRow`.
        task: Task of the worker process.
        reference: Name of the stock configuration to compare masks with; it uses the same forward passes.
        seconds: Duration of each prediction.
        parts_s: Seconds of each stage, for each prediction; empty if they are unknown.
        start_s: Time from the start of the process to the first mask.
        peak_mb: Peak memory of the process in megabytes.
        runtime: Display name of the runtime.
        mask: First mask, shape (H, W), dtype uint8.
    """

    name: str
    task: Task
    reference: str | None
    seconds: list[float] = field(default_factory=list)
    parts_s: list[dict[str, float]] = field(default_factory=list)
    start_s: float = float("nan")
    peak_mb: float = float("nan")
    runtime: str = ""
    mask: Mask | None = None


class _Process:
    """A worker process that measures one configuration and stores the measurements in it."""

    def __init__(self, configuration: _Configuration) -> None:
        task = json.dumps(asdict(configuration.task))
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "droneseg.flows.benchmark_worker", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._configuration = configuration
        configuration.runtime = str(self._read()["ready"])
        configuration.start_s = time.perf_counter() - begin

    def predict(self) -> None:
        """Predict the image once."""
        if self._process.stdin:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        reply = self._read()
        self._configuration.seconds.append(reply["seconds"])
        if reply["parts_s"]:
            self._configuration.parts_s.append(reply["parts_s"])

    def end(self) -> None:
        """Read the peak memory and wait until the process has ended."""
        if self._process.stdin:
            self._process.stdin.close()
        self._configuration.peak_mb = self._read()["peak_mb"]
        self._process.wait(timeout=60)
        self.kill()

    def kill(self) -> None:
        """End the process if it is still running, and close its streams."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            errors = self._process.stderr.read() if self._process.stderr else ""
            raise DronesegError(f"The benchmark of {self._configuration.name} failed:\n{errors[-2000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def run_benchmark(
    baseline: BaselineModel,
    *,
    model: Path | None,
    image: Path | None,
    cache: Path,
    rounds: int,
    on_step: StepCallback,
) -> InferenceBenchmark:
    """Measure all configurations: nnU-Net's predictor, and every profile and runtime of the bundles.

    Args:
        baseline: Baseline model.
        model: Another bundle to measure, or None.
        image: Image to predict; None generates one of 960x736.
        cache: Folder for compiled networks.
        rounds: Number of predictions per configuration; the configurations take turns.
        on_step: Callback, called when a step begins.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configurations = _configurations(baseline, model, _write_png(image, folder), cache, folder)
        _measure(configurations, rounds, on_step)
        for configuration in configurations:
            configuration.mask = np.load(configuration.task.mask)
    on_step("measuring arithmetic speed")
    return _benchmark(configurations, baseline, image)


def _measure(configurations: Sequence[_Configuration], rounds: int, on_step: StepCallback) -> None:
    """Start one process per configuration; the processes predict in turns."""
    processes: list[_Process] = []
    try:
        for configuration in configurations:
            on_step(f"starting {configuration.name}")
            if configuration.task.kind == "bundle":
                _Process(configuration).end()  # fills the cache of compiled networks
            processes.append(_Process(configuration))
        for number in range(1, rounds + 1):
            on_step(f"round {number} of {rounds}")
            for process in processes:
                process.predict()
        for process in processes:
            process.end()
    finally:
        for process in processes:
            process.kill()


def _write_png(image: Path | None, folder: Path) -> Path:
    """Write the image as PNG, a format that nnU-Net's reader supports."""
    pixels = read_image(image) if image else generate_scene(_IMAGE_SEED, *IMAGE_SIZE)[0]
    (folder / "image.png").write_bytes(encode_png(pixels))
    return folder / "image.png"


def _configurations(
    baseline: BaselineModel, model: Path | None, image: Path, cache: Path, folder: Path
) -> list[_Configuration]:
    configurations = []
    for name, mirrored in (("stock-tta", True), ("stock", False)):
        task = Task("stock", str(baseline.trained), str(image), str(folder / f"{name}.npy"), mirrored=mirrored)
        configurations.append(_Configuration(name, task, None))
    bundles = [(baseline.bundle, "")] + ([(model, "model-")] if model else [])
    for bundle, prefix in bundles:
        for profile in read_bundle(bundle).manifest.profiles:
            for runtime in RUNTIMES:
                name = prefix + profile + ("" if runtime is RuntimeName.OPENVINO else f"-{runtime}")
                # weights that differ from those of the stock configurations have no reference
                reference = None if prefix else ("stock-tta" if profile == "exact" else "stock")
                task = Task(
                    "bundle",
                    str(bundle),
                    str(image),
                    str(folder / f"{name}.npy"),
                    profile=profile,
                    runtime=runtime,
                    cache=str(cache),
                )
                configurations.append(_Configuration(name, task, reference))
    return configurations


def _benchmark(
    configurations: Sequence[_Configuration], baseline: BaselineModel, image: Path | None
) -> InferenceBenchmark:
    by_name = {configuration.name: configuration for configuration in configurations}
    network_s = _stage_medians(by_name["fast"].parts_s)["network"]
    return InferenceBenchmark(
        machine=describe_machine(),
        image=str(image) if image else "generated, {}x{}".format(*IMAGE_SIZE),
        network=NetworkSpeed(
            gflop=baseline.gflop, fast_gflops=baseline.gflop / network_s, bf16_matmul_gflops=_matmul_gflops()
        ),
        rows=[_row(configuration, by_name) for configuration in configurations],
    )


def _row(configuration: _Configuration, by_name: Mapping[str, _Configuration]) -> BenchmarkRow:
    median_s = statistics.median(configuration.seconds)
    reference = by_name[configuration.reference] if configuration.reference else None
    agreement = None
    if reference is not None and reference.mask is not None and configuration.mask is not None:
        agreement = float((reference.mask == configuration.mask).mean())
    return BenchmarkRow(
        name=configuration.name,
        runtime=configuration.runtime,
        seconds_median=median_s,
        seconds=configuration.seconds,
        parts_s_median=_stage_medians(configuration.parts_s),
        ratio_to_stock_tta=statistics.median(by_name["stock-tta"].seconds) / median_s,
        ratio_to_stock=statistics.median(by_name["stock"].seconds) / median_s,
        agreement=agreement,
        peak_mb=configuration.peak_mb,
        start_s=configuration.start_s,
    )


def _stage_medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {stage: statistics.median(seconds[stage] for seconds in rounds) for stage in rounds[0]} if rounds else {}


def _matmul_gflops() -> float | None:
    """Return the speed of a large bfloat16 matrix product in 10^9 operations per second.

    None without torch, or on a processor without bfloat16, where the emulated product takes many minutes.
    """
    if find_spec("torch") is None or not cpu_has_bf16():
        return None
    script = _MATMUL_SCRIPT.format(threads=usable_cores())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)
