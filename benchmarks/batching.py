"""Measure whether the network is faster per tile with several tiles in a batch, as with adaptive batching.

    uv run python benchmarks/batching.py [--model BUNDLE] [--rounds 15] [--json FILE]

The network of the bundle processes batches of one, two, four and eight tiles; the batch sizes take turns within each
round. The table shows the median time per tile, and its ratio to a batch of one in the same round.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from droneseg.inference.runtimes.openvino import OpenVinoRuntime
from droneseg.model.bundle import read_bundle

BATCHES = (1, 2, 4, 8)
RGB_TO_0_1 = "rgb_to_0_1"


def measure(model: Path, profile: str, rounds: int) -> list[dict[str, float | str]]:
    """Return the time per tile for each batch size."""
    bundle = read_bundle(model)
    manifest = bundle.manifest
    settings = manifest.profiles[profile]
    takes_bytes = manifest.normalisation == RGB_TO_0_1
    runtime = OpenVinoRuntime(
        bundle.network(profile),
        manifest.patch_size,
        precision=settings.precision,
        takes_bytes=takes_bytes,
        first="argmax",
        cache=None,
        network_sha256=manifest.files[settings.network].sha256,
    )
    rng = np.random.default_rng(0)
    height, width = manifest.patch_size
    tiles = rng.integers(0, 256, (max(BATCHES), height, width, 3), dtype=np.uint8)
    patches = tiles if takes_bytes else tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255
    for batch in BATCHES:
        runtime.argmax(patches[:batch])
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(rounds):
        for batch in BATCHES:
            begin = time.perf_counter()
            runtime.argmax(np.ascontiguousarray(patches[:batch]))
            seconds[batch].append((time.perf_counter() - begin) / batch)
    ratios = {batch: statistics.median(np.divide(seconds[batch], seconds[1])) for batch in BATCHES}
    return [
        {
            "profile": profile,
            "at_once": batch,
            "ms_per_tile": round(1000 * statistics.median(seconds[batch]), 1),
            "ratio_to_one": round(ratios[batch], 3),
        }
        for batch in BATCHES
    ]


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    profiles = [name for name in read_bundle(arguments.model).manifest.profiles if name != "exact"]
    rows = [row for profile in profiles for row in measure(arguments.model, profile, arguments.rounds)]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
