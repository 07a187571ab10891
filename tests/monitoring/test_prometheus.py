"""Labels of the metrics; a Prometheus server scrapes the service and answers queries."""

import re
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, SegmentationClass
from droneseg.core.prediction import Prediction
from droneseg.monitoring.prometheus import ServiceMetrics
from support.bundles import make_bundle
from support.images import png
from support.programs import require_program
from support.server import free_port, serving
from support.waiting import HANG_S


def test_prometheus_scrapes_the_service_and_answers_queries(tmp_path: Path) -> None:
    program = require_program("prometheus")
    make_bundle(tmp_path / "champion")
    with serving(tmp_path, model=tmp_path / "champion") as server:
        image = png(np.full((20, 30, 3), 200, np.uint8))
        for _ in range(3):
            httpx.post(f"{server.url}/predict", files={"data": ("a.png", image)}).raise_for_status()
        target = server.url.removeprefix("http://")
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: droneseg, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        port = free_port()
        command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            assert ask(port, 'droneseg_requests_total{endpoint="/predict",status="200"}') == 3
            assert ask(port, 'droneseg_stage_seconds_count{stage="network"}') == 3
            assert ask(port, "histogram_quantile(0.5, rate(droneseg_request_seconds_bucket[1m])) >= 0") >= 0
            assert ask(port, "droneseg_ready") == 1
        finally:
            process.terminate()
            process.wait(HANG_S)


def ask(port: int, query: str) -> float:
    """Return the first value of a query, as soon as there is one."""
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}).json()
            if answer["data"]["result"]:
                return float(answer["data"]["result"][0]["value"][1])
        except (httpx.TransportError, ValueError, KeyError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"Prometheus has no result for {query}")


def test_labels_of_classes_are_those_of_the_active_model() -> None:
    own = ClassTable(tuple(SegmentationClass(i, name, (i, 0, 0)) for i, name in enumerate(("void", 'a "roof"'))))
    metrics = ServiceMetrics()

    def count(classes: ClassTable) -> set[str]:
        mask = np.ones((2, 2), np.uint8)
        shares = dict.fromkeys(classes.names, 0.5)
        metrics.count_prediction(Prediction(mask, classes, shares, 0.9, {}, "aaa"))
        return set(re.findall(r'class_name="(.*?)",le', metrics.render("")[0].decode()))

    metrics.set_model("aaa", "fast", DEFAULT_CLASSES.names)
    assert count(DEFAULT_CLASSES) == set(DEFAULT_CLASSES.names)
    metrics.set_model("bbb", "fast", own.names)
    assert count(own) == {"void", r"a \"roof\""}
    # a prediction of the previous model that ends after the reload
    assert count(DEFAULT_CLASSES) == {"void", r"a \"roof\""}
