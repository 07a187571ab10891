"""DVC pipeline: outputs, reruns after changes, metrics and remotes."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.forking import forked_command
from support.projects import dvc as run_dvc
from support.projects import git
from support.workspace import DRONESEG, TINY, Workspace

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Project with the DVC pipeline, generated data and a tiny training."""
    workspace = Workspace(tmp_path_factory.mktemp("pipeline"))
    git(workspace.root, "init", "--quiet")
    git(workspace.root, "config", "user.name", "A Pilot")
    git(workspace.root, "config", "user.email", "pilot@example.org")
    shutil.copytree(ROOT / "configs", workspace.root / "configs")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, workspace.root / name)
    (workspace.root / "bin").mkdir()
    command = workspace.root / "bin/droneseg"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(forked_command(DRONESEG))} "$@"\n')
    command.chmod(0o755)
    workspace.run("data", "sample", "data/drone", "--count", "12", "--size", "96x80")
    change(workspace, split={"options": "--by random --val-share 0.2 --test-share 0.2"},
           train={"options": " ".join((*TINY, "validation=none"))}, export={"options": "--images 4"})  # fmt: skip
    dvc(workspace, "init", "--quiet")
    dvc(workspace, "repro", "--quiet")
    git(workspace.root, "add", "--all")
    git(workspace.root, "commit", "--quiet", "--message", "first")
    return workspace


def dvc(workspace: Workspace, *arguments: str) -> str:
    environment = workspace.environment | {"DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{workspace.root / 'bin'}:{environment['PATH']}"
    return run_dvc(workspace.root, *arguments, environment=environment)


def change(workspace: Workspace, **values: Any) -> None:
    path = workspace.root / "configs/pipeline.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.mark.slow
def test_pipeline_writes_bundle_masks_and_metrics(project: Workspace) -> None:
    outputs = project.root / "runs/pipeline"
    assert 0 <= json.loads((outputs / "metrics.json").read_text())["miou"] <= 1
    assert json.loads((outputs / "bundle/manifest.json").read_text())["quality"]["data"].startswith("validation part")
    test_part = json.loads((outputs / "split.json").read_text())["test"]
    assert sorted(mask.stem for mask in (outputs / "masks").glob("*.png")) == sorted(test_part)


@pytest.mark.slow
def test_repro_reruns_only_stages_with_changed_inputs(project: Workspace) -> None:
    assert ran(dvc(project, "repro")) == []
    change(project, evaluate={"profile": "exact"})
    assert ran(dvc(project, "repro")) == ["evaluate"]
    change(project, train={"options": " ".join((*TINY, "validation=none", "iterations=12", "seed=5"))})
    assert ran(dvc(project, "repro")) == ["train", "export", "evaluate"]
    differences = json.loads(dvc(project, "metrics", "diff", "--json"))
    assert "miou" in differences["runs/pipeline/metrics.json"]
    assert git(project.root, "status", "--porcelain").split() == ["M", "configs/pipeline.yaml", "M", "dvc.lock"]


def test_pipeline_outputs_use_the_gcs_remote() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = [out for stage in stages.values() for out in (*stage["outs"], *stage.get("metrics", []))]
    assert outs
    for out in outs:
        ((path, options),) = out.items()
        assert path.startswith("runs/")
        assert options["remote"] == "gcs"


def test_data_folder_can_be_added_to_dvc(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    shutil.copy(ROOT / ".gitignore", tmp_path / ".gitignore")
    workspace = Workspace(tmp_path)
    dvc(workspace, "init", "--quiet")
    (tmp_path / "data/drone").mkdir(parents=True)
    (tmp_path / "data/drone/a.png").write_bytes(b"x")
    dvc(workspace, "add", "--quiet", "data/drone")
    git(tmp_path, "add", "data/drone.dvc")


def test_push_without_a_remote_sends_no_pipeline_outputs_to_the_default(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    dvc(workspace, "init", "--quiet", "--no-scm")
    dvc(workspace, "remote", "add", "--quiet", "--default", "models", str(tmp_path / "models"))
    dvc(workspace, "remote", "add", "--quiet", "gcs", str(tmp_path / "bucket"))
    stage = {"cmd": "echo 1 > out", "outs": [{"out": {"remote": "gcs"}}]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"only": stage}}))
    dvc(workspace, "repro", "--quiet")
    dvc(workspace, "push", "--quiet")
    assert not list((tmp_path / "models").rglob("*"))
    assert list((tmp_path / "bucket").rglob("*"))
