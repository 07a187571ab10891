"""Test of the load test with a real service."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.bundles import make_bundle
from support.server import serving
from support.waiting import HANG_S

ROOT = Path(__file__).parents[2]
LOCUSTFILE = Path(__file__).parent / "locustfile.py"


@pytest.mark.parametrize(("allowed_s", "code"), [(60.0, 0), (0.001, 1)])
def test_the_load_test_writes_reports_and_fails_above_its_thresholds(
    tmp_path: Path, allowed_s: float, code: int
) -> None:
    load = yaml.safe_load((ROOT / "configs" / "load.yaml").read_text(encoding="utf-8"))
    load |= {
        "users": 3,
        "spawn_rate": 3,
        "minutes": 0.1,
        "pause_s": [0.05, 0.2],
        "sizes": [[96, 80], [64, 64]],
        "batch": 2,
    }
    load["shares"] = {"single": 1, "batch": 1, "health": 1, "bad": 1}
    load["thresholds"] |= {"single_p95_s": allowed_s, "health_p95_s": 60.0}
    (tmp_path / "load.yaml").write_text(yaml.safe_dump(load))
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    make_bundle(tmp_path / "champion", patch=(64, 64))
    with serving(tmp_path, model=tmp_path / "champion") as server:
        done = subprocess.run(
            [*command, "--host", server.url, "--csv", str(tmp_path / "run"), "--html", str(tmp_path / "run.html")],
            env=os.environ | {"LOAD_CONFIG": str(tmp_path / "load.yaml")},
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
    assert done.returncode == code, done.stderr
    with (tmp_path / "run_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert {"single", "batch", "health", "bad input"} <= set(rows)
    assert rows["Aggregated"]["Failure Count"] == "0"
    assert int(rows["single"]["Request Count"]) > 0
    assert "<html" in (tmp_path / "run.html").read_text()
    assert ("the limit is 0.001 s" in done.stderr) == (code == 1)
