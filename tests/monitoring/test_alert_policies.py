"""Alert rules, the policies generated from them and the dashboard use metrics that exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.monitoring.alert_policies import policies_of
from droneseg.monitoring.prometheus import ServiceMetrics
from support.programs import require_program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/alarms"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
ALARMS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
FOREIGN = {"up", "process_start_time_seconds"}  # Prometheus' own, and of its client


def queries() -> dict[str, str]:
    """Return the queries of the dashboard and of the rules, by title or alert name."""
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
def test_prometheus_and_alertmanager_accept_the_files(arguments: tuple[str, ...]) -> None:
    program = require_program(arguments[0])
    done = subprocess.run([program, *arguments[1:]], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_that_fires_and_one_that_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "rules.test.yaml").read_text())["tests"]
    fires = {name: [] for name in ALARMS}
    for test in tests:
        for case in test["alert_rule_test"]:
            fires[case["alertname"]].append(bool(case.get("exp_alerts")))
    assert {name: set(outcomes) for name, outcomes in fires.items()} == {name: {True, False} for name in ALARMS}


def test_rules_and_dashboard_query_existing_metrics() -> None:
    shown, _ = ServiceMetrics().render("")
    exist = set(re.findall(rb"^# TYPE (\w+) ", shown, re.M)) | set(re.findall(rb"^(\w+)[ {]", shown, re.M))
    known = {name.decode() for name in exist}
    for base in list(known):
        known |= {f"{base}_bucket", f"{base}_sum", f"{base}_count", f"{base}_total"}
    for where, query in queries().items():
        used = set(re.findall(r"\b(droneseg_\w+|process_\w+|up)\b", query)) - FOREIGN
        assert used <= known, (where, used - known)


def test_rules_and_dashboard_query_existing_labels() -> None:
    metrics = ServiceMetrics()
    metrics.count_request("/predict", 200, 0.1)
    metrics.count_fault("internal_error")
    metrics.count_bad_input("broken_image")
    metrics.set_model("abc", "fast", DEFAULT_CLASSES.names)
    shown = metrics.render("")[0].decode()
    for where, query in queries().items():
        for metric, labels in re.findall(r"\b(droneseg_\w+?)(?:\{([^}]*)\})", query):
            for label in re.findall(r"(\w+)(?:=~|!=|=)", labels):
                if label not in ("job", "instance", "le", "alertname", "alertstate", "class_name"):
                    assert re.search(rf"^{metric}\w*\{{[^}}]*\b{label}=", shown, re.M), (where, metric, label)


def test_google_policies_match_the_rules() -> None:
    kept = {file.stem: json.loads(file.read_text()) for file in (FOLDER / "google").glob("*.json")}
    assert kept == policies_of(RULES), "run `invoke alarm-policies`"
    assert {name: policy["severity"].lower() for name, policy in kept.items()} == {
        name: rule["labels"]["severity"] for name, rule in ALARMS.items()
    }
    assert "{{" not in json.dumps(kept)


def test_every_alert_has_a_runbook_section() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    chapters = set(re.findall(r"^### (\w+)", text, re.M))
    assert chapters >= set(ALARMS)
    for name, rule in ALARMS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
