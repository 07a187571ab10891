"""GitHub workflows: schema, security audit, pinned actions, existing commands."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from invoke.loader import FilesystemLoader

from support.workspace import Workspace

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
BIN = Path(sys.executable).parent


def commands(workflow: Path) -> list[list[str]]:
    """Return the commands of all steps as lists of words."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    scripts = [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]
    return [shlex.split(part) for script in scripts for part in re.split(r"&&|\n", script) if part.strip()]


def test_workflows_exist() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_matches_the_schema_and_passes_zizmor(workflow: Path) -> None:
    for check in (["check-jsonschema", "--builtin-schema", "vendor.github-workflows"], ["zizmor", "--offline"]):
        done = subprocess.run([BIN / check[0], *check[1:], workflow], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    used = re.findall(r"uses: (\S+)(.*)", workflow.read_text())
    assert used
    for action, comment in used:
        if action.startswith("./"):  # of the same commit
            assert (ROOT / action).is_file()
            continue
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.match(r" # v\d", comment), action


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_commands_and_options_exist(workflow: Path, tmp_path: Path) -> None:
    checked = 0
    for words in commands(workflow):
        if words[:3] == ["uv", "run", "droneseg"]:
            names = [word for word in words[3:] if re.fullmatch(r"[a-z]+", word)][
                : 2 if words[3] in ("models", "data") else 1
            ]
            help_text = Workspace(tmp_path).run(*names, "--help").stdout
            options = {word for word in words if word.startswith("--")}
            assert {option for option in options if option not in help_text} == set(), words
            checked += 1
        elif words[:3] == ["uv", "run", "invoke"]:
            tasks = FilesystemLoader(start=str(ROOT)).load("tasks")[0]
            assert hasattr(tasks, words[3].replace("-", "_")), words
            checked += 1
        elif words[:4] == ["uv", "run", "python", "-m"]:
            assert find_spec(words[4]), words
            checked += 1
    assert checked


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_that_change_the_cloud_use_a_protected_environment(workflow: Path) -> None:
    for name, job in yaml.safe_load(workflow.read_text())["jobs"].items():
        accounts = [
            step["with"]["service_account"]
            for step in job.get("steps", [])
            if "service_account" in step.get("with", {})
        ]
        changing = [account for account in accounts if "READING" not in account]
        assert not changing or "environment" in job, name
