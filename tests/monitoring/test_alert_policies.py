"""The alarms: rules that ring when they should, policies made of them, and a dashboard of metrics that exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from droneseg.monitoring.alert_policies import policies_of
from droneseg.monitoring.prometheus import ServiceMetrics
from support.programs import require_program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/alarms"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
ALARMS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
FOREIGN = {"up", "process_start_time_seconds"}  # Prometheus' own, and of its client


def queries() -> dict[str, str]:
    """Return all queries by where they stand."""
    board = json.loads((FOLDER / "grafana.json").read_text())
    drawn = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    return drawn | {name: rule["expr"] for name, rule in ALARMS.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("promtool", "check", "rules", "rules.yaml"),
        ("promtool", "check", "config", "prometheus.yaml"),
        ("promtool", "test", "rules", "rules.test.yaml"),
        ("amtool", "check-config", "alertmanager.yaml"),
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_prometheus_and_alertmanager_take_the_files(arguments: tuple[str, ...]) -> None:
    program = require_program(arguments[0])
    done = subprocess.run([program, *arguments[1:]], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alarm_has_a_test_that_rings_and_one_that_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "rules.test.yaml").read_text())["tests"]
    rings = {name: [] for name in ALARMS}
    for test in tests:
        for case in test["alert_rule_test"]:
            rings[case["alertname"]].append(bool(case.get("exp_alerts")))
    assert {name: set(found) for name, found in rings.items()} == {name: {True, False} for name in ALARMS}


def test_alarms_and_dashboard_ask_for_metrics_that_exist() -> None:
    shown, _ = ServiceMetrics().render("")
    exist = set(re.findall(rb"^# TYPE (\w+) ", shown, re.M)) | set(re.findall(rb"^(\w+)[ {]", shown, re.M))
    known = {name.decode() for name in exist}
    for base in list(known):
        known |= {f"{base}_bucket", f"{base}_sum", f"{base}_count", f"{base}_total"}
    for where, query in queries().items():
        used = set(re.findall(r"\b(droneseg_\w+|process_\w+|up)\b", query)) - FOREIGN
        assert used <= known, (where, used - known)


def test_labels_that_are_asked_for_exist() -> None:
    metrics = ServiceMetrics()
    metrics.count_request("/predict", 200, 0.1)
    metrics.count_fault("internal_error")
    metrics.count_bad_input("broken_image")
    metrics.show_model("abc", "fast")
    shown = metrics.render("")[0].decode()
    for where, query in queries().items():
        for metric, labels in re.findall(r"\b(droneseg_\w+?)(?:\{([^}]*)\})", query):
            for label in re.findall(r"(\w+)(?:=~|!=|=)", labels):
                if label not in ("job", "instance", "le", "alertname", "alertstate", "class_name"):
                    assert re.search(rf"^{metric}\w*\{{[^}}]*\b{label}=", shown, re.M), (where, metric, label)


def test_the_policies_for_google_are_made_of_the_rules() -> None:
    kept = {file.stem: json.loads(file.read_text()) for file in (FOLDER / "google").glob("*.json")}
    assert kept == policies_of(RULES), "run `invoke alarm-policies`"
    assert {name: policy["severity"].lower() for name, policy in kept.items()} == {
        name: rule["labels"]["severity"] for name, rule in ALARMS.items()
    }
    assert "{{" not in json.dumps(kept)


def test_each_alarm_has_its_chapter_on_what_to_do() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    chapters = set(re.findall(r"^### (\w+)", text, re.M))
    assert chapters >= set(ALARMS)
    for name, rule in ALARMS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
