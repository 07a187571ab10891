"""Times nnU-Net's planning and preprocessing with its own worker processes and on threads, and compares the arrays.

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
from droneseg.nnunet.paths import Layout
if __name__ == "__main__":
    if sys.argv[1] == "processes":
        preprocess.threads_for_workers = nullcontext
    root = Path(sys.argv[2])
    preprocess.preprocess(Layout(root / "raw", root / sys.argv[1], root / "results"), show_progress=False)
"""


def main() -> None:
    """Time both ways, and compare what they wrote."""
    parser = argparse.ArgumentParser(description=__doc__)
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
        for way in ("processes", "threads"):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", str(root / "run.py"), way, str(root)], check=True)
            seconds[way] = time.perf_counter() - begin
        print(f"processes {seconds['processes']:.1f} s, threads {seconds['threads']:.1f} s")
        print(f"ratio {seconds['processes'] / seconds['threads']:.1f}x, equal arrays: {_equal(root)}")


def _equal(root: Path) -> bool:
    import blosc2

    folders = [next((root / way).glob("*/nnUNetPlans_2d")) for way in ("processes", "threads")]
    files = sorted(file.name for file in folders[0].glob("*.b2nd"))
    if not files or files != sorted(file.name for file in folders[1].glob("*.b2nd")):
        return False
    return all(
        np.array_equal(*(np.asarray(blosc2.open(urlpath=str(folder / name), mode="r")[:]) for folder in folders))
        for name in files
    )


if __name__ == "__main__":
    main()
