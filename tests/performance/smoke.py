"""Asks a running service, of either kind, for a prediction and looks at the answer: python smoke.py URL.

The key is DRONESEG_API_KEY, an identity for a private service of Cloud Run DRONESEG_BEARER. Ends with 0 if the mask
fits the photograph and the model that is stated made it.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request

import numpy as np

from droneseg.core.images import encode_png
from droneseg.core.masks import decode_ids
from droneseg.data.synthetic import generate_scene

_WAIT_S = 240  # Cloud Run gives a start so long


def ask(url: str, body: bytes | None = None, content_type: str = "") -> dict[str, object]:
    """Return the JSON a service answers."""
    headers = {"Content-Type": content_type} if body else {}
    if key := os.environ.get("DRONESEG_API_KEY"):
        headers["X-API-Key"] = key
    if token := os.environ.get("DRONESEG_BEARER"):
        headers["Authorization"] = f"Bearer {token}"
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=60) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def wait_for(host: str) -> None:
    """Wait until it is ready."""
    end = time.monotonic() + _WAIT_S
    sys.stderr.write(f"waiting until {host} is ready, {_WAIT_S} s at most\n")
    while True:
        try:
            ask(f"{host}/readyz")
            return
        except (urllib.error.URLError, ConnectionError) as error:
            if time.monotonic() > end:
                sys.exit(f"{host} is not ready after {_WAIT_S} s: {error}")
            time.sleep(1)


def main() -> None:
    """Ask, and say what came."""
    host = sys.argv[1].rstrip("/")
    wait_for(host)
    image, _ = generate_scene(7, 480, 368)
    png = encode_png(image)
    links = ask(f"{host}/")["links"]
    begin = time.perf_counter()
    if isinstance(links, dict) and links.get("documentation") == "/docs.json":  # BentoML
        answer = ask(f"{host}/predict_image_bytes", png, "image/png")
        about = ask(f"{host}/model_info", b"{}", "application/json")
    else:
        boundary = "photograph"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n'.encode()
        body = head + png + f"\r\n--{boundary}--\r\n".encode()
        answer = ask(f"{host}/predict", body, f"multipart/form-data; boundary={boundary}")
        about = ask(f"{host}/model_info")
    seconds = time.perf_counter() - begin
    mask = decode_ids(base64.b64decode(str(answer["segmentation_mask"])))
    if mask.shape != image.shape[:2] or answer["model_id"] != about["model_id"]:
        sys.exit(f"the answer does not fit: mask {mask.shape}, model {answer['model_id']} of {about['model_id']}")
    sys.stdout.write(f"{host}: model {answer['model_id']}, classes {np.unique(mask).tolist()}, {seconds:.2f} s\n")


if __name__ == "__main__":
    main()
