"""Load test of a running service: single images, batches, health checks and bad input, set by configs/load.yaml.

    locust -f tests/performance/locustfile.py --headless --host http://127.0.0.1:8000

The exit code is 1 if a threshold is exceeded. Status 429 is not a failure. LOAD_CONFIG names another configuration,
DRONESEG_API_KEY the API key and DRONESEG_BEARER an identity token.
"""

import logging
import os
import random
from functools import cache
from pathlib import Path

import yaml
from locust import FastHttpUser, LoadTestShape, between, events, task
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from urllib3.filepost import encode_multipart_formdata

from droneseg.core.images import encode_png
from droneseg.data.synthetic import generate_scene

CONFIG = os.environ.get("LOAD_CONFIG") or Path(__file__).parents[2] / "configs" / "load.yaml"
LOAD = yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8"))
SHARES = LOAD["shares"]
CREDENTIALS = {"X-API-Key": os.environ.get("DRONESEG_API_KEY"), "Authorization": os.environ.get("DRONESEG_BEARER")}
HEADERS = {
    name: f"Bearer {value}" if name == "Authorization" else value for name, value in CREDENTIALS.items() if value
}
SINGLE, BATCH, HEALTH, BAD = "single", "batch", "health", "bad input"


@cache
def png_image(index: int) -> bytes:
    """Return a generated scene as PNG; the index selects the size in the configuration."""
    return encode_png(generate_scene(index, *LOAD["sizes"][index])[0])


@cache
def body(indices: tuple[int, ...]) -> tuple[bytes, str]:
    """Return a multipart body with these images, and its content type; without images, the body is a bad input."""
    files = [png_image(index) for index in indices] or [b"this is not an image"]
    return encode_multipart_formdata([("data", (f"{number}.png", file)) for number, file in enumerate(files)])


class Pilot(FastHttpUser):
    """User who sends images."""

    wait_time = between(*LOAD["pause_s"])

    @task(SHARES["single"])
    def single(self) -> None:
        """Send one image."""
        self._predict("/predict?mask=none", 1, SINGLE)

    @task(SHARES["batch"])
    def batch(self) -> None:
        """Send a batch of images."""
        self._predict("/batch_predict?mask=none", LOAD["batch"], BATCH)

    @task(SHARES["health"])
    def health(self) -> None:
        """Request the health of the service."""
        self.client.get("/livez", headers=HEADERS, name=HEALTH)

    @task(SHARES["bad"])
    def bad(self) -> None:
        """Send a file that is not an image."""
        with self._post("/predict", (), BAD) as response:
            _expect(response, 415, 429)

    def _predict(self, path: str, count: int, name: str) -> None:
        indices = sorted(random.choices(range(len(LOAD["sizes"])), k=count))
        with self._post(path, tuple(indices), name) as response:
            _expect(response, 200, 429)
            if response.status_code == 429:
                # counted separately: latency thresholds apply to predictions only
                response.request_meta["name"] = f"{name}, refused"

    def _post(self, path: str, indices: tuple[int, ...], name: str) -> ResponseContextManager:
        data, content_type = body(indices)
        headers = {"Content-Type": content_type} | HEADERS
        return self.client.post(path, data=data, headers=headers, name=name, catch_response=True)


def _expect(response: ResponseContextManager, *statuses: int) -> None:
    if response.status_code in statuses:
        response.success()
    else:
        response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")


class Flight(LoadTestShape):
    """Constant load for the configured minutes."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and the spawn rate; None at the end."""
        return None if self.get_run_time() > 60 * LOAD["minutes"] else (LOAD["users"], LOAD["spawn_rate"])


@events.quitting.add_listener
def check_thresholds(environment: Environment, **_: object) -> None:
    """Set the exit code to 1 if a threshold is exceeded."""
    stats, limits = environment.stats, LOAD["thresholds"]
    problems = []
    if not stats.entries.get((SINGLE, "POST")):
        problems.append("no image was predicted")
    if stats.total.fail_ratio > limits["failures"]:
        problems.append(f"{stats.total.fail_ratio:.1%} of the requests failed; the limit is {limits['failures']:.1%}")
    for name, method, limit in ((SINGLE, "POST", limits["single_p95_s"]), (HEALTH, "GET", limits["health_p95_s"])):
        p95_s = stats.get(name, method).get_response_time_percentile(0.95) / 1000
        if p95_s > limit:
            problems.append(f"{name}: the 95th percentile is {p95_s:.2f} s; the limit is {limit:g} s")
    for problem in problems:
        logging.error(problem)
    environment.process_exit_code = 1 if problems else 0
