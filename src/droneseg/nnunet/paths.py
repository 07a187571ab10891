"""nnU-Net folders, file names and environment variables; device selection."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from droneseg.core.classes import DATASET_NAME
from droneseg.core.errors import ConfigurationError, ModelError
from droneseg.core.settings import Settings
from droneseg.core.system import usable_cores

if TYPE_CHECKING:
    import torch  # commands that run without torch also import this module

PLANS = "nnUNetPlans"
TRAINER = "DroneSegTrainer"
TRAINER_FOLDER = Path(__file__).parent / "trainers"
BASE_CONFIGURATION = "2d"

FINAL_CHECKPOINT = "checkpoint_final.pth"
LATEST_CHECKPOINT = "checkpoint_latest.pth"
BEST_CHECKPOINT = "checkpoint_best.pth"
RECORD_NAME = "training.json"
"""File next to the checkpoints with configuration, package versions and machine of a training."""

FINGERPRINT_NAME = "dataset_fingerprint.json"
"""File with nnU-Net's statistics of a dataset, next to the plans and in model folders."""
SPLITS_NAME = "splits_final.json"
"""File with the folds, in the folder of a raw dataset or next to the plans."""
SETTINGS_NAME = "trainer_settings.json"
"""File next to the checkpoints with the settings of `DroneSegTrainer`."""

_NO_PLANS = ("dataset", "dataset_fingerprint", "splits_final")  # other files next to the plans

FoldName: TypeAlias = int | Literal["all"]
"""Number of a fold, or "all" for nnU-Net's training on all images."""
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class NnunetPaths:
    """The three folders of nnU-Net.

    Attributes:
        raw: Raw datasets.
        preprocessed: Plans and preprocessed data.
        results: Trained models.
        dataset: Name of the dataset.
        plans: Name of the plans.
    """

    raw: Path
    preprocessed: Path
    results: Path
    dataset: str = DATASET_NAME
    plans: str = PLANS

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the folders in the settings as absolute paths, for droneseg's own dataset and nnU-Net's plans."""
        return cls(
            settings.nnunet_raw.resolve(), settings.nnunet_preprocessed.resolve(), settings.nnunet_results.resolve()
        )

    def select(self, dataset: int | str | None = None, plans: str | None = None) -> Self:
        """Return the same folders for another dataset and other plans.

        Args:
            dataset: Number or name of the dataset; None keeps it.
            plans: Name of the plans; None keeps it.

        Raises:
            ConfigurationError: If there is no such dataset, or several have this number.
        """
        name = self.dataset if dataset is None else self._find_dataset(dataset)
        return replace(self, dataset=name, plans=plans or self.plans)

    def datasets(self) -> list[str]:
        """Return the names of all datasets in the three folders."""
        folders = (self.raw, self.preprocessed, self.results)
        found = {folder.name for parent in folders for folder in parent.glob("Dataset[0-9]*_*") if folder.is_dir()}
        return sorted(found)

    def plans_names(self) -> list[str]:
        """Return the names of all plans of the dataset."""
        files = sorted(self.preprocessed_dataset.glob("*.json"))
        return [file.stem for file in files if file.stem not in _NO_PLANS]

    def _find_dataset(self, dataset: int | str) -> str:
        """Return the name of the dataset with this number or name."""
        number = int(dataset) if str(dataset).isdecimal() else None
        known = self.datasets()
        matches = [name for name in known if dataset == name or number == dataset_number(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ConfigurationError(f"dataset={dataset}: choose one of {', '.join(matches)} by its name.")
        there = f"choose one of {', '.join(known)}" if known else "nnUNet_raw and nnUNet_preprocessed have none"
        raise ConfigurationError(f"dataset={dataset} does not exist in {self.raw} or {self.preprocessed}; {there}.")

    @property
    def raw_dataset(self) -> Path:
        """Folder of the raw dataset."""
        return self.raw / self.dataset

    @property
    def preprocessed_dataset(self) -> Path:
        """Folder of the plans and the preprocessed data of the dataset."""
        return self.preprocessed / self.dataset

    @property
    def plans_file(self) -> Path:
        """File with the plans of the dataset."""
        return self.preprocessed_dataset / f"{self.plans}.json"

    def model_folder(self, configuration: str) -> Path:
        """Return the model folder of a configuration, which contains its folds."""
        return self.results / self.dataset / f"{TRAINER}__{self.plans}__{configuration}"

    def fold_folder(self, configuration: str, fold: int) -> Path:
        """Return the folder of one fold, with checkpoints, logs and validation."""
        return self.model_folder(configuration) / f"fold_{fold}"


def dataset_number(name: str) -> int:
    """Return the number in the name of a dataset: 101 of `Dataset101_DroneSeg`."""
    return int(name.removeprefix("Dataset").partition("_")[0])


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
    os.environ["nnUNet_extTrainer"] = trainer_path()  # noqa: SIM112
    os.environ["nnUNet_def_n_proc"] = str(processes or min(usable_cores(), 8))  # noqa: SIM112
    os.environ["nnUNet_wandb_enabled"] = "0"  # noqa: SIM112  # droneseg.nnunet.callbacks logs to W&B
    if loaders is not None:
        os.environ["nnUNet_n_proc_DA"] = str(loaders)  # noqa: SIM112


def trainer_path() -> str:
    """Return the value of `nnUNet_extTrainer`: the user's own folders, then that of droneseg's trainer."""
    return os.pathsep.join(dict.fromkeys([*_trainer_folders(), str(TRAINER_FOLDER)]))


def finds_our_trainer() -> bool:
    """Return whether nnU-Net's own commands find `DroneSegTrainer` in the current environment."""
    return any(Path(folder).resolve() == TRAINER_FOLDER.resolve() for folder in _trainer_folders())


def _trainer_folders() -> list[str]:
    return [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder]  # noqa: SIM112


def trained_folders(results: Path) -> list[Path]:
    """Return the model folders below nnU-Net's results that contain a finished or interrupted training."""
    return sorted({file.parent.parent for file in results.glob("Dataset*/*/fold_*/checkpoint_*.pth")})


def checkpoint_files(folder: Path, checkpoint: str) -> list[Path]:
    """Return the checkpoint files of a model folder, one for each fold that has this checkpoint, fold_all last.

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
    files = [*sorted(folder.glob(f"fold_[0-9]*/{checkpoint}")), *folder.glob(f"fold_all/{checkpoint}")]
    if not files:
        others = sorted({file.name for file in folder.glob("fold_*/checkpoint_*.pth")})
        hint = f" Found {', '.join(others)}; select one with `droneseg export --checkpoint`." if others else ""
        raise ModelError(f"{folder}: no fold contains {checkpoint}.{hint}")
    return files


def fold_files(folder: Path, checkpoint: str, folds: tuple[FoldName, ...] | None) -> list[Path]:
    """Return the checkpoint files of some folds of a model folder.

    Args:
        folder: Model folder of nnU-Net.
        checkpoint: File name of the checkpoint.
        folds: Folds; None selects all numbered folds that have this checkpoint, or else fold_all.

    Raises:
        ModelError: If the folder is not a model folder, or a fold does not have this checkpoint.
    """
    files = checkpoint_files(folder, checkpoint)
    by_fold = {fold_name(file): file for file in files}
    missing = [name for name in folds or () if name not in by_fold]
    if missing:
        raise ModelError(
            f"{folder}: fold {', '.join(map(str, missing))} has no {checkpoint}. Choose --fold from "
            f"{', '.join(map(str, by_fold))}."
        )
    numbered = [file for name, file in by_fold.items() if name != "all"]
    return [by_fold[name] for name in folds] if folds else numbered or files


def fold_name(checkpoint: Path) -> FoldName:
    """Return the fold that a checkpoint file belongs to."""
    name = checkpoint.parent.name.removeprefix("fold_")
    return "all" if name == "all" else int(name)


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
