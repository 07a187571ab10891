"""The service under more than it can do: what is answered, how much is done, and what stays free meanwhile.

    uv run python benchmarks/load.py [--model BUNDLE] [--minutes 10] [--times 4] [--json FILE]

First a plain loop of decode, segment and encode shows what the machine can do. Then arrivals at that rate times
`--times`, at random moments and whether or not earlier ones were answered, come from a process of their own; a tenth of
them are no photographs. Another process asks /livez every 50 ms, whether or not the last was answered. Memory is
sampled every second. Exit code 1 if something else than 200, 429 and the 4xx of bad input was answered.
"""

import argparse
import asyncio
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
import psutil
from urllib3.filepost import encode_multipart_formdata

from droneseg.core.images import DEFAULT_MAX_PIXELS, decode_image, encode_png
from droneseg.core.masks import encode_mask
from droneseg.data.synthetic.scene import generate_scene
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle

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


def send(rate: float, seconds: float, results: Any) -> None:
    """Send at random moments (a Poisson process); put what was answered and how long it took."""
    results.put(asyncio.run(_send(rate, seconds)))


async def _send(rate: float, seconds: float) -> dict[str, Any]:
    bodies = [encode_multipart_formdata([("data", ("a.png", file))]) for file in photographs()]
    bad = encode_multipart_formdata([("data", ("a.txt", b"this is not a photograph"))])
    good_answers, bad_answers, waits = Counter[str](), Counter[str](), []

    async def one(client: aiohttp.ClientSession, *, good: bool) -> None:
        data, kind = random.choice(bodies) if good else bad
        begin = time.perf_counter()
        try:
            async with client.post(f"{URL}/predict", data=data, headers={"Content-Type": kind}) as answer:
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


def start_service(model: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start `droneseg serve` and wait until it is ready."""
    environment = {"DRONESEG_MODEL": str(model.resolve()), "DRONESEG_RECORDS_URL": str(folder / "records")}
    command = [sys.executable, "-c", "from droneseg.cli.main import main; main()", "serve", "--port", str(PORT)]
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    asyncio.run(_ready(service))
    return service


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results, probes, stop = context.Queue(), context.Queue(), context.Event()
    loop = context.Process(target=plain_loop, args=(arguments.model, results))
    loop.start()
    plain_per_s = results.get()
    loop.join()
    with tempfile.TemporaryDirectory() as temporary:
        service = start_service(arguments.model, Path(temporary))
        try:
            sender = context.Process(target=send, args=(arguments.times * plain_per_s, 60 * arguments.minutes, results))
            prober = context.Process(target=probe, args=(stop, probes))
            sender.start()
            prober.start()
            memory_mb = []
            while sender.is_alive() and results.empty():
                memory_mb.append(psutil.Process(service.pid).memory_info().rss / 1e6)
                time.sleep(1)
            found = results.get(timeout=180)
            stop.set()
            livez = sorted(probes.get(timeout=60))
            prober.join()
            sender.join()
        finally:
            service.terminate()
            service.wait()
    second_minute = memory_mb[60:120] or memory_mb
    found |= {
        "plain_loop_per_s": plain_per_s,
        "goodput_share": found["goodput_per_s"] / plain_per_s,
        "livez_p99_ms": 1000 * livez[int(0.99 * len(livez))],
        "livez_asked": len(livez),
        "memory_mb": {"second_minute": statistics.median(second_minute), "end": statistics.median(memory_mb[-30:])},
        "exit_code": service.returncode,
    }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    unexpected = (set(found["photographs"]) - {"200", "429"}) | (set(found["bad_inputs"]) - {"415", "429"})
    if unexpected:
        raise SystemExit(f"answered, and should not have been: {', '.join(sorted(unexpected))}")


if __name__ == "__main__":
    main()
