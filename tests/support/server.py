"""The real service in a process of its own, on a free port of this machine."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from support.workspace import COMMAND

_START_S = 60


@dataclass
class Server:
    """A running service."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def terminate(self) -> None:
        """Send SIGTERM, as Cloud Run does."""
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Server]:
    """Run `droneseg serve` with these settings until the block ends; it is ready when the block begins."""
    port = free_port()
    environment = {f"DRONESEG_{name.upper()}": str(value) for name, value in settings.items()}
    log = folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=os.environ | {"DRONESEG_RECORDS_URL": "records"} | environment,
            stdout=out,
            stderr=out,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the service did not become ready:\n{server.log.read_text()}")
