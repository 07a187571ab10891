"""The service under more than it can do: what is answered, how much is done, and what stays free meanwhile.

    uv run python benchmarks/load.py [--backend fastapi bento bento-base64] [--model BUNDLE] [--minutes 10]
        [--times 4] [--json FILE]

First a plain loop of decode, segment and encode shows what the machine can do, before and after all else. A backend
is started, which is timed until it is ready, and photographs are sent one after the other. Then arrivals at the
loop's rate times `--times`, at random moments and whether or not earlier ones were answered, come from a process of
their own; a tenth of them are no photographs. Another process asks /livez every 50 ms, whether or not the last was
answered. Memory of all processes of the service is sampled every second. Exit code 1 if something else than 200, 429
and the 4xx of bad input was answered.
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
ALONE = 30  # photographs without any load
SIZE = (960, 736)
PHOTOGRAPHS = 4
BAD_SHARE = 0.1
LOOP_S = 20.0
PROBE_PAUSE_S = 0.05
PORT = 8765
URL = f"http://127.0.0.1:{PORT}"


def photographs() -> list[bytes]:
    """Return generated scenes as PNG."""
    return [encode_png(generate_scene(seed, *SIZE)[0]) for seed in range(PHOTOGRAPHS)]


def plain_loop(model: Path, results: Any) -> None:
    """Decode, segment and encode one photograph after the other; put photographs per second."""
    segmenter = BundleSegmenter(read_bundle(model), cache=Path("~/.cache/droneseg/openvino").expanduser())
    files = photographs()
    segmenter.segment(decode_image(files[0]))
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < LOOP_S:
        image = decode_image(files[done % len(files)], max_pixels=DEFAULT_MAX_PIXELS)
        encode_mask(segmenter.segment(image).mask)
        done += 1
    results.put(done / (time.perf_counter() - begin))


def request_of(backend: str, file: bytes) -> tuple[bytes, str]:
    """Return a body with a file in it, and its type, as a client of this backend sends it."""
    if backend == "fastapi":
        return encode_multipart_formdata([("data", ("a.png", file))])
    if backend == "bento":
        return file, "image/png"
    return json.dumps({"req": {"image_b64": base64.b64encode(file).decode()}}).encode(), "application/json"


def send(backend: str, rate: float, seconds: float, results: Any) -> None:
    """Send at random moments (a Poisson process); put what was answered and how long it took."""
    results.put(asyncio.run(_send(backend, rate, seconds)))


async def _send(backend: str, rate: float, seconds: float) -> dict[str, Any]:
    bodies = [request_of(backend, file) for file in photographs()]
    bad = request_of(backend, b"this is not a photograph")
    good_answers, bad_answers, waits = Counter[str](), Counter[str](), []

    async def one(client: aiohttp.ClientSession, *, good: bool) -> None:
        data, kind = random.choice(bodies) if good else bad
        begin = time.perf_counter()
        try:
            async with client.post(URL + PATHS[backend], data=data, headers={"Content-Type": kind}) as answer:
                await answer.read()
                status = str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        (good_answers if good else bad_answers)[status] += 1
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
        done_in_time = good_answers["200"]
        await asyncio.gather(*tasks)
    return {
        "photographs": dict(good_answers),
        "bad_inputs": dict(bad_answers),
        "goodput_per_s": done_in_time / sent_s,
        "median_s": statistics.median(waits),
    }


def probe(stop: Any, results: Any) -> None:
    """Ask whether the service lives, again and again; put the seconds of each answer."""
    results.put(asyncio.run(_probe(stop)))


async def _probe(stop: Any) -> list[float]:
    found, tasks = [], set()

    async def one(client: aiohttp.ClientSession, due: float) -> None:
        async with client.get(f"{URL}/livez") as answer:
            await answer.read()
        found.append(time.perf_counter() - due)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        due = time.perf_counter()
        while not stop.is_set():
            task = asyncio.create_task(one(client, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += PROBE_PAUSE_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*tasks)
    return found


def start_service(backend: str, model: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a backend and wait until it is ready."""
    environment = {
        "DRONESEG_MODEL": str(model.resolve()),
        "DRONESEG_RECORDS_URL": str(folder / "records"),
        "DRONESEG_PORT": str(PORT),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, *COMMANDS[backend]]
        service = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    asyncio.run(_ready(service))
    return service


def alone_s(backend: str) -> float:
    """Return the median time of photographs that are sent one after the other."""
    seconds = []
    bodies = [request_of(backend, file) for file in photographs()]
    with httpx.Client(base_url=URL, timeout=60) as client:
        for number in range(ALONE):
            body, kind = bodies[number % len(bodies)]
            begin = time.perf_counter()
            client.post(PATHS[backend], content=body, headers={"Content-Type": kind}).raise_for_status()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def memory_mb(service: "subprocess.Popen[bytes]") -> float:
    """Return the resident memory of a service's processes."""
    process = psutil.Process(service.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6


async def _ready(service: "subprocess.Popen[bytes]") -> None:
    async with aiohttp.ClientSession() as client:
        while service.poll() is None:
            try:
                async with client.get(f"{URL}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit("the service ended before it was ready")


def measure(backend: str, model: Path, *, minutes: float, times: float) -> dict[str, Any]:
    """Return what a backend answers under that many times what the machine can do."""
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
            found = results.get(timeout=180)
            stop.set()
            livez = sorted(probes.get(timeout=60))
            prober.join()
            sender.join()
        finally:
            service.terminate()
            service.wait()
    # machines become faster and slower: the mean of before and after
    plain_per_s = statistics.mean([plain_per_s, plain()])
    return found | {
        "backend": backend,
        "start_s": start_s,
        "alone_s": median_alone_s,
        "plain_loop_per_s": plain_per_s,
        "goodput_share": found["goodput_per_s"] / plain_per_s,
        "livez_p99_ms": 1000 * livez[int(0.99 * len(livez))],
        "livez_asked": len(livez),
        "memory_mb": {
            "second_minute": statistics.median(memory[60:120] or memory),
            "end": statistics.median(memory[-30:]),
        },
        "exit_code": service.returncode,
    }


def unexpected(found: dict[str, Any]) -> set[str]:
    """Return what should not have been answered."""
    return (set(found["photographs"]) - {"200", "429"}) | (set(found["bad_inputs"]) - {"415", "429"})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", choices=list(COMMANDS), default=["fastapi"])
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    for backend in arguments.backend:
        found.append(measure(backend, arguments.model, minutes=arguments.minutes, times=arguments.times))
        print(json.dumps(found[-1], indent=2), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    wrong = set[str]().union(*map(unexpected, found))
    if wrong:
        raise SystemExit(f"answered, and should not have been: {', '.join(sorted(wrong))}")


if __name__ == "__main__":
    main()
