"""Drift reports of a running service: result, metrics, errors, concurrency, shutdown."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from droneseg.core.images import encode_png
from droneseg.core.settings import Settings
from droneseg.model.bundle import Bundle
from droneseg.monitoring.drift_report import DriftResult
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.background import DriftReporter
from support.drift import darker, keep, make_bundle_with_reference, photographs, records_like
from support.programs import alive
from support.server import Server, serving
from support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.usefixtures("normal_priority")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle_with_reference(tmp_path_factory.mktemp("model") / "champion")


@pytest.fixture
def server(bundle: Bundle, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, model=bundle.folder) as running:
        yield running


def drift(server: Server, **query: object) -> httpx.Response:
    return httpx.get(f"{server.url}/drift", params={key: str(value) for key, value in query.items()}, timeout=HANG_S)


def children(server: Server) -> list[int]:
    files = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    return [int(pid) for file in files for pid in file.read_text().split()]


def gauge(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_drift_report_includes_latest_predictions_and_sets_gauges(server: Server, tmp_path: Path) -> None:
    assert str(gauge(server, "droneseg_drift")) == "nan", "no report exists yet"
    for image in photographs(22, seed=5):
        server.predict(encode_png(image)).raise_for_status()
    answer = drift(server).raise_for_status().json()
    assert set(answer) == {"url", "message", "drifted"}
    assert answer["drifted"] is False
    assert "the last 22 images are similar to" in answer["message"]
    assert gauge(server, "droneseg_drift") == 0
    for image in photographs(22, seed=6):
        server.predict(encode_png(image // 4)).raise_for_status()
    answer = drift(server, n=22).raise_for_status().json()
    assert answer["drifted"] is True
    assert "The images are darker" in answer["message"]
    assert Path(answer["url"].removeprefix("file://")).is_relative_to(tmp_path / "reports")
    assert gauge(server, "droneseg_drift") == 1
    assert gauge(server, "droneseg_drift_share") > 0
    assert gauge(server, 'droneseg_drift_reports_total{result="done"}') == 2


def test_pending_records_are_flushed_before_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    result = DriftResult(url="file:///x", message="", drifted=False, share=0.0, records=20)
    monkeypatch.setattr(DriftReporter, "_run", lambda _self, number, _id: steps.append(f"report on {number}") or result)

    def flush(timeout_s: float) -> None:
        steps.append(f"flush within {timeout_s:.0f} s")

    reports = DriftReporter(Settings(), ServiceMetrics(), flush=flush, model_id=lambda: "abc")
    assert reports.request_report(30).result(HANG_S) == result
    assert steps == ["flush within 3 s", "report on 30"]


def test_concurrent_requests_share_one_report(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "records", records_like(bundle, 40))
    together = threading.Barrier(4)

    def request_report(number: int) -> str:
        together.wait()
        return str(drift(server, n=number).raise_for_status().json()["url"])

    with ThreadPoolExecutor(4) as pool:
        urls = set(pool.map(request_report, (40, 30, 20, 25)))
    assert len(urls) == 1
    assert len(list((tmp_path / "reports").rglob("drift.html"))) == 1
    assert drift(server).raise_for_status().json()["url"] not in urls, "a later request gets a new report"


def test_predictions_continue_during_a_report(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "records", records_like(bundle, 40))
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(drift, server)
        predicted = 0
        while not report.done():
            server.predict(encode_png(photographs(1)[0])).raise_for_status()
            predicted += 1
    report.result().raise_for_status()
    assert predicted > 5


def test_missing_data_returns_its_documented_error(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    few = drift(server)
    assert few.status_code == 409
    assert few.json()["error"]["code"] == "no_verdict"
    assert f"holds 0 records of model {bundle.model_id}" in few.json()["error"]["message"]
    for wrong in ("19", "x", "-1", "99999999"):
        assert drift(server, n=wrong).status_code == 422
    (tmp_path / "reports").write_text("in the way")
    keep(tmp_path / "records", records_like(bundle, 40))
    unwritable = drift(server)
    assert unwritable.status_code == 503
    assert "Cannot write the report to reports" in unwritable.json()["error"]["message"]
    assert gauge(server, 'droneseg_drift_reports_total{result="failed"}') == 2
    assert str(gauge(server, "droneseg_drift")) == "nan"


def test_unreachable_records_url_returns_503(bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, model=bundle.folder, records_url="http://127.0.0.1:9/records") as server:
        away = drift(server)
    assert away.status_code == 503
    assert away.json()["error"]["code"] == "records_unavailable"


def test_killed_report_process_returns_503(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "records", records_like(bundle, 40))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(drift, server)
        wait_until(lambda: children(server))
        for pid in children(server):
            os.kill(pid, signal.SIGKILL)
        killed = asked.result()
    assert killed.status_code == 503
    assert "killed by signal 9, possibly because memory ran out" in killed.json()["error"]["message"]
    assert drift(server).status_code == 200
    assert gauge(server, 'droneseg_faults_total{code="internal_error"}') == 0


def test_replaced_model_folder_returns_409(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "records", records_like(bundle, 40))
    manifest = bundle.folder / "manifest.json"
    before = manifest.read_bytes()
    try:
        manifest.write_bytes(before + b"\n")
        response = drift(server)
    finally:
        manifest.write_bytes(before)
    assert response.status_code == 409
    assert f"The service runs model {bundle.model_id}" in response.json()["error"]["message"]


def test_drift_requires_the_api_key(bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, model=bundle.folder, api_key="a-long-enough-key") as server:
        assert drift(server).status_code == 401


def test_shutdown_kills_the_report_process(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "records", records_like(bundle, 40, changed=darker))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(drift, server)
        assert alive(server.process.pid)
        wait_until(lambda: children(server))
        started = children(server)
        server.terminate()
        assert server.process.wait(HANG_S) == 0
        assert not list((tmp_path / "reports").rglob("drift.html")), "the service waited for the report"
        assert isinstance(asked.exception() or asked.result(), httpx.HTTPError | httpx.Response)
    wait_until(lambda: not any(alive(pid) for pid in started))


def test_samples_are_written_if_enabled(bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, model=bundle.folder, sample_share=1, record_names=True) as server:
        server.predict(encode_png(photographs(1)[0])).raise_for_status()
    (line,) = [json.loads(file.read_text()) for file in tmp_path.glob("records/2*/*/*/*.jsonl")]
    assert line["source"] == "a.png"
    assert (tmp_path / "records" / line["sample"]).is_file()
