"""Trainings with nnU-Net: record, resume, budget, early stopping, Ctrl-C, datasets, plans and initial weights."""

import json
import os
import re
import shutil
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


@pytest.fixture(scope="module")
def meadow(preprocessed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A dataset as people who use nnU-Net have it: another number, own classes, and its folds beside the plans."""
    root = tmp_path_factory.mktemp("meadow")
    source, raw = preprocessed_folder / "nnUNet_raw/Dataset101_DroneSeg", root / "nnUNet_raw/Dataset205_Meadow"
    for folder in ("imagesTr", "labelsTr"):
        shutil.copytree(source / folder, raw / folder)
    description = json.loads((source / "dataset.json").read_text())
    names = ("background", "tree", "pond", "meadow", "sheep", "road")
    kept = {name: description[name] for name in ("channel_names", "numTraining", "file_ending")}
    labels = {name: number for number, name in enumerate(names)}
    (raw / "dataset.json").write_text(json.dumps(kept | {"labels": labels}))
    cases = sorted(file.stem for file in (raw / "labelsTr").glob("*.png"))
    splits = root / "nnUNet_preprocessed/Dataset205_Meadow/splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps([{"train": cases[:4], "val": cases[4:6]}]))
    workspace = Workspace(root)
    workspace.run("preprocess", "--dataset", "205", "--planner", "nnUNetPlannerResEncM", "--processes", "1")
    assert json.loads(splits.read_text())[0]["train"] == cases[:4], "the user's folds are kept"
    return workspace


OWN_PLANS = (*TINY, "convs_per_stage=2", "validation=none", "dataset=205", "plans=nnUNetResEncUNetMPlans")


def test_dataset_of_another_number_with_own_plans_is_trained_and_exported(meadow: Workspace) -> None:
    meadow.run("train", *OWN_PLANS)
    model = meadow.root / "nnUNet_results/Dataset205_Meadow/DroneSegTrainer__nnUNetResEncUNetMPlans__2d_smoke"
    assert (model / "fold_0/checkpoint_final.pth").is_file()
    plans = json.loads((model / "plans.json").read_text())["configurations"]["2d_smoke"]
    assert plans["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    meadow.run("export", "--images", "4", "--license", "none")  # the only model there is
    manifest = json.loads((meadow.root / "nnUNet_results/champion/manifest.json").read_text())
    assert [entry["name"] for entry in manifest["classes"]][-1] == "road"
    assert manifest["provenance"]["plans"] == "nnUNetResEncUNetMPlans"


def test_missing_datasets_plans_and_planners_are_named_with_those_that_are_there(meadow: Workspace) -> None:
    for command, message in (
        (("train", "preset=smoke", "dataset=7"), "dataset=7 does not exist in .*; choose one of Dataset205_Meadow."),
        (("preprocess", "--dataset", "7"), "dataset=7 does not exist in .*; choose one of Dataset205_Meadow."),
        (("train", "preset=smoke", "dataset=205"), "nnUNetPlans.json is missing. The dataset has the plans nnUNetResE"),
        (("preprocess", "--dataset", "205", "--plans", "Own"), "Own.json is missing. The dataset has the plans nnUNet"),
        (("preprocess", "--dataset", "205", "--planner", "Own"), "no planner Own. Choose one of ExperimentPlanner, "),
        (("train", "preset=gpu", "dataset=Dataset205_Meadow", *OWN_PLANS[-1:], "fold=3"), "Choose from its folds: 0."),
    ):
        refused = meadow.run(*command, check=False)
        assert refused.returncode == 1
        assert re.search(message, refused.stderr), refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr


def test_existing_plans_are_preprocessed_as_they_are(meadow: Workspace) -> None:
    folder = meadow.root / "nnUNet_preprocessed/Dataset205_Meadow"
    plans = json.loads((folder / "nnUNetResEncUNetMPlans.json").read_text())
    plans["plans_name"] = "Own"
    plans["configurations"] = {"2d": plans["configurations"]["2d"] | {"data_identifier": "Own_2d", "batch_size": 3}}
    (folder / "Own.json").write_text(json.dumps(plans))
    done = meadow.run("preprocess", "--dataset", "205", "--plans", "Own", "--processes", "1")
    assert "plans Own" in done.stdout
    assert json.loads((folder / "Own.json").read_text()) == plans
    assert len(list((folder / "Own_2d").glob("*.pkl"))) == len(list((folder / "gt_segmentations").iterdir()))


def test_weights_start_a_training_and_those_that_do_not_fit_leave_everything_as_it_is(
    trained_folder: Path, tmp_path: Path
) -> None:
    import torch

    workspace = Workspace(Path(shutil.copytree(trained_folder, tmp_path / "own", symlinks=True)))
    first = workspace.fold() / "checkpoint_final.pth"
    start = (*TINY, "validation=none", "epochs=1", "learning_rate=1e-12", f"weights={first}")
    workspace.run("train", *start, "configuration=2d_next")
    before, after = (
        torch.load(file, map_location="cpu", weights_only=False)["network_weights"]
        for file in (first, workspace.fold("2d_next") / "checkpoint_final.pth")
    )
    names = [name for name, value in before.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in names)
    count = len(before)
    assert f": {count} of {count}\n" in (workspace.fold("2d_next") / "droneseg.log").read_text()
    wider = workspace.run("train", *start, "base_features=8", "max_features=16", "overwrite=true", check=False)
    assert wider.returncode == 1
    assert "The weights do not fit the network" in wider.stderr
    assert first.is_file(), "the training that overwrite=true would rename"
