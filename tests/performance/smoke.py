"""Smoke test of a running service: python smoke.py URL.

Sends an image to either backend. The exit code is 0 if the mask has the size of the image and comes from the service's
current model. DRONESEG_API_KEY is the API key, DRONESEG_BEARER an identity token for a private service of Cloud Run.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request

import numpy as np

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.images import encode_png
from droneseg.core.masks import decode_ids
from droneseg.data.synthetic import generate_scene

_WAIT_S = 240  # the longest start that Cloud Run allows


def request_json(url: str, body: bytes | None = None, content_type: str = "") -> dict[str, object]:
    """Return the JSON of a response; sends a POST request if there is a body."""
    headers = {"Content-Type": content_type} if body else {}
    if key := os.environ.get("DRONESEG_API_KEY"):
        headers["X-API-Key"] = key
    if token := os.environ.get("DRONESEG_BEARER"):
        headers["Authorization"] = f"Bearer {token}"
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=60) as response:
        content: dict[str, object] = json.load(response)
        return content


def wait_for(host: str) -> None:
    """Wait until the service is ready."""
    end = time.monotonic() + _WAIT_S
    sys.stderr.write(f"waiting at most {_WAIT_S} s until {host} is ready\n")
    while True:
        try:
            request_json(f"{host}/readyz")
            return
        except (urllib.error.URLError, ConnectionError) as error:
            if time.monotonic() > end:
                sys.exit(f"{host} is not ready after {_WAIT_S} s: {error}")
            time.sleep(1)


def main() -> None:
    """Send an image and check the response."""
    host = sys.argv[1].rstrip("/")
    wait_for(host)
    image, _ = generate_scene(7, 480, 368)
    png = encode_png(image)
    links = request_json(f"{host}/")["links"]
    begin = time.perf_counter()
    if isinstance(links, dict) and links.get("documentation") == "/docs.json":  # BentoML
        prediction = request_json(f"{host}/predict_image_bytes", png, "image/png")
        info = request_json(f"{host}/model_info", b"{}", "application/json")
    else:
        boundary = "image"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n'.encode()
        body = head + png + f"\r\n--{boundary}--\r\n".encode()
        prediction = request_json(f"{host}/predict", body, f"multipart/form-data; boundary={boundary}")
        info = request_json(f"{host}/model_info")
    seconds = time.perf_counter() - begin
    mask = decode_ids(base64.b64decode(str(prediction["segmentation_mask"])), DEFAULT_CLASSES)
    if mask.shape != image.shape[:2] or prediction["model_id"] != info["model_id"]:
        sys.exit(
            f"wrong response: mask {mask.shape} for an image {image.shape[:2]}, "
            f"model {prediction['model_id']} instead of {info['model_id']}"
        )
    sys.stdout.write(f"{host}: model {prediction['model_id']}, classes {np.unique(mask).tolist()}, {seconds:.2f} s\n")


if __name__ == "__main__":
    main()
