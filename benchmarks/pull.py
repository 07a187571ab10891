"""Compare `droneseg models pull` of a 100 MB bundle with a plain download of the same file from the same server.

    python benchmarks/pull.py [--mb 100] [--rounds 5] [--json FILE]

The server is fake-gcs-server on this machine. Each round runs both, so that the load of the machine affects both.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.buckets import bucket
from support.projects import dvc, make_project
from support.workspace import COMMAND


def plain_download(server: str, name: str, target: Path) -> float:
    """Return the seconds of a plain download of an object to a file, without any checks."""
    begin = time.perf_counter()
    with httpx.stream("GET", f"{server}/storage/v1/b/team/o/{name.replace('/', '%2F')}?alt=media") as response:
        response.raise_for_status()
        with target.open("wb") as out:
            for chunk in response.iter_bytes(1 << 17):
                out.write(chunk)
    return time.perf_counter() - begin


def pull(project: Path) -> float:
    """Return the seconds of the whole command in a fresh clone."""
    shutil.rmtree(project / "nnUNet_results", ignore_errors=True)
    shutil.rmtree(project / ".dvc/cache", ignore_errors=True)
    begin = time.perf_counter()
    subprocess.run([*COMMAND, "models", "pull", "--remote", "gcs"], cwd=project, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DVC_NO_ANALYTICS"] = "1"
    with (
        tempfile.TemporaryDirectory() as temporary,
        pytest.MonkeyPatch.context() as patch,
        bucket("team", patch) as store,
    ):
        project = Path(temporary, "project")
        make_project(project, scm=False, padding=options.mb * 1_000_000)
        dvc(project, "remote", "add", "gcs", f"{store.url}/models")
        dvc(project, "remote", "modify", "gcs", "allow_anonymous_login", "true")
        dvc(project, "remote", "modify", "gcs", "endpointurl", store.server)
        dvc(project, "push", "--remote", "gcs", "nnUNet_results.dvc")
        largest = max((file for file in store.root.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
        name = str(largest.relative_to(store.root / "team"))
        plain, pulled = [], []
        for number in range(options.rounds):
            plain.append(plain_download(store.server, name, Path(temporary, "plain")))
            pulled.append(pull(project))
            print(f"round {number + 1}: plain {plain[-1]:.2f} s, models pull {pulled[-1]:.2f} s", flush=True)
        if options.json:
            result = {"mb": options.mb, "plain_s": statistics.median(plain), "pull_s": statistics.median(pulled)}
            options.json.write_text(json.dumps(result) + "\n")
        limit = 4 + 2 * statistics.median(plain)
        print(
            f"{options.mb} MB, medians of {options.rounds}: plain {statistics.median(plain):.2f} s, models pull with "
            f"checksums {statistics.median(pulled):.2f} s; limit (4 s + 2 x plain): {limit:.2f} s"
        )


if __name__ == "__main__":
    main()
