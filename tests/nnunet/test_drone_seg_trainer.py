"""nnU-Net's own commands with `DroneSegTrainer`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from droneseg.nnunet.paths import TRAINER_FOLDER
from support.waiting import HANG_S
from support.workspace import Workspace

pytestmark = pytest.mark.slow

STOCK = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
"""What `nnUNetv2_train` runs."""


def environment(workspace: Workspace) -> dict[str, str]:
    """Return the variables that a user of nnU-Net sets, with the line of `droneseg doctor`."""
    folders = {name: str(workspace.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return folders | {"nnUNet_extTrainer": str(TRAINER_FOLDER), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}


def nnunet_train(workspace: Workspace, *arguments: str) -> str:
    """Run `nnUNetv2_train` for fold 0 with our trainer, and return its output."""
    given = ("Dataset101_DroneSeg", "2d_smoke", "0", "-tr", "DroneSegTrainer", "-device", "cpu", *arguments)
    return workspace.run(*given, code=STOCK, **environment(workspace)).stdout


@pytest.fixture
def own(trained_folder: Path, tmp_path: Path) -> Workspace:
    """A workspace with a finished training by `droneseg train`."""
    return Workspace(Path(shutil.copytree(trained_folder, tmp_path / "own", symlinks=True)))


def change_settings(fold: Path, **values: object) -> None:
    file = fold / "trainer_settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_validation_and_continuation_take_the_settings_of_the_fold(own: Workspace) -> None:
    fold = own.fold()
    shutil.rmtree(fold / "validation")
    # needed to start the training, but neither to validate nor to continue it
    change_settings(fold, validation="none", weights="deleted.pth")
    printed = nnunet_train(own, "--val", "--npz")
    assert "settings: trainer_settings.json" in printed
    assert "Mean Validation Dice" in printed
    assert len(list((fold / "validation").glob("*.npz"))) == len(list((fold / "validation").glob("*.png"))) > 0
    change_settings(fold, epochs=3)
    assert "Epoch 2" in nnunet_train(own, "--c")
    assert len(json.loads((fold / "epochs.json").read_text())) == 3
    assert json.loads((fold / "trainer_settings.json").read_text())["epochs"] == 3


def test_pretrained_weights_are_what_the_training_and_its_average_start_from(own: Workspace) -> None:
    import torch

    fold, first = own.fold(), own.root / "first.pth"
    (fold / "checkpoint_final.pth").rename(first)
    change_settings(fold, learning_rate=1e-12, averaged_weights=0.9, validation="none", epochs=1)
    nnunet_train(own, "-pretrained_weights", str(first))
    before, after = (
        torch.load(file, map_location="cpu", weights_only=False)["network_weights"]
        for file in (first, fold / "checkpoint_final.pth")
    )
    names = [name for name, value in before.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in names if "seg_layers" not in name)
    last = [name for name in names if "seg_layers" in name and name.endswith(".weight")][-1]
    assert not torch.allclose(before[last], after[last], atol=1e-6), "nnU-Net does not take output layers"


def test_fold_without_settings_starts_with_the_defaults(own: Workspace, tmp_path: Path) -> None:
    fold = own.fold("2d")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        STOCK,
        "101",
        "2d",
        "0",
        "-tr",
        "DroneSegTrainer",
        "-device",
        "cpu",
    ]
    with (tmp_path / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            command, env=own.environment | environment(own), stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            end = time.monotonic() + HANG_S
            while not (fold / "trainer_settings.json").is_file() and process.poll() is None:
                assert time.monotonic() < end, (tmp_path / "printed.txt").read_text()
                time.sleep(0.2)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shown = (tmp_path / "printed.txt").read_text()
    assert (fold / "trainer_settings.json").is_file(), shown
    recorded = json.loads((fold / "trainer_settings.json").read_text())
    assert (recorded["epochs"], recorded["iterations"], recorded["optimizer"]) == (1000, 250, "sgd"), "nnU-Net's own"
    assert "settings: defaults of DroneSegTrainer" in shown
