"""Compare the speed of nnU-Net's preprocessing with its own worker processes and with threads.

The resulting arrays must be equal.

    uv run python benchmarks/preprocess.py [--count 24] [--size 960x736]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.data.convert import convert_dataset
from droneseg.data.synthetic import write_samples

_RUN = """
import sys
from contextlib import nullcontext
from pathlib import Path
from droneseg.nnunet import preprocess
from droneseg.nnunet.paths import NnunetPaths
if __name__ == "__main__":
    if sys.argv[1] == "processes":
        preprocess.threads_for_workers = nullcontext
    root = Path(sys.argv[2])
    paths = NnunetPaths(root / "raw", root / sys.argv[1], root / "results")
    preprocess.preprocess(paths, show_progress=False)
"""


def main() -> None:
    """Preprocess with processes and with threads, and compare the times and the arrays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--size", default="960x736")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_samples(root / "data", count=arguments.count, size=(width, height), seed=0)
        convert_dataset(root / "data", root / "raw", max_pixels=DEFAULT_MAX_PIXELS)
        (root / "run.py").write_text(_RUN)
        seconds = {}
        for workers in ("processes", "threads"):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", str(root / "run.py"), workers, str(root)], check=True)
            seconds[workers] = time.perf_counter() - begin
        print(f"processes {seconds['processes']:.1f} s, threads {seconds['threads']:.1f} s")
        print(f"ratio {seconds['processes'] / seconds['threads']:.1f}x, equal arrays: {_equal(root)}")


def _equal(root: Path) -> bool:
    """Return whether both folders hold the same arrays."""
    import blosc2

    folders = [next((root / workers).glob("*/nnUNetPlans_2d")) for workers in ("processes", "threads")]
    files = sorted(file.name for file in folders[0].glob("*.b2nd"))
    if not files or files != sorted(file.name for file in folders[1].glob("*.b2nd")):
        return False
    return all(
        np.array_equal(*(np.asarray(blosc2.open(urlpath=str(folder / name), mode="r")[:]) for folder in folders))
        for name in files
    )


if __name__ == "__main__":
    main()
