"""The real process: real model, real HTTP, real signals."""

import json
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from support.bundles import make_bundle
from support.hostile import corpus
from support.pictures import png
from support.programs import require_program
from support.server import Server, serving
from support.workspace import COMMAND

KEY = {"X-API-Key": "open sesame"}
LARGE = png(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
HUGE = png(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1))
MEDIUM = png(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))  # eight take well below 10 s


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder / "champion", patch=(256, 256))
    with serving(folder, model=folder / "champion", api_key="open sesame", queue_seconds=60) as made:
        yield made


def post(server: Server, data: bytes = LARGE, **options: object) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", files={"data": ("a.png", data)}, headers=KEY, timeout=60, **options)


def predicted_mask(server: Server, folder: Path) -> bytes:
    """Return the mask file that `droneseg predict` writes."""
    (folder / "a.png").write_bytes(LARGE)
    model = str(server.log.parent / "champion")
    command = [*COMMAND, "predict", "a.png", "--out", "masks", "--model", model]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "masks" / "a.png").read_bytes()


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_the_curl_lines_of_the_documentation_work_as_written(server: Server, tmp_path: Path, page: str) -> None:
    curl = require_program("curl")
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    lines = [line.partition("  #")[0] for line in text.splitlines() if line.startswith("curl ")]
    assert lines
    for name in ("PHOTO.png", "A.jpg", "B.jpg"):
        (tmp_path / name).write_bytes(LARGE)
    for line in lines:
        # the port and the key are this test's
        line = line.replace("http://127.0.0.1:8000", server.url)
        words = [curl, "--fail", "--silent", "--header", f"X-API-Key: {KEY['X-API-Key']}", *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        if "-o" in words:
            assert (tmp_path / "mask.png").read_bytes() == predicted_mask(server, tmp_path)
        else:
            assert b"class_fractions" in done.stdout


def test_health_is_answered_while_predictions_run(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url) as client:
        running = [pool.submit(post, server, HUGE) for _ in range(2)]
        until(lambda: "droneseg_queue_seconds 0.0" not in metrics(server))
        answered = 0
        while not any(future.done() for future in running):
            assert client.get("/livez").status_code == 200
            answered += 1
    assert {future.result().status_code for future in running} == {200}
    assert answered >= 5  # not one by one with predictions, of which none had ended


WORDS = {
    "broken_image": ("truncated", "corrupt", "empty"),
    "image_too_large": ("limit",),
    "unsupported_image": ("known format", "no fixed range", "scans"),
}


def test_the_whole_corpus_leaves_the_process_small_and_healthy(server: Server) -> None:
    before = memory_mb(server)
    for hostile in corpus():
        response = post(server, hostile.data)
        status, code = hostile.answer
        assert response.status_code == status, hostile.name
        if status != 200:
            found = response.json()["error"]
            assert found["code"] == code, hostile.name
            assert any(word in found["message"] for word in WORDS[code]), (hostile.name, found["message"])
    assert memory_mb(server) - before < 150  # bombs of 100 MB and of gigapixels are among them
    assert post(server, MEDIUM).status_code == 200


def test_heads_without_an_end_are_refused(server: Server) -> None:
    endless = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 300_000
    assert talk(server, endless).startswith(b"HTTP/1.1 431")
    many = b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"b" * 900) for n in range(300))
    answer = talk(server, many)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b'"code":"request_header_fields_too_large"' in answer
    just = b"GET /livez HTTP/1.1\r\n" + b"X-A: " + b"a" * 66_000 + b"\r\n\r\n"
    assert talk(server, just).startswith(b"HTTP/1.1 431")
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_what_is_no_http_is_told_so_in_the_one_body(server: Server) -> None:
    for data in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"):
        answer = talk(server, data)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request")
        assert b'{"error":{"code":"bad_request"' in answer
        assert b"x-request-id: " in answer


def test_a_refused_body_is_not_read_on_and_on(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
    sent, piece, end = 0, bytes(1 << 20), time.monotonic() + 60
    with socket.create_connection((host, int(port)), timeout=30) as connection, pytest.raises(ConnectionError):
        connection.sendall(head)
        assert b"401" in connection.recv(65536)
        while time.monotonic() < end:
            connection.sendall(piece)
            sent += len(piece)
    assert sent < 200 << 20
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head)
        begin = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - begin < 15


def test_a_body_that_does_not_come_is_given_up_and_the_log_tells_by_id(tmp_path: Path) -> None:
    make_bundle(tmp_path / "champion")
    with serving(tmp_path, model=tmp_path / "champion", timeout_seconds=1, log_format="json") as server:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: flight-7\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        answer = talk(server, head)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"slow_request"' in answer
        until(lambda: "flight-7" in server.log.read_text())
    entries = [json.loads(line) for line in server.log.read_text().splitlines()]
    (entry,) = [entry for entry in entries if entry.get("request_id") == "flight-7"]
    assert (entry["path"], entry["status"], entry["severity"]) == ("/predict", 408, "INFO")


def test_what_ten_seconds_do_not_suffice_for_is_answered_all_the_same(tmp_path: Path) -> None:
    make_bundle(tmp_path / "champion", patch=(64, 64))
    with serving(tmp_path, model=tmp_path / "champion", queue_seconds=600) as server:
        with ThreadPoolExecutor(6) as pool:
            running = [pool.submit(post, server, HUGE) for _ in range(6)]
            until(lambda: 'droneseg_requests_total{endpoint="/predict"' in metrics(server))
            begin = time.monotonic()
            server.terminate()
            statuses = [future.result().status_code for future in running]
        assert server.process.wait(20) == 0
        assert time.monotonic() - begin < 12  # Cloud Run kills after 10; a test allows for a busy machine
    assert set(statuses) <= {200, 503}


def test_an_early_refusal_leaves_the_connection_usable(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            refused = client.post("/predict", files={"data": ("a.png", LARGE)})
            assert refused.status_code == 401
            assert client.get("/livez").status_code == 200


def test_a_client_that_hangs_up_is_taken_out_of_the_queue(server: Server) -> None:
    before = images(server)
    with ThreadPoolExecutor(4) as pool:
        held = [pool.submit(post, server) for _ in range(4)]
        time.sleep(0.05)
        for _ in range(6):
            hang_up(server)
        assert all(future.result().status_code == 200 for future in held)
    end = time.monotonic() + 20
    while 'status="499"' not in metrics(server) and time.monotonic() < end:
        time.sleep(0.05)
    assert 'droneseg_requests_total{endpoint="/predict",status="499"}' in metrics(server)
    assert images(server) - before < 4 + 6


def test_a_reload_under_load_loses_no_request(server: Server) -> None:
    champion = server.log.parent / "champion"
    statuses: list[int] = []
    ids: set[str] = set()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = post(server)
            statuses.append(answer.status_code)
            ids.add(answer.json()["model_id"])

    with ThreadPoolExecutor(3) as pool:
        loading = [pool.submit(load) for _ in range(3)]
        try:
            until(lambda: len(statuses) > 3)
            champion.rename(champion.with_name("old"))
            make_bundle(champion, patch=(256, 256))
            reload = httpx.post(f"{server.url}/admin/reload", headers=KEY, timeout=60)
            assert reload.json()["changed"] is True, reload.text
            until(lambda: reload.json()["model_id"] in ids)
            network = champion / "model.onnx"
            network.write_bytes(network.read_bytes()[:-1] + b"!")
            refused = httpx.post(f"{server.url}/admin/reload", headers=KEY, timeout=60)
            assert refused.status_code == 409
            assert "model.onnx" in refused.json()["error"]["message"]
            seen = len(statuses)
            until(lambda: len(statuses) > seen + 3)
        finally:
            stop.set()
        for future in loading:
            future.result()
    assert set(statuses) == {200}
    assert len(ids) == 2


def test_sigterm_answers_what_was_admitted_and_writes_the_records(tmp_path: Path) -> None:
    make_bundle(tmp_path / "champion", patch=(256, 256))
    with serving(tmp_path, model=tmp_path / "champion", queue_seconds=60) as server:
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(post, server, MEDIUM) for _ in range(8)]
            until(lambda: 'droneseg_requests_total{endpoint="/predict"' in metrics(server))
            server.terminate()
            assert [future.result().status_code for future in running] == [200] * 8
        assert server.process.wait(20) == 0
    lines = [line for file in (tmp_path / "records").rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == 8


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics").text


def memory_mb(server: Server) -> float:
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def images(server: Server) -> float:
    (line,) = [line for line in metrics(server).splitlines() if line.startswith("droneseg_images_total ")]
    return float(line.split()[1])


def until(true: object) -> None:
    end = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def talk(server: Server, data: bytes) -> bytes:
    """Send bytes, and return what is answered until the connection closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and answer.endswith(b"}"):
                    break
        except ConnectionError:
            pass  # closed before all of it was sent
        return answer


def hang_up(server: Server) -> None:
    """Send a whole request and close the connection without waiting for the answer."""
    body = b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n' + LARGE + b"\r\n--x--\r\n"
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: open sesame\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
