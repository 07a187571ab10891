"""nnU-Net folders, file names and environment variables; device selection."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from droneseg.core.classes import DATASET_NAME
from droneseg.core.errors import ConfigurationError, ModelError
from droneseg.core.settings import Settings
from droneseg.core.system import usable_cores

if TYPE_CHECKING:
    import torch  # commands that run without torch also import this module

DATASET_ID = 101
PLANS = "nnUNetPlans"
TRAINER = "DroneSegTrainer"
TRAINER_FOLDER = Path(__file__).parent / "trainers"
BASE_CONFIGURATION = "2d"

FINAL_CHECKPOINT = "checkpoint_final.pth"
LATEST_CHECKPOINT = "checkpoint_latest.pth"
BEST_CHECKPOINT = "checkpoint_best.pth"
RECORD_NAME = "training.json"
"""File next to the checkpoints with configuration, package versions and machine of a training."""

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class NnunetPaths:
    """The three folders of nnU-Net.

    Attributes:
        raw: Raw datasets.
        preprocessed: Plans and preprocessed data.
        results: Trained models.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the folders in the settings as absolute paths."""
        return cls(
            settings.nnunet_raw.resolve(), settings.nnunet_preprocessed.resolve(), settings.nnunet_results.resolve()
        )

    @property
    def raw_dataset(self) -> Path:
        """Folder of the raw dataset."""
        return self.raw / DATASET_NAME

    @property
    def preprocessed_dataset(self) -> Path:
        """Folder of the plans and the preprocessed data of the dataset."""
        return self.preprocessed / DATASET_NAME

    @property
    def plans_file(self) -> Path:
        """File with the plans of the dataset."""
        return self.preprocessed_dataset / f"{PLANS}.json"

    def model_folder(self, configuration: str) -> Path:
        """Return the model folder of a configuration, which contains its folds."""
        return self.results / DATASET_NAME / f"{TRAINER}__{PLANS}__{configuration}"

    def fold_folder(self, configuration: str, fold: int) -> Path:
        """Return the folder of one fold, with checkpoints, logs and validation."""
        return self.model_folder(configuration) / f"fold_{fold}"


def export_environment(paths: NnunetPaths, *, processes: int | None = None, loaders: int | None = None) -> None:
    """Set nnU-Net's environment variables: folders, trainer folder and numbers of processes.

    Call this before the first import of nnunetv2, which reads the number of processes at import.

    Args:
        paths: nnU-Net's folders.
        processes: Number of worker processes for preprocessing and export; default: one per core, at most 8.
        loaders: Number of worker processes that load and augment data; 0 loads in the training process.
    """
    os.environ["nnUNet_raw"] = str(paths.raw)  # noqa: SIM112  # nnU-Net's spelling
    os.environ["nnUNet_preprocessed"] = str(paths.preprocessed)  # noqa: SIM112
    os.environ["nnUNet_results"] = str(paths.results)  # noqa: SIM112
    os.environ["nnUNet_extTrainer"] = str(TRAINER_FOLDER)  # noqa: SIM112
    os.environ["nnUNet_def_n_proc"] = str(processes or min(usable_cores(), 8))  # noqa: SIM112
    os.environ["nnUNet_wandb_enabled"] = "0"  # noqa: SIM112  # droneseg.nnunet.callbacks logs to W&B
    if loaders is not None:
        os.environ["nnUNet_n_proc_DA"] = str(loaders)  # noqa: SIM112


def trained_folders(results: Path) -> list[Path]:
    """Return the model folders below nnU-Net's results that contain a finished or interrupted training."""
    return sorted({file.parent.parent for file in results.glob(f"{DATASET_NAME}/*/fold_*/checkpoint_*.pth")})


def checkpoint_files(folder: Path, checkpoint: str) -> list[Path]:
    """Return the checkpoint files of a model folder, one for each fold that has this checkpoint.

    Args:
        folder: Model folder of nnU-Net.
        checkpoint: File name of the checkpoint.

    Raises:
        ModelError: If the folder is not a model folder, or no fold has this checkpoint.
    """
    if not folder.is_dir():
        raise ModelError(
            f"No model at {folder}: the folder does not exist. Use the folder that `droneseg train` printed."
        )
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} is not an nnU-Net model folder; missing: {', '.join(missing)}.")
    files = sorted(folder.glob(f"fold_[0-9]*/{checkpoint}"))
    if not files:
        others = sorted({file.name for file in folder.glob("fold_*/checkpoint_*.pth")})
        hint = f" Found {', '.join(others)}; select one with `droneseg export --checkpoint`." if others else ""
        raise ModelError(f"{folder}: no fold contains {checkpoint}.{hint}")
    return files


def fold_files(folder: Path, checkpoint: str, folds: tuple[int, ...] | None) -> list[Path]:
    """Return the checkpoint files of some folds of a model folder; None selects all folds that have this checkpoint.

    Raises:
        ModelError: If the folder is not a model folder, or a fold does not have this checkpoint.
    """
    files = checkpoint_files(folder, checkpoint)
    found = {fold_number(file) for file in files}
    missing = sorted(set(folds or ()) - found)
    if missing:
        raise ModelError(
            f"{folder}: fold {', '.join(map(str, missing))} has no {checkpoint}. Choose --fold from "
            f"{', '.join(map(str, sorted(found)))}."
        )
    return [file for file in files if folds is None or fold_number(file) in folds]


def fold_number(checkpoint: Path) -> int:
    """Return the number of the fold that a checkpoint file belongs to."""
    return int(checkpoint.parent.name.removeprefix("fold_"))


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the device to compute on; "auto" selects the first available of cuda, mps and cpu.

    Raises:
        ConfigurationError: If the device is not available.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[choice]:
        usable = ", ".join(name for name, is_available in available.items() if is_available)
        raise ConfigurationError(f"device={choice} is not available. Use one of {usable}.")
    return torch.device(choice)


def cpu_has_bf16() -> bool:
    """Return whether this CPU has bfloat16 instructions; without them autocast is slower than float32."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe else False
