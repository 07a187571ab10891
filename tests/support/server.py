"""The real service in a process of its own, on a free port of this machine."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
from urllib3.filepost import encode_multipart_formdata

from support.waiting import HANG_S
from support.workspace import COMMAND


def as_form(data: bytes) -> tuple[bytes, str]:
    """Return a multipart body with a photograph, and its type."""
    return encode_multipart_formdata([("data", ("a.png", data, "image/png"))])


def as_itself(data: bytes) -> tuple[bytes, str]:
    """Return a photograph, which is its own body, and its type."""
    return data, "image/png"


def as_base64(data: bytes) -> tuple[bytes, str]:
    """Return JSON with a photograph, and its type."""
    request = {"image_b64": base64.b64encode(data).decode(), "content_type": "image/png"}
    return json.dumps({"req": request}).encode(), "application/json"


@dataclass(frozen=True)
class Backend:
    """One of the ways to serve and to send a photograph: the command, the path and the body."""

    name: str
    command: Sequence[str]
    path: str
    body: Callable[[bytes], tuple[bytes, str]]


_BENTO_COMMAND = (
    sys.executable,
    "-W",
    "ignore",
    "-m",
    "bentoml",
    "serve",
    "droneseg.serving.bentoml_service:DroneSegService",
)
FASTAPI = Backend("fastapi", (*COMMAND, "serve"), "/predict", as_form)
BENTO = Backend("bento", _BENTO_COMMAND, "/predict_image_bytes", as_itself)
BENTO_BASE64 = replace(BENTO, name="bento-base64", path="/predict_base64", body=as_base64)


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

    def predict(self, data: bytes, **headers: str) -> httpx.Response:
        """Send a photograph."""
        body, content_type = self.backend.body(data)
        headers = {"Content-Type": content_type} | headers
        return httpx.post(f"{self.url}{self.backend.path}", content=body, headers=headers, timeout=HANG_S)

    @property
    def memory_mb(self) -> float:
        """Resident memory of all its processes."""
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6


@contextmanager
def serving(folder: Path, *, backend: Backend = FASTAPI, ready: bool = True, **settings: object) -> Iterator[Server]:
    """Run a service with these settings until the block ends; it is ready, or lives, when the block begins."""
    port = free_port()
    environment = {f"DRONESEG_{name.upper()}": str(value) for name, value in settings.items()} | {"PORT": str(port)}
    defaults = {
        "DRONESEG_RECORDS_URL": "records",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(folder / "bentoml"),
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
    """Return a port nobody listens on."""
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
