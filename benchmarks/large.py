"""Measure time and peak memory from file to mask, for large photographs of known and of unknown scale.

    uv run python benchmarks/large.py BUNDLE [--profile fast] [--sizes 960x736 4000x2250 4000x3000] [--repeats 3]

The photographs are generated JPEG files; those of known scale have the metadata of a camera 40 m above ground, at 17.2
mm per pixel. Each measurement runs in its own process, which reads, decodes, segments and encodes the same file; the
fastest repeat counts. The last column is the time compared with that of the network, decoding and encoding alone. Time
should grow with the number of tiles; memory should stay nearly constant.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as pillow

from droneseg.core.camera import read_ground
from droneseg.core.images import decode_image
from droneseg.core.masks import encode_mask
from droneseg.core.runtimes import RuntimeName
from droneseg.data.synthetic import generate_scene
from droneseg.flows.benchmark_worker import peak_memory_mb
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle

HEIGHT_M, GSD_M = 40.0, 0.0172
MODES = ("known scale", "unknown scale", "plain")
SCENE_SIDE = 1000
METADATA = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/" drone-dji:GimbalPitchDegree="-90.0" '
    f'drone-dji:RelativeAltitude="+{HEIGHT_M}" drone-dji:CalibratedFocalLength="{HEIGHT_M / GSD_M:.2f}"/>'
    "</rdf:RDF></x:xmpmeta>"
)


@dataclass(frozen=True)
class Task:
    """What a process measures: a photograph that it predicts several times, with one bundle, profile and mode."""

    photograph: Path
    bundle: Path
    profile: str
    plain: bool
    cache: Path
    repeats: int


@dataclass(frozen=True)
class Measurement:
    """Number of tiles, seconds of the fastest repeat by stage, and peak memory of the process."""

    tiles: int
    total_s: float
    decode_s: float
    network_s: float
    encode_s: float
    peak_mb: float


def main() -> None:
    """Run one process per size and mode, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--sizes", nargs="+", default=["960x736", "4000x2250", "4000x3000"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| photograph | scale | tiles | seconds | network | decoding | encoding | peak MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photograph(folder / "first.jpg", (100, 100), known=False)
        first = Task(folder / "first.jpg", options.bundle, options.profile, False, folder / "cache", 1)
        run_alone(first)  # fills the cache of compiled networks
        for size in options.sizes:
            width, height = map(int, size.split("x"))
            for mode in options.modes:
                photograph = folder / f"{size}-{mode}.jpg"
                write_photograph(photograph, (width, height), known=mode == "known scale")
                task = Task(
                    photograph, options.bundle, options.profile, mode == "plain", folder / "cache", options.repeats
                )
                print_row(size, mode, run_alone(task))


def write_photograph(path: Path, size: tuple[int, int], *, known: bool) -> None:
    """Write a generated photograph of this width and height, with or without metadata about the scale."""
    scene = generate_scene(3, SCENE_SIDE, SCENE_SIDE)[0]
    width, height = size
    copies = -(-height // SCENE_SIDE), -(-width // SCENE_SIDE), 1
    image = pillow.fromarray(np.tile(scene, copies)[:height, :width])
    image.save(path, quality=90, xmp=METADATA.encode() if known else b"")


def run_alone(task: Task) -> Measurement:
    """Measure in a new process, whose peak memory is that of this task."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, task).result()


def measure(task: Task) -> Measurement:
    """Predict the photograph, from the file to the encoded mask, and return the measurements."""
    segmenter = BundleSegmenter(
        read_bundle(task.bundle), profile=task.profile, runtime=RuntimeName.OPENVINO, cache=task.cache
    )
    return min((_predict(segmenter, task) for _ in range(task.repeats)), key=lambda result: result.total_s)


def _predict(segmenter: BundleSegmenter, task: Task) -> Measurement:
    begin = time.perf_counter()
    data = task.photograph.read_bytes()
    image, ground = decode_image(data), read_ground(data)
    decoded = time.perf_counter()
    prediction = segmenter.segment(image, ground, plain=task.plain)
    segmented = time.perf_counter()
    encode_mask(prediction.mask, segmenter.classes)
    end = time.perf_counter()
    return Measurement(
        tiles=segmenter.count_tiles(image.shape[:2], ground, plain=task.plain),
        total_s=end - begin,
        decode_s=decoded - begin,
        network_s=prediction.timings_s["network"],
        encode_s=end - segmented,
        peak_mb=peak_memory_mb(),
    )


def print_row(size: str, mode: str, result: Measurement) -> None:
    """Print one line of the Markdown table."""
    needed_s = result.network_s + result.decode_s + result.encode_s
    seconds = " | ".join(
        f"{value:.2f}" for value in (result.total_s, result.network_s, result.decode_s, result.encode_s)
    )
    cells = f"{size} | {mode} | {result.tiles} | {seconds} | {result.peak_mb:.0f} | {result.total_s / needed_s:.2f}"
    print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
