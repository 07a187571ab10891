"""Measure what the service adds to a prediction: one 960x736 PNG over HTTP and in this process.

    uv run python benchmarks/overhead.py [--model BUNDLE] [--requests 120] [--json FILE]

The same steps, decode, segment and encode, run in this process. The two take turns, and the other one is idle. A pause
before each lets the service finish its work in the background, such as writing the record. The results are medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from load import SIZE, URL, start_service
from urllib3.filepost import encode_multipart_formdata

from droneseg.core.images import decode_image, encode_png
from droneseg.core.masks import encode_mask
from droneseg.data.synthetic import generate_scene
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle

PAUSE_S = 0.15
WARM_UP = 5


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = encode_png(generate_scene(0, *SIZE)[0])
    body, content_type = encode_multipart_formdata([("data", ("a.png", image))])
    segmenter = BundleSegmenter(read_bundle(arguments.model), cache=Path("~/.cache/droneseg/openvino").expanduser())
    plain_s, http_s, added_s = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        service = start_service("fastapi", arguments.model, Path(temporary))
        try:
            with httpx.Client(base_url=URL, timeout=60, headers={"Accept": "application/json"}) as client:
                for number in range(arguments.requests + WARM_UP):
                    time.sleep(PAUSE_S)
                    begin = time.perf_counter()
                    mask = encode_mask(segmenter.segment(decode_image(image)).mask, segmenter.classes)
                    plain = time.perf_counter() - begin
                    time.sleep(PAUSE_S)
                    begin = time.perf_counter()
                    response = client.post("/predict", content=body, headers={"Content-Type": content_type})
                    whole = time.perf_counter() - begin
                    timings = response.raise_for_status().json()["timings_s"]
                    if number >= WARM_UP:  # the first predictions are slower
                        plain_s.append(plain)
                        http_s.append(whole)
                        added_s.append(whole - sum(timings[name] for name in timings if name != "queue"))
        finally:
            service.terminate()
            service.wait()
    result: dict[str, Any] = {
        "requests": len(http_s),
        "mask_bytes": len(mask),
        "plain_ms": 1000 * statistics.median(plain_s),
        "http_ms": 1000 * statistics.median(http_s),
        "overhead_ms": 1000 * (statistics.median(http_s) - statistics.median(plain_s)),
        "outside_the_stages_ms": 1000 * statistics.median(added_s),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
