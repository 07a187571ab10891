"""Load on a running service: single photographs, batches, health and bad input, as configs/load.yaml says.

    locust -f tests/performance/locustfile.py --headless --host http://127.0.0.1:8000

Ends by itself, with exit code 1 past the thresholds. 429 is an answer, and no failure. LOAD_CONFIG names another file,
DRONESEG_API_KEY the key, DRONESEG_BEARER an identity.
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
GIVEN = {"X-API-Key": os.environ.get("DRONESEG_API_KEY"), "Authorization": os.environ.get("DRONESEG_BEARER")}
HEADERS = {name: f"Bearer {value}" if name == "Authorization" else value for name, value in GIVEN.items() if value}
SINGLE, BATCH, HEALTH, BAD = "single", "batch", "health", "bad input"


@cache
def photograph(number: int) -> bytes:
    """Return a generated scene of one of the sizes, as PNG."""
    return encode_png(generate_scene(number, *LOAD["sizes"][number])[0])


@cache
def body(numbers: tuple[int, ...]) -> tuple[bytes, str]:
    """Return a multipart body with these photographs, and its content type; none of them is a bad input."""
    files = [photograph(number) for number in numbers] or [b"this is not a photograph"]
    return encode_multipart_formdata([("data", (f"{place}.png", file)) for place, file in enumerate(files)])


class Pilot(FastHttpUser):
    """Somebody who sends photographs."""

    wait_time = between(*LOAD["pause_s"])

    @task(SHARES["single"])
    def single(self) -> None:
        """Send one photograph."""
        self._predict("/predict?mask=none", 1, SINGLE)

    @task(SHARES["batch"])
    def batch(self) -> None:
        """Send several."""
        self._predict("/batch_predict?mask=none", LOAD["batch"], BATCH)

    @task(SHARES["health"])
    def health(self) -> None:
        """Ask whether it lives."""
        self.client.get("/livez", headers=HEADERS, name=HEALTH)

    @task(SHARES["bad"])
    def bad(self) -> None:
        """Send what is no photograph."""
        with self._post("/predict", (), BAD) as response:
            _expect(response, 415, 429)

    def _predict(self, path: str, count: int, name: str) -> None:
        numbers = sorted(random.choices(range(len(LOAD["sizes"])), k=count))
        with self._post(path, tuple(numbers), name) as response:
            _expect(response, 200, 429)
            if response.status_code == 429:
                # an answer, but none that a latency threshold is about
                response.request_meta["name"] = f"{name}, refused"

    def _post(self, path: str, numbers: tuple[int, ...], name: str) -> ResponseContextManager:
        data, content_type = body(numbers)
        headers = {"Content-Type": content_type} | HEADERS
        return self.client.post(path, data=data, headers=headers, name=name, catch_response=True)


def _expect(response: ResponseContextManager, *statuses: int) -> None:
    if response.status_code in statuses:
        response.success()
    else:
        response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")


class Flight(LoadTestShape):
    """All users, for the minutes that are set."""

    def tick(self) -> tuple[int, float] | None:
        """Return users and rate, or None at the end."""
        return None if self.get_run_time() > 60 * LOAD["minutes"] else (LOAD["users"], LOAD["spawn_rate"])


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Fail the run past a threshold."""
    stats, limits = environment.stats, LOAD["thresholds"]
    problems = []
    if not stats.entries.get((SINGLE, "POST")):
        problems.append("no photograph was predicted")
    if stats.total.fail_ratio > limits["failures"]:
        problems.append(f"{stats.total.fail_ratio:.1%} of the requests failed; allowed is {limits['failures']:.1%}")
    for name, method, limit in ((SINGLE, "POST", limits["single_p95_s"]), (HEALTH, "GET", limits["health_p95_s"])):
        slow_s = stats.get(name, method).get_response_time_percentile(0.95) / 1000
        if slow_s > limit:
            problems.append(f"{name}: 95 % within {slow_s:.2f} s; allowed is {limit:g} s")
    for problem in problems:
        logging.error(problem)
    environment.process_exit_code = 1 if problems else 0
