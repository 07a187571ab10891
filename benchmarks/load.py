"""Measure the service under overload: responses, throughput, health checks and memory.

    uv run python benchmarks/load.py [--backend fastapi bento bento-base64] [--model BUNDLE] [--minutes 10]
        [--times 4] [--json FILE]

A plain loop of decode, segment and encode measures the speed of the machine, before and after everything else. Then the
backend is started and images are sent one after the other. Then another process sends requests at random moments (a
Poisson process) at `--times` times the rate of the plain loop, without waiting for responses; a tenth of them are not
images. A third process requests /livez every 50 ms, without waiting for responses. The memory of all processes of the
service is sampled every second. The exit code is 1 if there is any status other than 200, 429 and, for bad input, 415.
"""

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
from urllib3.filepost import encode_multipart_formdata

from droneseg.core.images import DEFAULT_MAX_PIXELS, decode_image, encode_png
from droneseg.core.masks import encode_mask
from droneseg.data.synthetic import generate_scene
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle

BENTO = "droneseg.serving.bentoml_service:DroneSegService"
COMMANDS = {
    "fastapi": ["-c", "from droneseg.cli.main import main; main()", "serve"],
    "bento": ["-m", "bentoml", "serve", BENTO],
}
COMMANDS["bento-base64"] = COMMANDS["bento"]
PATHS = {"fastapi": "/predict", "bento": "/predict_image_bytes", "bento-base64": "/predict_base64"}
ALONE = 30  # images without load
SIZE = (960, 736)
IMAGES = 4
BAD_SHARE = 0.1
LOOP_S = 20.0
PROBE_PAUSE_S = 0.05
PORT = 8765
URL = f"http://127.0.0.1:{PORT}"


def png_images() -> list[bytes]:
    """Return generated scenes as PNG."""
    return [encode_png(generate_scene(seed, *SIZE)[0]) for seed in range(IMAGES)]


def plain_loop(model: Path, results: Any) -> None:
    """Decode, segment and encode one image after the other; put the number of images per second."""
    segmenter = BundleSegmenter(read_bundle(model), cache=Path("~/.cache/droneseg/openvino").expanduser())
    files = png_images()
    segmenter.segment(decode_image(files[0]))
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < LOOP_S:
        image = decode_image(files[done % len(files)], max_pixels=DEFAULT_MAX_PIXELS)
        encode_mask(segmenter.segment(image).mask, segmenter.classes)
        done += 1
    results.put(done / (time.perf_counter() - begin))


def request_of(backend: str, file: bytes) -> tuple[bytes, str]:
    """Return the request body with a file for this backend, and its content type."""
    if backend == "fastapi":
        return encode_multipart_formdata([("data", ("a.png", file))])
    if backend == "bento":
        return file, "image/png"
    return json.dumps({"req": {"image_b64": base64.b64encode(file).decode()}}).encode(), "application/json"


def send(backend: str, rate: float, seconds: float, results: Any) -> None:
    """Send requests at random moments (a Poisson process); put the counts of responses and the times."""
    results.put(asyncio.run(_send(backend, rate, seconds)))


async def _send(backend: str, rate: float, seconds: float) -> dict[str, Any]:
    bodies = [request_of(backend, file) for file in png_images()]
    bad = request_of(backend, b"this is not an image")
    good_statuses, bad_statuses, waits = Counter[str](), Counter[str](), []

    async def one(client: aiohttp.ClientSession, *, good: bool) -> None:
        data, kind = random.choice(bodies) if good else bad
        begin = time.perf_counter()
        try:
            async with client.post(URL + PATHS[backend], data=data, headers={"Content-Type": kind}) as response:
                await response.read()
                status = str(response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        (good_statuses if good else bad_statuses)[status] += 1
        if good and status == "200":
            waits.append(time.perf_counter() - begin)

    rng = random.Random(0)
    timeout, connector = aiohttp.ClientTimeout(total=120), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        tasks = set()
        begin = due = time.perf_counter()
        while due - begin < seconds:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(one(client, good=rng.random() >= BAD_SHARE))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        sent_s = time.perf_counter() - begin
        done_in_time = good_statuses["200"]
        await asyncio.gather(*tasks)
    return {
        "photographs": dict(good_statuses),
        "bad_inputs": dict(bad_statuses),
        "goodput_per_s": done_in_time / sent_s,
        "median_s": statistics.median(waits),
    }


def probe(stop: Any, results: Any) -> None:
    """Request /livez every `PROBE_PAUSE_S` seconds; put the times of the responses."""
    results.put(asyncio.run(_probe(stop)))


async def _probe(stop: Any) -> list[float]:
    seconds, tasks = [], set()

    async def one(client: aiohttp.ClientSession, due: float) -> None:
        async with client.get(f"{URL}/livez") as response:
            await response.read()
        seconds.append(time.perf_counter() - due)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        due = time.perf_counter()
        while not stop.is_set():
            task = asyncio.create_task(one(client, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += PROBE_PAUSE_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*tasks)
    return seconds


def start_service(backend: str, model: Path, folder: Path, port: int = PORT) -> subprocess.Popen[bytes]:
    """Start a backend on a port and wait until it is ready."""
    environment = {
        "DRONESEG_MODEL": str(model.resolve()),
        "DRONESEG_RECORDS_URL": str(folder / "records"),
        "DRONESEG_PORT": str(port),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, *COMMANDS[backend]]
        service = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    asyncio.run(_ready(service, f"http://127.0.0.1:{port}/readyz"))
    return service


def alone_s(backend: str) -> float:
    """Return the median time of images that are sent one after the other."""
    seconds = []
    bodies = [request_of(backend, file) for file in png_images()]
    with httpx.Client(base_url=URL, timeout=60) as client:
        for number in range(ALONE):
            body, kind = bodies[number % len(bodies)]
            begin = time.perf_counter()
            client.post(PATHS[backend], content=body, headers={"Content-Type": kind}).raise_for_status()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def memory_mb(service: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of all processes of a service in MB."""
    process = psutil.Process(service.pid)
    return sum(child.memory_info().rss for child in (process, *process.children(recursive=True))) / 1e6


async def _ready(service: subprocess.Popen[bytes], url: str) -> None:
    async with aiohttp.ClientSession() as client:
        while service.poll() is None:
            try:
                async with client.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit("the service ended before it was ready")


def measure(backend: str, model: Path, *, minutes: float, times: float) -> dict[str, Any]:
    """Measure a backend under `times` times the load that the machine can process."""
    context = multiprocessing.get_context("spawn")
    results, probes, stop = context.Queue(), context.Queue(), context.Event()

    def plain() -> float:
        loop = context.Process(target=plain_loop, args=(model, results))
        loop.start()
        per_s: float = results.get()
        loop.join()
        return per_s

    plain_per_s = plain()
    with tempfile.TemporaryDirectory() as temporary:
        begin = time.perf_counter()
        service = start_service(backend, model, Path(temporary))
        try:
            start_s, median_alone_s = time.perf_counter() - begin, alone_s(backend)
            sender = context.Process(target=send, args=(backend, times * plain_per_s, 60 * minutes, results))
            prober = context.Process(target=probe, args=(stop, probes))
            sender.start()
            prober.start()
            memory = []
            while sender.is_alive() and results.empty():
                memory.append(memory_mb(service))
                time.sleep(1)
            result = results.get(timeout=180)
            stop.set()
            livez = sorted(probes.get(timeout=60))
            prober.join()
            sender.join()
        finally:
            service.terminate()
            service.wait()
    # the speed of the machine varies: use the mean of before and after
    plain_per_s = statistics.mean([plain_per_s, plain()])
    return result | {
        "backend": backend,
        "start_s": start_s,
        "alone_s": median_alone_s,
        "plain_loop_per_s": plain_per_s,
        "goodput_share": result["goodput_per_s"] / plain_per_s,
        "livez_p99_ms": 1000 * livez[int(0.99 * len(livez))],
        "livez_asked": len(livez),
        "memory_mb": {
            "second_minute": statistics.median(memory[60:120] or memory),
            "end": statistics.median(memory[-30:]),
        },
        "exit_code": service.returncode,
    }


def unexpected(result: dict[str, Any]) -> set[str]:
    """Return the statuses that should not occur."""
    return (set(result["photographs"]) - {"200", "429"}) | (set(result["bad_inputs"]) - {"415", "429"})


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", choices=list(COMMANDS), default=["fastapi"])
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for backend in arguments.backend:
        results.append(measure(backend, arguments.model, minutes=arguments.minutes, times=arguments.times))
        print(json.dumps(results[-1], indent=2), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    statuses = set[str]().union(*map(unexpected, results))
    if statuses:
        raise SystemExit(f"unexpected responses: {', '.join(sorted(statuses))}")


if __name__ == "__main__":
    main()
