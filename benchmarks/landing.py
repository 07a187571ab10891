"""Time and memory of `POST /landing_sites`, compared with `POST /predict` for the same photograph.

    uv run python benchmarks/landing.py --sizes 960x736 4000x3000 7300x5475 --repeats 7

Each endpoint has its own service, which is restarted for each size, so the peak memory of its process is that of the
endpoint. Requests alternate between the two. Photographs are generated scenes as JPEG, with a ground resolution of
25 mm per pixel.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from io import BytesIO
from pathlib import Path

import httpx
from load import PORT, start_service
from PIL import Image as pillow

from droneseg.core.files import write_text
from droneseg.data.synthetic import generate_scene

ENDPOINTS = {"/predict": PORT, "/landing_sites": PORT + 1}
"""Port of the service of each endpoint."""
GSD_M = "0.025"
TIMEOUT_S = 900


def main() -> None:
    """Measure every size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--sizes", nargs="+", default=["960x736", "4000x3000", "7300x5475"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    print("| size | /predict s | /landing_sites s | ratio | /predict MB | /landing_sites MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        row = {"size": size, **measure(options.model.resolve(), photograph(width, height), options.repeats)}
        rows.append(row)
        print(
            f"| {size} | {row['predict_s']:.3f} | {row['landing_s']:.3f} | {row['time_ratio']:.2f} "
            f"| {row['predict_mb']:.0f} | {row['landing_mb']:.0f} | {row['memory_ratio']:.2f} |",
            flush=True,
        )
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")


def photograph(width: int, height: int) -> bytes:
    """Return a generated scene as JPEG."""
    scene = pillow.fromarray(generate_scene(5, 960, 736)[0]).resize((width, height))
    stream = BytesIO()
    scene.save(stream, "JPEG", quality=92)
    return stream.getvalue()


def measure(model: Path, data: bytes, repeats: int) -> dict[str, float]:
    """Return the median time in seconds and the peak memory in MB of both endpoints, and their ratios."""
    seconds: dict[str, list[float]] = {endpoint: [] for endpoint in ENDPOINTS}
    services = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            services += [start_service("fastapi", model, Path(folder), port) for port in ENDPOINTS.values()]
            for _ in range(repeats + 1):  # the first predictions are slower
                for endpoint, port in ENDPOINTS.items():
                    seconds[endpoint].append(request_s(f"http://127.0.0.1:{port}{endpoint}", data))
            peaks = [peak_mb(service) for service in services]
        finally:
            for service in services:
                service.terminate()
                service.wait()
    predict_s, landing_s = (seconds[endpoint][1:] for endpoint in ENDPOINTS)
    return {
        "predict_s": statistics.median(predict_s),
        "landing_s": statistics.median(landing_s),
        "time_ratio": statistics.median(
            landing / predict for predict, landing in zip(predict_s, landing_s, strict=True)
        ),
        "predict_mb": peaks[0],
        "landing_mb": peaks[1],
        "memory_ratio": peaks[1] / peaks[0],
    }


def request_s(url: str, data: bytes) -> float:
    """Send a photograph and return the seconds until the response."""
    begin = time.perf_counter()
    response = httpx.post(url, files={"data": ("a.jpg", data)}, data={"gsd_m": GSD_M}, timeout=TIMEOUT_S)
    seconds = time.perf_counter() - begin
    response.raise_for_status()
    return seconds


def peak_mb(process: "subprocess.Popen[bytes]") -> float:
    """Return the peak resident memory of a process in MB; it is read from `/proc`, which only Linux has."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
