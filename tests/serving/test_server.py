"""Server process of each backend: a model, HTTP requests, disconnects and signals."""

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from droneseg.core.settings import Settings
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.server import LimitedHttpProtocol, configure_bentoml_server
from droneseg.serving.service import GRACEFUL_S, PredictionService
from support.bundles import make_bundle
from support.hostile import corpus
from support.images import png
from support.segmenters import BrightIsLanding
from support.server import BENTO, FASTAPI, Backend, Server, serving
from support.waiting import HANG_S, wait_until

KEY = {"X-API-Key": "open sesame"}
LARGE = png(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
HUGE = png(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1))
MEDIUM = png(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
# uvicorn's message when it gives up requests that are still running
GAVE_UP = "timeout graceful shutdown exceeded"


@pytest.fixture(scope="module", params=[FASTAPI, BENTO], ids=lambda backend: backend.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder / "champion", patch=(256, 256))
    options = {"model": folder / "champion", "api_key": "open sesame"}
    with serving(folder, backend=request.param, **options) as server:
        yield server


@pytest.fixture(params=[FASTAPI, BENTO], ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def test_health_check_responds_during_predictions(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url) as client:
        running = [pool.submit(server.predict, HUGE, **KEY) for _ in range(2)]
        wait_until(lambda: "droneseg_queue_seconds 0.0" not in metrics(server))
        answered = 0
        while not any(future.done() for future in running):
            assert client.get("/livez").status_code == 200
            answered += 1
    assert {future.result().status_code for future in running} == {200}
    assert answered >= 5  # health checks do not wait for predictions


WORDS = {
    "broken_image": ("truncated", "corrupt", "empty"),
    "image_too_large": ("limit",),
    "unsupported_image": ("Unknown image format", "no fixed range", "scans"),
}


def test_hostile_corpus_does_not_grow_or_break_the_process(server: Server) -> None:
    before = server.memory_mb
    for hostile in corpus():
        response = server.predict(hostile.data, **KEY)
        status, code = hostile.answer
        assert response.status_code == status, hostile.name
        if status != 200:
            result = response.json()["error"]
            assert result["code"] == code, hostile.name
            assert any(word in result["message"] for word in WORDS[code]), (hostile.name, result["message"])
    assert server.memory_mb - before < 150  # the corpus has decompression bombs of 100 MB and of gigapixels
    assert server.predict(MEDIUM, **KEY).status_code == 200


def test_too_large_headers_return_431(server: Server) -> None:
    endless = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 300_000
    assert exchange(server, endless).startswith(b"HTTP/1.1 431")
    many = b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"b" * 900) for n in range(300))
    answer = exchange(server, many)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b'"code":"request_header_fields_too_large"' in answer
    just = b"GET /livez HTTP/1.1\r\n" + b"X-A: " + b"a" * 66_000 + b"\r\n\r\n"
    assert exchange(server, just).startswith(b"HTTP/1.1 431")
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_invalid_http_returns_400_in_the_shared_format(server: Server) -> None:
    for data in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"):
        answer = exchange(server, data)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request")
        assert b'{"error":{"code":"bad_request"' in answer
        assert b"x-request-id: " in answer


def test_connection_is_closed_if_a_rejected_body_continues(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = headers_of(server, "Content-Length: 1000000000000")
    sent, piece = 0, bytes(1 << 20)
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection, pytest.raises(ConnectionError):
        connection.sendall(head)
        assert b"401" in connection.recv(65536)
        while sent < 200 << 20:
            connection.sendall(piece)
            sent += len(piece)
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
        connection.sendall(head)
        while connection.recv(65536):
            pass


def test_missing_body_returns_408_and_is_logged_with_request_id(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion")
    with serving(
        tmp_path, backend=backend, model=tmp_path / "champion", timeout_seconds=1, log_format="json"
    ) as server:
        _, fields = backend.body(b"", {})
        head = headers_of(
            server, "X-Request-ID: flight-7", "Content-Length: 1000", f"Content-Type: {fields['Content-Type']}"
        )
        answer = exchange(server, head)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"slow_request"' in answer
        wait_until(lambda: "flight-7" in server.log.read_text())
    # BentoML's own log lines are not JSON
    entries = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    (entry,) = [entry for entry in entries if entry.get("request_id") == "flight-7"]
    assert (entry["path"], entry["status"], entry["severity"]) == (backend.path, 408, "INFO")


def test_shutdown_answers_requests_it_cannot_finish_with_503(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion", patch=(64, 64))
    with serving(tmp_path, backend=backend, model=tmp_path / "champion") as server:
        with ThreadPoolExecutor(12) as pool:
            running = [pool.submit(server.predict, HUGE, **KEY) for _ in range(12)]
            wait_until(lambda: images(server) >= 1)
            server.terminate()
            answers = [future.exception() or future.result().status_code for future in running]
        assert server.process.wait(HANG_S) == 0
    # connections that the server has not accepted when it ends are reset
    statuses = {answer for answer in answers if not isinstance(answer, httpx.TransportError)}
    assert statuses == {200, 503}, "with enough time all would have been answered"


def test_disconnected_clients_do_not_delay_shutdown(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion", patch=(256, 256))
    with serving(tmp_path, backend=backend, model=tmp_path / "champion") as server:
        for _ in range(4):
            disconnect(server)
        gone = f'droneseg_requests_total{{endpoint="{server.backend.path}",status="499"}}'
        wait_until(lambda: gone in metrics(server))
        wait_until(lambda: gauge(server, "droneseg_queue_seconds") == 0)
        server.terminate()
        assert server.process.wait(HANG_S) == 0
    assert GAVE_UP not in server.log.read_text()


def test_queue_full_returns_429_with_retry_after(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion", patch=(256, 256))
    with serving(tmp_path, backend=backend, model=tmp_path / "champion", queue_seconds=0.001) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = [future.result() for future in [pool.submit(server.predict, LARGE) for _ in range(8)]]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert int(answer.headers["Retry-After"]) >= 1


def test_no_path_buffers_an_unlimited_body(server: Server) -> None:
    before = server.memory_mb
    for path in ("/model_info", "/healthz", "/nowhere"):
        httpx.post(f"{server.url}{path}", content=bytes(200 << 20), headers=KEY, timeout=HANG_S)
    assert server.memory_mb - before < 100
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_missing_body_does_not_delay_shutdown(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion")
    with serving(tmp_path, backend=backend, model=tmp_path / "champion") as server:
        _, fields = backend.body(b"", {})
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            lines = ("Content-Length: 1000", f"Content-Type: {fields['Content-Type']}", "Expect: 100-continue")
            connection.sendall(headers_of(server, *lines))
            assert connection.recv(65536).startswith(b"HTTP/1.1 100"), "sent when the service reads the body"
            server.terminate()
            assert server.process.wait(HANG_S) == 0
    assert GAVE_UP in server.log.read_text()


def test_connection_is_reusable_after_early_rejection(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            body, fields = server.backend.body(LARGE, {})
            refused = client.post(server.backend.path, content=body, headers=fields)
            assert refused.status_code == 401
            assert client.get("/livez").status_code == 200


def test_disconnected_client_is_removed_from_the_queue(server: Server) -> None:
    before = images(server)
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(server.predict, LARGE, **KEY) for _ in range(8)]
        wait_until(lambda: gauge(server, "droneseg_queue_images") >= 4)
        for _ in range(6):
            disconnect(server)
        assert all(future.result().status_code == 200 for future in held)
    gone = f'droneseg_requests_total{{endpoint="{server.backend.path}",status="499"}}'
    wait_until(lambda: gone in metrics(server))
    assert images(server) - before < 8 + 6


def test_sigterm_finishes_admitted_requests_and_writes_records(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion", patch=(256, 256))
    with serving(tmp_path, backend=backend, model=tmp_path / "champion") as server:
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(server.predict, MEDIUM, **KEY) for _ in range(8)]
            # the other two are running or have not been admitted
            wait_until(lambda: images(server) + gauge(server, "droneseg_queue_images") >= 6)
            server.terminate()
            statuses = [future.result().status_code for future in running]
        assert server.process.wait(HANG_S) == 0
    assert statuses.count(200) >= 6
    assert set(statuses) <= {200, 503}, "late requests get 503"
    lines = [line for file in (tmp_path / "records").rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == statuses.count(200)


def test_misspelt_setting_logs_a_warning(tmp_path: Path, backend: Backend) -> None:
    make_bundle(tmp_path / "champion", patch=(64, 64))
    with serving(tmp_path, backend=backend, model=tmp_path / "champion", queue_second=60) as server:
        log = server.log.read_text()
    assert log.count("DRONESEG_QUEUE_SECOND is not a setting") == 1
    assert "DRONESEG_QUEUE_SECONDS" in log


@pytest.mark.parametrize(("option", "expected"), [(None, GRACEFUL_S), (3, 3)])
def test_bentoml_shutdown_option_takes_precedence(option: int | None, expected: int) -> None:
    server = uvicorn.Server(uvicorn.Config("unused:app", timeout_graceful_shutdown=option))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGTERM, server.handle_exit)  # as uvicorn does before it starts the application
        configure_bentoml_server(PredictionService(Settings(_env_file=None), BrightIsLanding, ServiceMetrics()))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert server.config.timeout_graceful_shutdown == expected
    assert server.config.http_protocol_class is LimitedHttpProtocol


def test_missing_uvicorn_server_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    configure_bentoml_server(PredictionService(Settings(_env_file=None), BrightIsLanding, ServiceMetrics()))
    assert "uvicorn server not found" in caplog.text


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics").text


def images(server: Server) -> float:
    return gauge(server, "droneseg_images_total")


def gauge(server: Server, name: str) -> float:
    (line,) = [line for line in metrics(server).splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def headers_of(server: Server, *fields: str) -> bytes:
    """Return the headers of a prediction request."""
    return "\r\n".join([f"POST {server.backend.path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def exchange(server: Server, data: bytes) -> bytes:
    """Send bytes and return the response."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and answer.endswith(b"}"):
                    break
        except ConnectionError:
            pass  # the server closed the connection early
        return answer


def disconnect(server: Server) -> None:
    """Send a prediction request and disconnect before the response."""
    body, fields = server.backend.body(LARGE, {})
    lines = ("X-API-Key: open sesame", f"Content-Type: {fields['Content-Type']}", f"Content-Length: {len(body)}")
    head = headers_of(server, *lines)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body)
