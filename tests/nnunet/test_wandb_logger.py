"""Offline W&B runs read back from their files, the epoch log and the profiler."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import TrainingError
from droneseg.nnunet import wandb_logger
from droneseg.nnunet.callbacks import Profiler, Reporter, read_epochs
from support.wandb_files import OfflineRun, offline_runs
from support.workspace import TINY, Workspace

pytestmark = pytest.mark.slow

NAMES = ("obstacles", "water", "soft-surfaces", "moving-objects", "landing-zones")
ARGUMENTS = (*TINY, "configuration=2d_tracked", "tracking=wandb", "validation=fast")


def environment(home: Path) -> dict[str, str]:
    return {"WANDB_API_KEY": "", "HOME": str(home), "WANDB_X_STATS_SAMPLING_INTERVAL": "0.5"}


@pytest.fixture(scope="module")
def tracked(workspace: Workspace) -> list[OfflineRun]:
    """Runs of a training of two epochs with images and a profile, resumed for a third epoch and exported."""
    home = environment(workspace.root)
    workspace.run("train", *ARGUMENTS, "tracking.images=true", "profile=true", "iterations=4", **home)
    workspace.run("train", *ARGUMENTS, "epochs=3", "iterations=4", "resume=true", **home)
    model = fold(workspace).parent
    before = {file: file.stat().st_mtime_ns for file in model.rglob("*")}
    workspace.run("export", "--from", str(model), "--out", "bundles/tracked_model", "--images", "4", **home)
    assert {file: file.stat().st_mtime_ns for file in model.rglob("*")} == before, "dvc repro would train again"
    return [*offline_runs(fold(workspace)), *offline_runs(workspace.root / "bundles")]


def fold(workspace: Workspace) -> Path:
    return workspace.fold("2d_tracked")


def test_each_epoch_logs_losses_dice_learning_rate_and_time(tracked: list[OfflineRun]) -> None:
    first = tracked[0]
    assert first.project == "droneseg"
    assert first.name == "2d_tracked, fold 0"
    for epoch in first.history:
        assert {
            "loss/train",
            "loss/validation",
            "dice/mean",
            "dice/smoothed",
            "learning_rate",
            "seconds_per_epoch",
        } <= set(epoch)
    with_classes = {key for epoch in first.history for key in epoch if key.startswith("dice/")}
    assert with_classes - {"dice/mean", "dice/smoothed"} <= {f"dice/{name}" for name in NAMES}
    assert len(with_classes) > 2
    # the rate decays with time, and a few milliseconds have passed
    assert first.history[0]["learning_rate"] == pytest.approx(0.003, rel=1e-3)
    assert first.history[1]["learning_rate"] < 0.003


def test_run_has_configuration_and_system_metrics(tracked: list[OfflineRun]) -> None:
    config = tracked[0].config
    assert (config["epochs"], config["patch_size"], config["seed"]) == (2, [64, 64], 0)
    assert config["packages"]["nnunetv2"].startswith("2.8")
    assert any(key.startswith(("cpu", "proc.")) for key in tracked[0].system)


def test_resumed_training_continues_its_run(tracked: list[OfflineRun]) -> None:
    assert len({run.id for run in tracked}) == 1
    assert [[epoch["epoch"] for epoch in run.history] for run in tracked[:2]] == [[1, 2], [3]]
    assert [run.exit_code for run in tracked] == [0, 0, 0]


def test_images_are_uploaded_only_on_request(tracked: list[OfflineRun]) -> None:
    assert any(key.startswith("validation/") for epoch in tracked[0].history for key in epoch)
    assert not any(key.startswith("validation/") for epoch in tracked[1].history for key in epoch)


def test_bundle_is_an_artifact_with_its_manifest(tracked: list[OfflineRun], workspace: Workspace) -> None:
    ((name, metadata, paths),) = tracked[2].artifacts
    assert name == "bundle-2d_tracked"
    assert metadata == json.loads((workspace.root / "bundles/tracked_model/manifest.json").read_text())
    assert sorted(paths) == ["manifest.json", "model.onnx", "reference.csv", "self_check.json", "self_check.png"]


def test_profile_shows_the_time_of_each_part(tracked: list[OfflineRun], workspace: Workspace) -> None:
    profile = fold(workspace) / "profile"
    table = (profile / "table.txt").read_text()
    assert [
        part for part in ("waiting for data", "forward", "loss and backward", "optimiser") if part not in table
    ] == []
    shares = [float(line.split()[-1].rstrip("%")) for line in table.splitlines()[2:6]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "aten::convolution_backward" in table
    assert any(
        event.get("name") == "forward" for event in json.loads((profile / "trace.json").read_text())["traceEvents"]
    )


def test_profile_excludes_the_validation(tmp_path: Path) -> None:
    network = torch.nn.Linear(4, 4)
    profiler = Profiler(tmp_path, network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for epoch in range(2):
        for _ in range(4):
            with profiler.iteration():
                network(torch.ones(2, 4)).sum().backward()
                optimiser.step()
        with torch.no_grad():
            torch.sin(network(torch.ones(2, 4)))
        assert (tmp_path / "profile/table.txt").exists(), epoch
    profiler.close()
    table = (tmp_path / "profile/table.txt").read_text()
    assert table.startswith("2 iterations")
    assert "aten::sin" not in table
    assert "Optimizer.step" in table


def test_profiler_synchronises_the_gpu_after_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    network = torch.nn.Linear(4, 4)
    profiler = Profiler(tmp_path, network)  # CUDA becomes available afterwards, since it cannot be profiled here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(""))
    with profiler.iteration():
        network(torch.ones(2, 4))
        assert len(waited) == 2, "before and after the forward pass"
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        assert len(waited) == 3
    assert len(waited) == 4
    profiler.close()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert len(waited) == 4, "a closed profiler does not synchronise"


def test_epochs_json_is_written_without_tracking(trained: Workspace) -> None:
    epochs = json.loads((trained.fold() / "epochs.json").read_text())
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert set(epochs[0]["class_dice"]) == set(NAMES)
    assert not (trained.fold() / "wandb").exists()
    assert not (trained.fold() / "profile").exists()


def test_class_on_no_patch_has_dice_none() -> None:
    series: dict[str, list[Any]] = {
        "train_losses": [1.0],
        "val_losses": [2.0],
        "mean_fg_dice": [0.5],
        "ema_fg_dice": [0.4],
        "lrs": [0.1],
        "dice_per_class_or_region": [[0.1, float("nan"), 0.3, 0.4, 0.5]],
        "epoch_start_timestamps": [10.0, 12.5],
        "epoch_end_timestamps": [12.5],
    }
    (epoch,) = read_epochs(DEFAULT_CLASSES, series.__getitem__)
    assert epoch.class_dice == dict(zip(NAMES, (0.1, None, 0.3, 0.4, 0.5), strict=True))
    assert (epoch.epoch, epoch.seconds) == (1, 2.5)


def test_only_rank_0_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    from droneseg.nnunet.trainer_settings import TrainerSettings
    from droneseg.nnunet.trainers.drone_seg_trainer import DroneSegTrainer, nnUNetTrainer

    begun = []
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda _self: None)
    monkeypatch.setattr(Reporter, "begin", lambda *_args, **options: begun.append(options))
    for rank in (0, 1):
        trainer = DroneSegTrainer.__new__(DroneSegTrainer)
        trainer.local_rank = rank
        trainer.network = trainer.average = None
        trainer.output_folder = str(tmp_path)
        trainer.settings = TrainerSettings(tracked=True)
        trainer.reporter = Reporter(tmp_path, tmp_path, DEFAULT_CLASSES, trainer.settings)
        trainer.on_train_start()
    assert begun == [{"tracked": True, "profile": False}]


def test_other_project_starts_another_run(tmp_path: Path) -> None:
    def keep(project: str) -> str:
        return wandb_logger.choose_run(tmp_path, project=project, mode="offline", group=None, images=False).id

    first = keep("droneseg")
    assert keep("droneseg") == first
    assert keep("elsewhere") != first


def test_auto_mode_is_offline_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert wandb_logger.choose_mode("auto", api_key=None) == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_logger.choose_mode("auto", api_key=None) == "online"
    assert wandb_logger.choose_mode("offline", api_key="a" * 40) == "offline"
    assert os.environ["WANDB_API_KEY"] == "a" * 40


def test_run_requires_a_tracked_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="tracking=wandb"):
        wandb_logger.Run(tmp_path, name="x", config={})


def test_bundle_of_an_untracked_training_is_not_uploaded(tmp_path: Path) -> None:
    assert wandb_logger.send_bundle(tmp_path, tmp_path, [], {}, name="x") is None
    shutil.rmtree(tmp_path)
