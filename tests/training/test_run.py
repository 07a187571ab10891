"""Trainings with nnU-Net: record, resume after kill -9, time budget, early stopping and Ctrl-C."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.waiting import HANG_S, wait_until
from support.workspace import TINY, Workspace

pytestmark = pytest.mark.slow


def test_training_writes_checkpoint_record_and_log(trained: Workspace) -> None:
    fold = trained.fold()
    record = json.loads((fold / "training.json").read_text())
    assert record["config"]["epochs"] == 2
    assert record["config"]["patch_size"] == [64, 64]
    assert record["packages"]["nnunetv2"].startswith("2.8")
    assert record["config"]["seed"] == 0
    assert "epoch 2/2" in (fold / "droneseg.log").read_text()
    assert (fold / "checkpoint_final.pth").is_file()
    assert not list(fold.glob("*.part"))
    assert 0 <= json.loads((fold / "validation/summary.json").read_text())["foreground_mean"]["Dice"] <= 1


def test_split_file_becomes_fold_0(trained: Workspace) -> None:
    folds = json.loads((trained.root / "nnUNet_preprocessed/Dataset101_DroneSeg/splits_final.json").read_text())
    split = json.loads((trained.root / "split.json").read_text())
    assert folds[0]["val"] == [f"drone_{stem}" for stem in split["val"]]
    predicted = {f.stem for f in (trained.fold() / "validation").glob("*.png")}
    assert predicted == set(folds[0]["val"])


def test_finished_training_is_not_overwritten_without_overwrite(trained: Workspace) -> None:
    before = (trained.fold() / "checkpoint_final.pth").read_bytes()
    refused = trained.run("train", *TINY, check=False)
    assert refused.returncode == 1
    assert "Use resume=true to continue it, or overwrite=true to rename it" in refused.stderr
    assert (trained.fold() / "checkpoint_final.pth").read_bytes() == before


def test_resume_with_a_different_network_is_refused(trained: Workspace) -> None:
    refused = trained.run("train", *TINY, "resume=true", "base_features=8", check=False)
    assert refused.returncode == 1
    assert "has a different plan (architecture)" in refused.stderr


def test_kill_9_loses_at_most_the_last_epoch(workspace: Workspace) -> None:
    arguments = [*TINY, "configuration=2d_killed", "epochs=400", "validation=none"]
    fold = workspace.fold("2d_killed")
    running = subprocess.Popen(
        [*workspace.command, "train", *arguments],
        cwd=workspace.root,
        env=workspace.environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: "epoch 2/400" in read(fold / "droneseg.log"), running)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    done = read(fold / "droneseg.log").count("epoch ")
    resumed = workspace.run("train", *arguments, f"epochs={done + 2}", "resume=true", check=False)
    assert resumed.returncode == 0, resumed.stderr
    first_epoch = read(fold / "droneseg.log").splitlines()[done + 2 :]
    numbers = [int(line.split("epoch ")[1].split("/")[0]) for line in first_epoch if "epoch " in line]
    assert numbers[0] in (done, done + 1), "the training resumes where it was killed"
    assert numbers[-1] == done + 2


def test_time_budget_ends_the_training_with_a_final_checkpoint(workspace: Workspace) -> None:
    arguments = [*TINY, "configuration=2d_budget", "epochs=5000", "max_minutes=0.05"]
    workspace.run("train", *arguments)
    log = read(workspace.fold("2d_budget") / "droneseg.log")
    assert "finished: time budget of 0.05 minutes used up" in log
    assert (workspace.fold("2d_budget") / "checkpoint_final.pth").is_file()
    assert (workspace.fold("2d_budget") / "validation/summary.json").is_file()
    again = workspace.run("train", *arguments, "resume=true")
    assert again.returncode == 0
    assert read(workspace.fold("2d_budget") / "droneseg.log").count("epoch ") == log.count("epoch "), (
        "the budget was already used up"
    )


def test_budget_below_one_epoch_shortens_it_and_anneals_the_learning_rate(workspace: Workspace) -> None:
    arguments = [*TINY, "configuration=2d_short", "epochs=3", "iterations=100000", "max_minutes=0.1", "validation=none"]
    workspace.run("train", *arguments)
    fold = workspace.fold("2d_short")
    log = read(fold / "droneseg.log")
    assert "in a time budget of 0.1 minutes" in log
    assert "epoch 1/3" in log
    assert "finished: time budget of 0.1 minutes used up" in log
    (epoch,) = json.loads((fold / "epochs.json").read_text())
    assert epoch["seconds"] < 30
    rates = [group["lr"] for group in checkpoint(fold)["optimizer_state"]["param_groups"]]
    assert max(rates) < 0.1 * 0.003, "a tenth of the initial rate"


def test_log_has_the_expected_duration_before_the_first_epoch_ends(workspace: Workspace) -> None:
    workspace.run("train", *TINY, "configuration=2d_talks", "epochs=2", "iterations=8", "validation=none")
    lines = read(workspace.fold("2d_talks") / "droneseg.log").splitlines()
    expected = next(number for number, line in enumerate(lines) if "for 2 epochs" in line)
    first = next(number for number, line in enumerate(lines) if "epoch 1/2" in line)
    assert expected < first
    assert "Ctrl-C keeps the last finished epoch" in lines[expected]


def test_early_stopping_ends_a_training_without_improvement(workspace: Workspace) -> None:
    workspace.run(
        "train", *TINY, "configuration=2d_early", "epochs=500", "learning_rate=1e-9", "patience=2", "validation=none"
    )
    assert "no better smoothed Dice for 2 epochs" in read(workspace.fold("2d_early") / "droneseg.log")


def test_overwrite_renames_the_existing_training(workspace: Workspace) -> None:
    arguments = [*TINY, "configuration=2d_early", "epochs=1", "validation=none"]
    before = (workspace.fold("2d_early") / "checkpoint_final.pth").read_bytes()
    workspace.run("train", *arguments, "overwrite=true")
    renamed = next(workspace.fold("2d_early").parent.glob("before_*_fold_0"))
    assert (renamed / "checkpoint_final.pth").read_bytes() == before
    assert (workspace.fold("2d_early") / "checkpoint_final.pth").read_bytes() != before


@pytest.mark.parametrize(
    ("iterations", "logged", "message"),
    [
        (1, "epoch 1/5000", "Training interrupted. Continue from the last checkpoint with resume=true."),
        (50_000, "Ctrl-C keeps", "Training interrupted before its first checkpoint, so nothing was saved."),
    ],
)
def test_ctrl_c_ends_with_one_line_that_says_what_is_saved(
    workspace: Workspace, iterations: int, logged: str, message: str
) -> None:
    name = f"2d_interrupted_{iterations}"
    options = [f"configuration={name}", "epochs=5000", f"iterations={iterations}", "validation=none"]
    running = subprocess.Popen(
        [*workspace.command, "train", *TINY, *options],
        cwd=workspace.root,
        env=workspace.environment,
        stderr=subprocess.PIPE,
        text=True,
        # a process started in the background ignores SIGINT; one in a terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(lambda: logged in read(workspace.fold(name) / "droneseg.log"), running)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=HANG_S)
    assert running.returncode == 1
    assert f"error: {message}" in errors
    assert "Traceback" not in errors


def checkpoint(fold: Path) -> dict[str, Any]:
    import torch

    return torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def wait_for(condition: Callable[[], object], running: subprocess.Popen[Any]) -> None:
    wait_until(lambda: condition() or running.poll() is not None)
    assert running.poll() is None, "the training ended early"
