"""End to end: drifted images at the service lead to a call of Alertmanager's webhook."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
import yaml
from playwright.sync_api import sync_playwright

from droneseg.core.images import encode_png
from support.buckets import bucket
from support.drift import make_bundle_with_reference, photographs
from support.programs import require_program
from support.server import free_port, serving
from support.waiting import HANG_S, wait_until

CONFIGS = Path(__file__).parents[1] / "configs/alarms"


class _Hook(BaseHTTPRequestHandler):
    """Stores the notifications of Alertmanager."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.notifications.append((self.path, json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def webhook() -> Iterator[tuple[int, list[tuple[str, dict[str, Any]]]]]:
    """Run a webhook; yield its port and the list of the notifications it receives."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    server.notifications = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, server.notifications  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def running(folder: Path, command: list[str]) -> Iterator[None]:
    """Run a program while the block runs."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(HANG_S)


def configure(folder: Path, *, service: str, alertmanager: int, hook: int) -> None:
    """Write our example configurations with the addresses of this test and shorter intervals."""
    prometheus, alerts = (
        yaml.safe_load((CONFIGS / name).read_text()) for name in ("prometheus.yaml", "alertmanager.yaml")
    )
    prometheus["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    prometheus["scrape_configs"] = prometheus["scrape_configs"][:1]
    prometheus["scrape_configs"][0]["static_configs"][0]["targets"] = [service]
    alerts["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    for receiver in alerts["receivers"]:
        (entry,) = receiver["webhook_configs"]
        entry["url"] = entry["url"].replace("9099", str(hook))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(prometheus))
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(alerts))
    (folder / "rules.yaml").write_text((CONFIGS / "rules.yaml").read_text())


@pytest.mark.usefixtures("normal_priority")
def test_drifted_images_trigger_the_webhook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prometheus = require_program("prometheus")
    alertmanager = require_program("prometheus-alertmanager", "alertmanager")
    chromium = require_program("chromium", "google-chrome")
    bundle = make_bundle_with_reference(tmp_path / "champion")
    with bucket("flights", monkeypatch) as flights, webhook() as (hook, notifications):
        urls = {"records_url": f"{flights.url}/records", "reports_url": f"{flights.url}/reports"}
        with serving(tmp_path, model=bundle.folder, **urls) as server:
            manager, port = free_port(), free_port()
            configure(tmp_path, service=server.url.removeprefix("http://"), alertmanager=manager, hook=hook)
            listen = [f"--web.listen-address=127.0.0.1:{manager}", "--cluster.listen-address="]
            with (
                running(tmp_path, [alertmanager, "--config.file=alertmanager.yaml", "--storage.path=alerts", *listen]),
                running(tmp_path, [prometheus, "--config.file=prometheus.yaml", "--storage.tsdb.path=tsdb",
                                   f"--web.listen-address=127.0.0.1:{port}"]),
            ):  # fmt: skip
                for image in photographs(25, seed=5):
                    server.predict(encode_png(image // 4)).raise_for_status()
                report = httpx.get(f"{server.url}/drift", timeout=HANG_S).raise_for_status().json()
                assert report["drifted"]
                assert report["url"].startswith(f"{flights.url}/reports/")
                wait_until(lambda: notifications)
        path, notification = notifications[0]
        assert path == "/notify"
        (alert,) = notification["alerts"]
        assert alert["labels"]["alertname"] == "DronesegDrift"
        assert alert["status"] == "firing"
        page = fsspec.filesystem("gs", skip_instance_cache=True).cat(report["url"])
    check_page(chromium, page, Path(os.environ.get("DRONESEG_SCREENSHOTS", tmp_path)))


def check_page(chromium: str, page: bytes, folder: Path) -> None:
    """Open a report in a browser without network access."""
    file = folder / "drift.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page)
    failures: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=1000 * HANG_S)
        tab = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
        tab.set_default_timeout(1000 * HANG_S)
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on("requestfailed", lambda request: failures.append(request.url))
        tab.goto(file.as_uri())
        assert tab.get_by_role("heading", level=1).inner_text().startswith("Drift report for model")
        assert "The images are darker" in tab.locator(".verdict").inner_text()
        tab.frame_locator("iframe").get_by_text("Dataset Drift is detected").first.wait_for()
        assert all(tab.evaluate("[...document.images].map(image => image.naturalWidth > 100)"))
        tab.screenshot(path=folder / "drift.png", full_page=True)
        browser.close()
    assert failures == []
