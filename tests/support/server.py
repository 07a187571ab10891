"""Service processes on free local ports, and requests to them."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import httpx
import psutil
from urllib3.filepost import encode_multipart_formdata

from support.waiting import HANG_S
from support.workspace import COMMAND

Body: TypeAlias = tuple[bytes, dict[str, str]]
"""Body of a request and its headers."""


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_form(data: bytes, options: Mapping[str, object]) -> Body:
    """Return a multipart body with an image and its options."""
    fields = [(name, _as_text(value)) for name, value in options.items()]
    body, content_type = encode_multipart_formdata([("data", ("a.png", data, "image/png")), *fields])
    return body, {"Content-Type": content_type}


def as_itself(data: bytes, options: Mapping[str, object]) -> Body:
    """Return the image itself as the body, and its options in headers."""
    headers = {f"X-{name.replace('_', '-')}": _as_text(value) for name, value in options.items()}
    return data, {"Content-Type": "image/png"} | headers


def as_base64(data: bytes, options: Mapping[str, object]) -> Body:
    """Return a JSON body with an image in base64 and its options."""
    request = {"image_b64": base64.b64encode(data).decode(), "content_type": "image/png", **options}
    return json.dumps({"req": request}).encode(), {"Content-Type": "application/json"}


NO_OPTIONS: Mapping[str, object] = {}


@dataclass(frozen=True)
class Backend:
    """Way to serve predictions: command of the service, paths of the endpoints, encoding of the body.

    `landing_path` is empty if the service has no endpoint for landing sites.
    """

    name: str
    command: Sequence[str]
    path: str
    landing_path: str
    body: Callable[[bytes, Mapping[str, object]], Body]


_BENTO_COMMAND = (
    sys.executable,
    "-W",
    "ignore",
    "-m",
    "bentoml",
    "serve",
    "droneseg.serving.bentoml_service:DroneSegService",
)
FASTAPI = Backend("fastapi", (*COMMAND, "serve"), "/predict", "/landing_sites", as_form)
BENTO = Backend("bento", _BENTO_COMMAND, "/predict_image_bytes", "/landing_sites_image_bytes", as_itself)
BENTO_BASE64 = replace(
    BENTO, name="bento-base64", path="/predict_base64", landing_path="/landing_sites", body=as_base64
)
_UNLIMITED_S = "86400"


@dataclass
class Server:
    """A running service."""

    url: str
    backend: Backend
    process: "subprocess.Popen[bytes]"
    log: Path

    def terminate(self) -> None:
        """Send SIGTERM, as Cloud Run does."""
        self.process.send_signal(signal.SIGTERM)

    def predict(self, data: bytes, options: Mapping[str, object] = NO_OPTIONS, **headers: str) -> httpx.Response:
        """Send an image and its options to the prediction endpoint."""
        return self._post(self.backend.path, data, options, headers)

    def find_sites(self, data: bytes, options: Mapping[str, object] = NO_OPTIONS, **headers: str) -> httpx.Response:
        """Send an image and its options to the endpoint for landing sites."""
        return self._post(self.backend.landing_path, data, options, headers)

    def _post(
        self, path: str, data: bytes, options: Mapping[str, object], headers: Mapping[str, str]
    ) -> httpx.Response:
        body, own_headers = self.backend.body(data, options)
        return httpx.post(f"{self.url}{path}", content=body, headers={**own_headers, **headers}, timeout=HANG_S)

    @property
    def memory_mb(self) -> float:
        """Resident memory of the service and its child processes, in MB."""
        process = psutil.Process(self.process.pid)
        return sum(member.memory_info().rss for member in (process, *process.children(recursive=True))) / 1e6


@contextmanager
def serving(folder: Path, *, backend: Backend = FASTAPI, ready: bool = True, **settings: object) -> Iterator[Server]:
    """Run a service with these settings while the block runs; wait until it is ready, or at least alive."""
    port = free_port()
    environment = {f"DRONESEG_{name.upper()}": str(value) for name, value in settings.items()} | {"PORT": str(port)}
    defaults = {
        "DRONESEG_RECORDS_URL": "records",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(folder / "bentoml"),
        # on a busy machine, a prediction takes longer than the limits that suit a service
        "DRONESEG_QUEUE_SECONDS": _UNLIMITED_S,
        "DRONESEG_TIMEOUT_SECONDS": _UNLIMITED_S,
    }
    log = folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            backend.command,
            cwd=folder,
            env=os.environ | defaults | environment,
            stdout=out,
            stderr=out,
        )
    server = Server(f"http://127.0.0.1:{port}", backend, process, log)
    try:
        _wait_for(server, "/readyz" if ready else "/livez")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: Server, path: str) -> None:
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}{path}").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the service did not become ready:\n{server.log.read_text()}")
