"""Model folders for other people: without what only the training needs, and as a zip file of nnU-Net."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import torch

from droneseg.core.errors import ModelError, OutputExistsError
from droneseg.core.files import file_sha256
from droneseg.nnunet.checkpoint import read_checkpoint
from droneseg.nnunet.paths import FINAL_CHECKPOINT, FINGERPRINT_NAME, FoldName, checkpoint_files, fold_name

PLANS_NAME = "champion"
"""Name of the plans of an installed model, so that it replaces no training of the user."""

_TRAINING_ONLY: Mapping[str, object] = {
    "optimizer_state": None,
    "grad_scaler_state": None,
    "_best_ema": None,
    "logging": {},
}
_NAMES_OF_PHOTOGRAPHS = ("gsd_m", "generated")  # keys of droneseg's block in dataset.json


@dataclass(frozen=True)
class InstalledModel:
    """Names under which nnU-Net finds a model that was installed from a zip file.

    Attributes:
        dataset: Name of the dataset.
        trainer: Class name of the trainer.
        configuration: Name of the configuration.
        folds: Folds with a checkpoint.
    """

    dataset: str
    trainer: str
    configuration: str
    folds: tuple[FoldName, ...]

    @property
    def folder(self) -> str:
        """Model folder below nnUNet_results."""
        return f"{self.dataset}/{self.trainer}__{PLANS_NAME}__{self.configuration}"

    @property
    def options(self) -> list[str]:
        """Options of `nnUNetv2_predict` that select the model."""
        folds = [str(fold) for fold in self.folds]
        return ["-d", self.dataset, "-tr", self.trainer, "-p", PLANS_NAME, "-c", self.configuration, "-f", *folds]


def write_model_zip(folder: Path, file: Path, *, licence: str, replace: bool = False) -> InstalledModel:
    """Write a zip file for `nnUNetv2_install_pretrained_model_from_zip`.

    Args:
        folder: Model folder.
        file: File to write, atomically.
        licence: Text for a file beside the plans.
        replace: Whether an existing file may be replaced.

    Raises:
        ModelError: If the folder is not a model folder.
        OutputExistsError: If the file exists and may not be replaced.
        UntrustedCheckpointError: If a checkpoint contains pickled objects other than numbers and text.
    """
    require_new_file(file, replace=replace)
    checkpoints = checkpoint_files(folder, FINAL_CHECKPOINT)
    contents = [read_checkpoint(checkpoint) for checkpoint in checkpoints]
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    model = InstalledModel(
        str(plans["dataset_name"]),
        str(contents[0]["trainer_name"]),
        str(contents[0]["init_args"]["configuration"]),
        tuple(map(fold_name, checkpoints)),
    )
    described = [folder / name for name in ("plans.json", "dataset.json", FINGERPRINT_NAME)]
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with ZipFile(staging, "w", ZIP_DEFLATED) as archive:
            for source in (*filter(Path.is_file, described), *checkpoints):
                archive.write(source, f"{model.folder}/{source.relative_to(folder).as_posix()}")
            archive.writestr(f"{model.folder}/LICENSE.md", licence)
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)
    return model


def require_new_file(file: Path, *, replace: bool) -> None:
    """Check that a file may be written. Call this before long work.

    Raises:
        OutputExistsError: If it is a folder, or exists and may not be replaced.
    """
    if file.is_dir():
        raise OutputExistsError(f"{file} is a folder. Choose the name of a file.")
    if file.exists() and not replace:
        raise OutputExistsError(f"{file} already exists and was not changed. Use --force to replace it.")


def find_checkpoints(folder: Path, folds: Sequence[FoldName], sha256: Sequence[str]) -> list[Path]:
    """Return the checkpoint of each fold that has the recorded SHA-256.

    Raises:
        ModelError: If a fold has no such checkpoint.
    """
    found: list[Path] = []
    for fold, wanted in zip(folds, sha256, strict=True):
        files = sorted((folder / f"fold_{fold}").glob("checkpoint_*.pth"))
        found += [file for file in files if file_sha256(file) == wanted][:1]
    if len(found) < len(folds) or not found:
        raise ModelError(
            f"{folder} does not have the checkpoints that the champion was exported from (SHA-256 "
            f"{', '.join(sha256)}). Choose the folder that `droneseg export --from` was given."
        )
    return found


def write_lean_model(folder: Path, checkpoints: Sequence[Path], out: Path) -> None:
    """Write a copy of a model folder without the state of the optimiser, the log and the names of photographs.

    Args:
        folder: Model folder.
        checkpoints: One checkpoint of each fold; written under the name of nnU-Net's final checkpoint.
        out: Folder to write into; it exists.

    Raises:
        ModelError: If a checkpoint cannot be read.
        UntrustedCheckpointError: If a checkpoint contains pickled objects other than numbers and text.
    """
    for name, clean in (("plans.json", dict), ("dataset.json", _without_names)):
        content = clean(json.loads((folder / name).read_text(encoding="utf-8")))
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for checkpoint in checkpoints:
        content = read_checkpoint(checkpoint)
        arguments = content.get("init_args", {}) | {"device": torch.device("cpu")}
        if "dataset_json" in arguments:
            arguments["dataset_json"] = _without_names(arguments["dataset_json"])
        dropped = {key: value for key, value in _TRAINING_ONLY.items() if key in content}
        target = out / checkpoint.parent.name / FINAL_CHECKPOINT
        target.parent.mkdir()
        torch.save(content | dropped | {"init_args": arguments}, target)


def _without_names(dataset: dict[str, Any]) -> dict[str, Any]:
    """Return a dataset.json without the names of photographs."""
    block = {key: value for key, value in dataset.get("droneseg", {}).items() if key not in _NAMES_OF_PHOTOGRAPHS}
    return dataset | ({"droneseg": block} if "droneseg" in dataset else {})
