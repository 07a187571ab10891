"""Measure drift reports with very many records: time, memory, and the effect on predictions.

    python benchmarks/drift_load.py [--records 100000] [--rounds 3] [--gcs] [--model BUNDLE]

Each record is in a file of its own, which is the worst case, in a folder or, with --gcs, in fake-gcs-server. For the
busy rounds, two clients send generated images of 960x736 without a pause; each round counts the predictions during a
report and for the same time before it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from droneseg.core.images import encode_png
from droneseg.data.synthetic import generate_scene
from droneseg.model.bundle import read_bundle
from droneseg.monitoring.drift import Reference, read_reference
from droneseg.monitoring.prediction_log import Record
from support.buckets import bucket
from support.server import Server, serving

DAYS = 20
CLIENTS = 2
WARM_S = 15


def write_records(folder: Path, count: int, reference: Reference, model_id: str) -> None:
    """Write records drawn from the drift reference, spread over `DAYS` days, one per file."""
    rng = np.random.default_rng(0)
    begin = datetime.now(UTC) - timedelta(days=DAYS)
    for number in range(count):
        row = {name: values[rng.integers(reference.images)] for name, values in reference.table.items()}
        when = begin + timedelta(days=DAYS) * number / count
        shares = {name.removeprefix("share_"): value for name, value in row.items() if name.startswith("share_")}
        record = Record(
            time=when,
            model_id=model_id,
            width=960,
            height=736,
            class_fractions=shares | {"background": 0.0},
            confidence=row["confidence"],
            statistics={name: row[name] for name in row if not name.startswith(("share_", "confidence", "megapixels"))},
        )
        file = folder / f"{when:%Y/%m/%d/%H%M%S}.{when.microsecond // 1000:03d}-{number:08x}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(record.model_dump_json() + "\n")


class Peak(threading.Thread):
    """Sample the peak memory of the child processes of a server.

    The interval is long, because sampling takes CPU time from the measurement.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._children = Path(f"/proc/{pid}/task").glob
        self.report_mb = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        """Sample twice a second."""
        while not self.over.wait(0.5):
            pids = {pid for file in self._children("*/children") for pid in _read(file).split()}
            for line in "".join(_read(Path(f"/proc/{pid}/status")) for pid in pids).splitlines():
                if line.startswith("VmHWM:"):
                    self.report_mb = max(self.report_mb, int(line.split()[1]) * 1024 / 1e6)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


def report(server: Server) -> tuple[float, float]:
    """Request a drift report; return its time in seconds and the peak memory of its process in MB."""
    peak = Peak(server.process.pid)
    peak.start()
    begin = time.perf_counter()
    response = httpx.get(f"{server.url}/drift", params={"n": 200}, timeout=600)
    seconds = time.perf_counter() - begin
    peak.over.set()
    response.raise_for_status()
    return seconds, peak.report_mb


@contextmanager
def clients(server: Server, image: bytes) -> Iterator[Callable[[], list[float]]]:
    """Run clients while the block runs; yields a function that returns the seconds of all predictions so far."""
    seconds: list[float] = []
    over = threading.Event()

    def work() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                begin = time.perf_counter()
                client.post(
                    f"{server.url}/predict?mask=none", files={"data": ("a.png", image, "image/png")}
                ).raise_for_status()
                seconds.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: list(seconds)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gcs", action="store_true")
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    options = parser.parse_args()
    bundle = read_bundle(options.model.resolve())
    image = encode_png(generate_scene(3, 960, 736)[0])
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        url = str(folder / "records")
        target = folder / "records"
        if options.gcs:
            url = stack.enter_context(bucket("flights", stack.enter_context(pytest.MonkeyPatch.context()))).url
        begin = time.perf_counter()
        write_records(target, options.records, read_reference(bundle), bundle.model_id)
        if options.gcs:
            fsspec.filesystem("gs", skip_instance_cache=True).put(f"{target}/", f"{url}/", recursive=True)
        print(f"{options.records} records written in {time.perf_counter() - begin:.0f} s")
        settings = {"records_url": url, "reports_url": str(folder / "reports"), "retention_days": 0, "retention_mb": 0}
        server = stack.enter_context(serving(folder, model=bundle.folder, **settings))
        idle = [report(server) for _ in range(options.rounds)]
        results = ", ".join(f"{seconds:.1f} s and {memory:.0f} MB" for seconds, memory in idle)
        print(f"idle: {results}; median {statistics.median(seconds for seconds, _ in idle):.1f} s")
        rates = []
        with clients(server, image) as so_far:
            time.sleep(WARM_S)
            span = idle[-1][0]
            for _ in range(options.rounds):
                before = len(so_far())
                time.sleep(span)
                without = so_far()[before:]
                before = len(so_far())
                begin = time.perf_counter()
                seconds, memory = report(server)
                during = so_far()[before:]
                took = time.perf_counter() - begin
                rates.append((len(during) / took) / (len(without) / span))
                usual, slower = statistics.median(without), statistics.median(during)
                print(
                    f"busy: report {seconds:.1f} s, {memory:.0f} MB; predictions per second: {len(without) / span:.2f} "
                    f"before, {len(during) / took:.2f} during the report ({rates[-1]:.2f}); "
                    f"median latency {usual:.3f} s and {slower:.3f} s"
                )
                span = seconds
        print(f"rate of predictions during a report, relative to before: median {statistics.median(rates):.2f}")
        print(f"cores: {os.cpu_count()}")


if __name__ == "__main__":
    main()
