"""Pull and push the nnU-Net checkpoint of the champion, which fine-tuning starts from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from droneseg.core.errors import StoreError
from droneseg.core.files import check_writable
from droneseg.model.bundle import Manifest, dvc_file_of
from droneseg.model.dvc_remote import (
    DvcRemote,
    dvc_directory_hash,
    project_lock,
    read_dvc_file,
    read_meta,
    write_dvc_file,
)
from droneseg.model.registry import read_registry
from droneseg.model.store import OnProgress, ProgressTotal, fetched_folder, run_dvc, send_missing

MARKER = "plans.json"
"""File that every model folder of nnU-Net contains."""
LICENCE_NAME = "MODEL_LICENSE.md"
UNKNOWN_LICENCE = "the terms of the data it was trained on"

_FOLDER = "nnunet-model"
_FILES = re.compile(r"(plans|dataset|dataset_fingerprint)\.json|fold_([0-9]+|all)/checkpoint_[a-z]+\.pth")


@dataclass(frozen=True)
class CheckpointRecord:
    """What the `.dvc` file of the checkpoint says about it.

    Attributes:
        model_id: Id of the bundle that was exported from it; None if it is unknown.
        licence: Licence of the weights; None if it is unknown.
        champion_id: Id of the champion; None if the registry does not contain it.
    """

    model_id: str | None
    licence: str | None
    champion_id: str | None

    @property
    def is_of_another_model(self) -> bool:
        """Whether the checkpoint is known not to belong to the champion."""
        return self.champion_id is not None and self.model_id != self.champion_id


@dataclass(frozen=True)
class CheckpointPull:
    """Result of a pull.

    Attributes:
        folder: Model folder of nnU-Net.
        record: What is known about the checkpoint.
        remote: Name and address of the remote.
        fetched: Whether files were fetched; False if the checkpoint was already present.
    """

    folder: Path
    record: CheckpointRecord
    remote: str
    fetched: bool


def checkpoint_folder(champion: Path) -> Path:
    """Return the model folder with the champion's checkpoint: `nnunet-model` for `nnUNet_results/champion`."""
    return dvc_file_of(champion).with_name(_FOLDER)


def read_record(champion: Path) -> CheckpointRecord | None:
    """Return what is recorded about the stored checkpoint; None if no checkpoint is stored.

    Raises:
        StoreError: If a `.dvc` file or the registry is damaged.
    """
    dvc_file = _dvc_file(champion)
    if not dvc_file.is_file():
        return None
    read_dvc_file(dvc_file)
    meta = read_meta(dvc_file)
    return CheckpointRecord(meta.get("model_id"), meta.get("license"), _champion_id(champion))


def _dvc_file(champion: Path) -> Path:
    return dvc_file_of(champion).with_name(f"{_FOLDER}.dvc")


def _champion_id(champion: Path) -> str | None:
    dvc_file = dvc_file_of(champion)
    if not dvc_file.is_file():
        return None
    version = read_dvc_file(dvc_file)
    models = [entry.model for entry in read_registry(dvc_file.parent)]
    return next((model.model_id for model in reversed(models) if model.version == version), None)


def pull_checkpoint(
    champion: Path,
    remote: str | None = None,
    *,
    replace: bool = False,
    progress: OnProgress = lambda _done, _total: None,
) -> CheckpointPull:
    """Fetch the version of the champion's checkpoint that its `.dvc` file records.

    All files are downloaded into a temporary folder and verified before they replace the folder in one step.

    Args:
        champion: Folder of the champion's bundle; it need not exist.
        remote: Name of the DVC remote; None for the default one.
        replace: Whether a changed copy may be replaced; an earlier version that the remote stores always may.
        progress: Progress callback.

    Raises:
        StoreError: If there is no checkpoint, or it cannot be fetched.
        OutputExistsError: If the folder contains something else and `replace` is False.
        MissingDependencyError: If DVC is not installed.
    """
    folder, dvc_file = checkpoint_folder(champion), _dvc_file(champion)
    source = DvcRemote(dvc_file.parent, remote)
    record = read_record(champion)
    if record is None:
        raise StoreError(
            f"{dvc_file} is missing, so no checkpoint is stored. Ask the author of the model to run "
            "`droneseg models push --checkpoint MODEL_FOLDER`."
        )
    version = read_dvc_file(dvc_file)
    with project_lock(dvc_file.parent, "pull"), TemporaryDirectory() as temporary:
        present = dvc_directory_hash(folder, tracked=folder)
        if present == version.md5:
            return CheckpointPull(folder, record, str(source), fetched=False)
        listing = source.fetch_listing(version.md5, Path(temporary))
        _require_model_files(listing, dvc_file)
        replace = replace or (present is not None and source.has(present))
        check_writable(folder, marker=MARKER, replace=replace)
        on_bytes = ProgressTotal(version.size_bytes, progress)
        with fetched_folder(source, listing, folder, MARKER, on_bytes):
            pass
    return CheckpointPull(folder, record, str(source), fetched=True)


def _require_model_files(files: Mapping[str, str], dvc_file: Path) -> None:
    """Raise StoreError unless all files, and only those, are files of a model folder of nnU-Net."""
    wrong = sorted(name for name in files if not _FILES.fullmatch(name))
    missing = sorted({MARKER, "dataset.json"} - set(files))
    if wrong or missing or not any(name.endswith(".pth") for name in files):
        reason = f"unexpected {', '.join(wrong[:3])}" if wrong else f"missing {', '.join(missing) or 'checkpoint'}"
        raise StoreError(
            f"The version that {dvc_file} records is not a model folder of nnU-Net ({reason}). Restore "
            f"{dvc_file.name} from git."
        )


def require_replaceable(champion: Path) -> None:
    """Check that the folder of the checkpoint may be replaced: it is missing, or is the recorded version.

    Raises:
        StoreError: If it contains something else.
    """
    folder, dvc_file = checkpoint_folder(champion), _dvc_file(champion)
    present = dvc_directory_hash(folder, tracked=folder)
    if present is not None and not (dvc_file.is_file() and read_dvc_file(dvc_file).md5 == present):
        raise StoreError(f"{folder} is not the version that {dvc_file.name} records. Move it to another place.")


def push_checkpoint(champion: Path, manifest: Manifest, model_id: str, remote: str | None = None) -> str:
    """Add the folder of the checkpoint to DVC as that of a model, and upload it.

    Args:
        champion: Folder of the champion's bundle; the folder of the checkpoint is beside its `.dvc` file.
        manifest: Manifest of the model.
        model_id: Id of the model.
        remote: Name of the DVC remote; None for the default one.

    Returns:
        Name and address of the remote.

    Raises:
        StoreError: If DVC fails.
        MissingDependencyError: If DVC is not installed.
    """
    folder, dvc_file = checkpoint_folder(champion), _dvc_file(champion)
    root = dvc_file.parent
    target = DvcRemote(root, remote)
    target.has(str(dvc_directory_hash(folder, tracked=folder)))  # fails within 20 s if the remote is unreachable
    run_dvc(root, "add", "--quiet", _FOLDER)
    write_dvc_file(dvc_file, read_dvc_file(dvc_file), meta={"model_id": model_id, "license": manifest.license})
    run_dvc(root, "push", "--quiet", dvc_file.name, *(("--remote", remote) if remote else ()))
    send_missing(target, folder)
    return str(target)


def read_licence(champion: Path, record: CheckpointRecord) -> str:
    """Return the licence of the stored checkpoint: the recorded line, and the text of the file that it names."""
    line = record.licence or UNKNOWN_LICENCE
    file = dvc_file_of(champion).with_name(LICENCE_NAME)
    text = file.read_text(encoding="utf-8") if LICENCE_NAME in line and file.is_file() else ""
    return f"{line}\n\n{text}".strip() + "\n"
