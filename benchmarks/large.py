"""Measure peak memory and time for images of growing size.

Time should grow with the number of tiles; memory should hardly grow.

    uv run python benchmarks/large.py BUNDLE [--profile fast] [--sizes 960x736 3000x2000 6000x4000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from droneseg.core.images import encode_png
from droneseg.data.synthetic import generate_scene
from droneseg.flows.benchmark_worker import Task
from droneseg.inference.sliding_window import window_starts
from droneseg.model.bundle import read_bundle


def main() -> None:
    """Run one process per size and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--sizes", nargs="+", default=["960x736", "3000x2000", "6000x4000"])
    arguments = parser.parse_args()
    manifest = read_bundle(arguments.bundle).manifest
    scene = generate_scene(3, 1000, 1000)[0]
    print("size        tiles  seconds  per tile  peak MB")
    with tempfile.TemporaryDirectory() as temporary:
        for size in arguments.sizes:
            width, height = map(int, size.split("x"))
            png = Path(temporary, "image.png")
            png.write_bytes(encode_png(np.tile(scene, (-(-height // 1000), -(-width // 1000), 1))[:height, :width]))
            task = Task(
                "bundle",
                str(arguments.bundle),
                str(png),
                f"{temporary}/mask.npy",
                profile=arguments.profile,
                runtime="openvino",
                cache=f"{temporary}/cache",
            )
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "droneseg.flows.benchmark_worker", json.dumps(asdict(task))],
                input="go\n", capture_output=True, text=True, check=True,
            )  # fmt: skip
            _, timed, ended = (json.loads(line) for line in done.stdout.splitlines())
            tiles = np.prod(
                [
                    len(window_starts(max(side, patch), patch, manifest.tile_step))
                    for side, patch in zip((height, width), manifest.patch_size, strict=True)
                ]
            )
            seconds = timed["seconds"]
            print(f"{size:<10} {tiles:>6} {seconds:>8.2f} {seconds / tiles:>9.3f} {ended['peak_mb']:>8.0f}")


if __name__ == "__main__":
    main()
