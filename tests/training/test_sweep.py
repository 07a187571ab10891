"""Sweeps of tiny trainings: preset as first trial, pruning, resume after a kill, and shared studies."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from droneseg.core.errors import ConfigurationError, TrainingError
from droneseg.training.config import load_config
from droneseg.training.search_space import load_sweep, preset_values, wandb_sweep
from droneseg.training.sweep import open_study, translate_storage_errors
from support.programs import alive
from support.waiting import HANG_S, wait_until
from support.wandb_files import offline_runs
from support.workspace import TINY, Workspace

SPACE = {
    "learning_rate": {"low": 0.0005, "high": 0.02, "log": True},
    "convs_per_stage": {"low": 1, "high": 2},
    "augmentation": {"choices": ["light", "flight"]},
}
CONFIG = {
    "train": [*TINY, "validation=none", "epochs=3"],
    "space": SPACE,
    "pruning": {"startup_trials": 2, "warmup_epochs": 1},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return path


@pytest.mark.slow
def test_killed_sweep_continues_its_trial(workspace: Workspace) -> None:
    config = write(workspace.root, train=[*CONFIG["train"], "epochs=6", "iterations=8"])
    arguments = ("sweep", "--config", str(config), "--trials", "2", "--name", "killed")
    out = workspace.root / "runs/sweeps/killed"
    running = subprocess.Popen(
        [*workspace.command, *arguments], cwd=workspace.root, env=workspace.environment, stderr=subprocess.DEVNULL
    )
    pattern = "trainings/*/DroneSegTrainer__nnUNetPlans__2d_trial0_*/fold_0/epochs.json"
    wait_until(lambda: list(out.glob(pattern)) or running.poll() is not None)
    children = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    running.send_signal(signal.SIGKILL)
    running.wait()
    wait_until(lambda: not any(alive(pid) for pid in children))
    (epochs,) = out.glob(pattern)
    known = len(json.loads(epochs.read_text()))
    result = json.loads(workspace.run(*arguments, "--json").stdout)
    assert sum(trial["state"] in ("complete", "pruned") for trial in result["trials"]) == 2
    (first,) = (trial for trial in result["trials"] if trial["preset"])
    assert len(first["dices"]) == 6
    assert first["values"] == {"learning_rate": 0.003, "convs_per_stage": 1, "augmentation": "light"}
    log = (epochs.parent / "droneseg.log").read_text()
    assert log.count("epoch 1/6") == 1, "the training did not start from scratch"
    assert known < 6
    assert (out / "sweep.png").stat().st_size > 10_000
    best = max((trial for trial in result["trials"] if trial["state"] == "complete"), key=lambda trial: trial["dice"])
    assert result["trials"][0] == best
    (kept,) = out.rglob("checkpoint_final.pth")
    assert len(json.loads((kept.parent / "epochs.json").read_text())) == len(best["dices"])
    assert load_config(result["command"]).trainer.learning_rate == best["values"]["learning_rate"]


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_the_trial_continues(workspace: Workspace) -> None:
    config = write(workspace.root, train=[*CONFIG["train"], "epochs=5", "iterations=8"])
    arguments = ("sweep", "--config", str(config), "--trials", "1", "--name", "interrupted")
    running = subprocess.Popen(
        [*workspace.command, *arguments],
        cwd=workspace.root,
        env=workspace.environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    trainings = workspace.root / "runs/sweeps/interrupted/trainings"
    wait_until(lambda: list(trainings.rglob("epochs.json")) or running.poll() is not None)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=HANG_S)
    assert running.returncode == 1
    assert errors.strip() == "error: Sweep interrupted. Run the same command to continue with the current trial."
    (only,) = json.loads(workspace.run(*arguments, "--json").stdout)["trials"]
    assert only["preset"]
    assert len(only["dices"]) == 5
    (log,) = trainings.rglob("droneseg.log")
    assert log.read_text().count("epoch 1/5") == 1, "the training did not start from scratch"


@pytest.mark.slow
def test_weak_trials_are_pruned_and_all_runs_share_one_group(workspace: Workspace) -> None:
    # the preset's learning rate, and one that learns almost nothing, which seed 3 samples next
    space = {"learning_rate": {"choices": [0.003, 1e-9]}}
    config = write(
        workspace.root,
        space=space,
        pruning={"startup_trials": 1, "warmup_epochs": 0},
        random_trials=9,
        train=[*CONFIG["train"], "epochs=5", "iterations=40", "tracking=wandb"],
    )
    done = workspace.run(
        "sweep",
        "--config",
        str(config),
        "--trials",
        "2",
        "--name",
        "weak",
        "--seed",
        "3",
        WANDB_API_KEY="",
        HOME=str(workspace.root),
    )
    result = json.loads((workspace.root / "runs/sweeps/weak/sweep.json").read_text())
    pruned = [trial for trial in result["trials"] if trial["state"] == "pruned"]
    assert pruned
    assert all(len(trial["dices"]) < 5 for trial in pruned)
    assert "best: droneseg train" in done.stdout
    runs = [run for fold in (workspace.root / "runs/sweeps/weak").rglob("fold_0") for run in offline_runs(fold)]
    assert len({run.id for run in runs}) == 2
    assert {run.group for run in runs} == {"weak"}


@pytest.mark.slow
def test_shared_study_counts_the_trials_of_all_machines(workspace: Workspace, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    config = write(workspace.root, train=[*CONFIG["train"], "epochs=1"])
    for folder in ("here", "there"):
        workspace.run("sweep", "--config", str(config), "--trials", "1", "--storage", database, "--out", folder)
    assert json.loads((workspace.root / "there/sweep.json").read_text())["trials"][0]["preset"]
    assert not (workspace.root / "there/trainings").exists(), "no second trial ran"
    refused = workspace.run(
        "sweep", "--config", str(write(tmp_path)), "--trials", "1", "--storage", database, check=False
    )
    assert "has trials of another sweep" in refused.stderr


@pytest.mark.slow
def test_consecutive_failures_end_the_sweep_with_the_last_error(tmp_path: Path) -> None:
    done = Workspace(tmp_path).run("sweep", "--config", str(write(tmp_path)), "--trials", "5", check=False)
    assert done.returncode == 1
    assert "error: 3 consecutive trials failed. Last error: " in done.stderr
    assert "droneseg preprocess" in done.stderr


def test_preset_outside_the_search_space_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_sweep(write(tmp_path, space={"learning_rate": {"low": 0.5, "high": 0.9}}), [])
    study = open_study(config, f"sqlite:///{tmp_path}/study.db", "other", 0)
    assert "preset values are outside the search space" in caplog.text
    assert study.trials == []


def test_failed_preset_is_repeated_once(tmp_path: Path) -> None:
    config, database = load_sweep(write(tmp_path), []), f"sqlite:///{tmp_path}/study.db"
    study = open_study(config, database, "again", 0)
    study.optimize(lambda _trial: float("nan"), n_trials=1)
    states = [trial.state for trial in open_study(config, database, "again", 0).trials]
    assert states == [TrialState.FAIL, TrialState.WAITING]
    assert len(open_study(config, database, "again", 0).trials) == 2, "the trial is already enqueued"


def test_machines_that_share_a_study_sample_different_values(tmp_path: Path) -> None:
    # machine, seed and study are the same; the process ids differ
    code = (
        "import sys; from pathlib import Path; from droneseg.training.search_space import load_sweep;"
        "from droneseg.training.sweep import open_study, suggest;"
        "config = load_sweep(Path(sys.argv[1]), []);"
        "study = open_study(config, sys.argv[2], sys.argv[3], 0, shared=True); study.ask(); trial = study.ask();"
        "print(suggest(trial, 'learning_rate', config.space['learning_rate']))"
    )
    config = write(tmp_path, space={"learning_rate": {"low": 0.001, "high": 0.9}})
    sampled = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, str(config), f"sqlite:///{tmp_path}/study.db", name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in ("one", "two")
    }
    assert len(sampled) == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:p%40ss@somewhere/db", "database driver is not installed: pip install psycopg"),
        (
            "sqlite:////nowhere/study.db",
            "Cannot open the study's database sqlite:////nowhere/study.db: OperationalError",
        ),
        ("mysql+nothing://me:s3cret@somewhere", "database mysql"),
        ("s3cret", "Cannot open the study's database given by --storage"),
    ],
)
def test_database_errors_do_not_show_the_password(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_study(load_sweep(write(tmp_path), []), url, "any", 0)
    assert message in str(caught.value)
    assert "me:s3cret" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)


def test_database_failure_during_a_sweep_is_one_line(tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    study = open_study(load_sweep(write(tmp_path), []), f"sqlite:///{database}", "any", 0)
    database.write_bytes(b"damaged" * 99)
    translated = translate_storage_errors(f"sqlite:///{database}")
    with pytest.raises(TrainingError, match=r"study\.db failed: .*\. Run the same command to continue"), translated:
        study.optimize(lambda _trial: 0.0, n_trials=1)


def test_installed_sweep_contains_its_preset() -> None:
    values = preset_values(load_sweep(None, []))
    assert values is not None
    assert values["learning_rate"] == load_config(["preset=smoke"]).trainer.learning_rate


def test_overrides_take_precedence_and_must_not_be_searched_keys(tmp_path: Path) -> None:
    assert load_sweep(write(tmp_path), ["epochs=9"]).train[-2:] == ["validation=none", "epochs=9"]
    with pytest.raises(ConfigurationError, match="The search space contains learning_rate"):
        load_sweep(write(tmp_path), ["learning_rate=1"])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": {"low": 2, "high": 1}}, "low=2 is not below high=1"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "log=true requires low above 0"),
        ({"learning_rat": {"low": 1, "high": 2}}, "did you mean 'learning_rate'"),
        ({"learning_rate": {"low": -1, "high": 1.0}}, "learning_rate=-1: Input should be greater than 0"),
        ({"augmentation": {"choices": ["light", "heavy"]}}, "augmentation='heavy'"),
        ({}, "space: "),
    ],
)
def test_invalid_search_space_is_refused_before_training(tmp_path: Path, space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_sweep(write(tmp_path, space=space), [])
    assert message in str(refused.value)


def test_search_space_converts_to_a_wandb_sweep(tmp_path: Path) -> None:
    result = wandb_sweep(load_sweep(write(tmp_path), []))
    assert result["metric"] == {"name": "dice/smoothed", "goal": "maximize"}
    assert result["parameters"] == {
        "learning_rate": {"distribution": "log_uniform_values", "min": 0.0005, "max": 0.02},
        "convs_per_stage": {"distribution": "int_uniform", "min": 1, "max": 2},
        "augmentation": {"values": ["light", "flight"]},
    }
    command = result["command"]
    assert command[:2] == ["droneseg", "train"]
    assert command[-1] == "${args_no_hyphens}"
    load_config([*command[2:-1], "learning_rate=0.01"])  # the command of a W&B agent
