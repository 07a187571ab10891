"""nnU-Net directories, file names and environment variables; device choice."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from droneseg.core.errors import ModelError
from droneseg.core.settings import Settings
from droneseg.core.system import usable_cores

DATASET_ID = 101
DATASET = "Dataset101_DroneSeg"
PLANS = "nnUNetPlans"
TRAINER = "DroneSegTrainer"
TRAINER_FOLDER = Path(__file__).parent / "trainers"
BASE_CONFIGURATION = "2d"

FINAL_CHECKPOINT = "checkpoint_final.pth"
LATEST_CHECKPOINT = "checkpoint_latest.pth"
BEST_CHECKPOINT = "checkpoint_best.pth"
RECORD_NAME = "training.json"
"""Beside the checkpoints: what a training is made of."""


@dataclass(frozen=True)
class NnunetPaths:
    """nnU-Net's three folders.

    Attributes:
        raw: Raw datasets.
        preprocessed: Plans and preprocessed data.
        results: Trained models.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> "NnunetPaths":
        """Take the folders from the settings, made absolute."""
        return cls(
            settings.nnunet_raw.resolve(), settings.nnunet_preprocessed.resolve(), settings.nnunet_results.resolve()
        )

    @property
    def raw_dataset(self) -> Path:
        """The raw dataset of this project."""
        return self.raw / DATASET

    @property
    def preprocessed_dataset(self) -> Path:
        """Plans and preprocessed data of this project's dataset."""
        return self.preprocessed / DATASET

    @property
    def plans_file(self) -> Path:
        """The plans of this project's dataset."""
        return self.preprocessed_dataset / f"{PLANS}.json"

    def model_folder(self, configuration: str) -> Path:
        """Return the folder of the models trained with one configuration; its folds lie in it."""
        return self.results / DATASET / f"{TRAINER}__{PLANS}__{configuration}"

    def fold_folder(self, configuration: str, fold: int) -> Path:
        """Return the folder of one training: checkpoints, logs, validation."""
        return self.model_folder(configuration) / f"fold_{fold}"


def export_environment(layout: NnunetPaths, *, processes: int | None = None, loaders: int | None = None) -> None:
    """Tell nnU-Net its folders, our trainer's folder and its numbers of processes.

    Must run before the first import of nnunetv2, which reads the number of processes on import.

    Args:
        layout: The three folders.
        processes: Worker processes for preprocessing and export; default one per core, at most 8.
        loaders: Worker processes for loading and augmenting; 0 loads in the training process.
    """
    os.environ["nnUNet_raw"] = str(layout.raw)  # noqa: SIM112  # nnU-Net spells it so
    os.environ["nnUNet_preprocessed"] = str(layout.preprocessed)  # noqa: SIM112
    os.environ["nnUNet_results"] = str(layout.results)  # noqa: SIM112
    os.environ["nnUNet_extTrainer"] = str(TRAINER_FOLDER)  # noqa: SIM112
    os.environ["nnUNet_def_n_proc"] = str(processes or min(usable_cores(), 8))  # noqa: SIM112
    os.environ["nnUNet_wandb_enabled"] = "0"  # noqa: SIM112  # W&B is told by droneseg.nnunet.callbacks
    if loaders is not None:
        os.environ["nnUNet_n_proc_DA"] = str(loaders)  # noqa: SIM112


def trained_folders(results: Path) -> list[Path]:
    """List the model folders below nnU-Net's results that hold a finished or interrupted training."""
    return sorted({found.parent.parent for found in results.glob(f"{DATASET}/*/fold_*/checkpoint_*.pth")})


def checkpoint_files(folder: Path, checkpoint: str) -> list[Path]:
    """Return the checkpoint of every fold of a model folder that has it.

    Raises:
        ModelError: If there is none; the message says what is missing.
    """
    if not folder.is_dir():
        raise ModelError(f"No model at {folder}: no such folder.")
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} is no model folder of nnU-Net: {' and '.join(missing)} missing.")
    files = sorted(folder.glob(f"fold_[0-9]*/{checkpoint}"))
    if not files:
        others = sorted({file.name for file in folder.glob("fold_*/checkpoint_*.pth")})
        hint = f" There is {', '.join(others)}; `droneseg export --checkpoint` takes it." if others else ""
        raise ModelError(f"{folder}: no fold holds {checkpoint}.{hint}")
    return files


DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the wanted device; "auto" takes the first that is there of cuda, mps, cpu.

    Raises:
        ValueError: If the wanted device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[choice]:
        raise ValueError(f"device={choice} is not available here; found {[n for n, ok in available.items() if ok]}.")
    return torch.device(choice)


def cpu_has_bf16() -> bool:
    """Say whether this CPU has bfloat16 instructions; without them autocast is slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe else False
