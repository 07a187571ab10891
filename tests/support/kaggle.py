"""Server with the part of Kaggle's API that a download uses: tokens, versions, redirects, ranges, faults."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "KGAT_a_pilots_token"
USERNAME, KEY = "pilot", "an old key"


@dataclass
class Kaggle:
    """Datasets of the server, the faults to produce, and the ranges requested."""

    address: str
    archives: dict[tuple[str, int], bytes] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    damage: bool = False
    forbid: bool = False
    ranges: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make Kaggle's client use this server as a proxy for http://localhost."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": self.address, "no_proxy": "", "NO_PROXY": "",
        }  # fmt: skip


@contextmanager
def kaggle_server() -> Iterator[Kaggle]:
    """Run the server while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            path = urlsplit(self.path).path
            if path.endswith("/IntrospectToken"):
                known = request["token"] == TOKEN
                self.answer(200 if known else 404, json.dumps({"active": known, "username": USERNAME}).encode())
            elif path.endswith("/DownloadDataset"):
                self.redirect(request)
            else:
                self.answer(404)

        def redirect(self, request: dict[str, object]) -> None:
            basic = base64.b64encode(f"{USERNAME}:{KEY}".encode()).decode()
            if self.headers.get("Authorization") not in (f"Bearer {TOKEN}", f"Basic {basic}"):
                return self.answer(401)
            name = f"{request['ownerSlug']}/{request['datasetSlug']}"
            versions = [version for known, version in kaggle.archives if known == name]
            version = request.get("datasetVersionNumber") or max(versions, default=0)
            if version not in versions:
                return self.answer(404)
            if kaggle.forbid:
                return self.answer(403)
            return self.answer(302, Location=f"http://localhost/storage/{name}/{version}")

        def do_GET(self) -> None:
            *_, owner, name, version = urlsplit(self.path).path.split("/")
            data = kaggle.archives[f"{owner}/{name}", int(version)]
            digest = hashlib.md5(data).digest()
            requested = self.headers.get("Range")
            begin = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
            if requested:
                kaggle.ranges.append(requested)
            body = data[begin:]
            sent = bytes([body[0] ^ 1]) + body[1:] if kaggle.damage else body
            self.send_response(206 if requested else 200)
            for key, value in {
                "Content-Type": "application/zip", "Content-Length": str(len(body)), "Accept-Ranges": "bytes",
                "ETag": f'"{digest.hex()}"', "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT",
                "x-goog-hash": f"crc32c=AAAAAA==, md5={base64.b64encode(digest).decode()}",
            }.items():  # fmt: skip
                self.send_header(key, value)
            self.end_headers()
            if kaggle.cut_after_bytes is not None and len(sent) > kaggle.cut_after_bytes:
                self.wfile.write(sent[: kaggle.cut_after_bytes])
                self.close_connection = True
                self.connection.shutdown(2)
            else:
                self.wfile.write(sent)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kaggle = Kaggle(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kaggle
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
