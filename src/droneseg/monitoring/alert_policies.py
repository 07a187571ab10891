"""Convert Prometheus alert rules to alert policies of Google Cloud Monitoring.

`python -m droneseg.monitoring.alert_policies RULES FOLDER` writes one JSON file per rule, for
`gcloud alpha monitoring policies create --policy-from-file=FILE`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from droneseg.core.files import write_text

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EVALUATION_INTERVAL_S = 60
_LABEL = re.compile(r"\{\{\s*\$labels\.(\w+)\s*\}\}")
_VALUE = re.compile(r" \([^()]*\{\{\s*\$value[^}]*\}\}\)")


def policies_of(rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return an alert policy for each alert rule, by the name of the rule.

    Args:
        rules: Content of a Prometheus rule file.
    """
    return {
        rule["alert"]: _policy(group["name"], rule)
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def _policy(group: str, rule: dict[str, Any]) -> dict[str, Any]:
    annotations = rule["annotations"]
    return {
        "displayName": rule["alert"],
        "documentation": {
            "content": f"{_translate_summary(annotations['summary'])}\n\nWhat to do: {annotations['runbook_url']}",
            "mimeType": "text/markdown",
        },
        "severity": rule["labels"]["severity"].upper(),
        "userLabels": {"droneseg": "alarm"},
        "combiner": "OR",
        "conditions": [
            {
                "displayName": rule["alert"],
                "conditionPrometheusQueryLanguage": {
                    "query": " ".join(rule["expr"].split()),
                    "duration": f"{_seconds(rule['for'])}s",
                    "evaluationInterval": f"{_EVALUATION_INTERVAL_S}s",
                    "alertRule": rule["alert"],
                    "ruleGroup": group,
                },
            }
        ],
    }


def _translate_summary(summary: str) -> str:
    """Return a summary in Cloud Monitoring's template language, which supports labels but not the query's value."""
    return _VALUE.sub("", _LABEL.sub(r"${metric_or_resource.label.\1}", summary))


def _seconds(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1]]


def main() -> None:
    """Write the policies of a rule file to a folder, one JSON file each."""
    rules, folder = (Path(argument) for argument in sys.argv[1:])
    for name, policy in policies_of(yaml.safe_load(rules.read_text(encoding="utf-8"))).items():
        write_text(folder / f"{name}.json", json.dumps(policy, indent=2) + "\n")


if __name__ == "__main__":
    main()
