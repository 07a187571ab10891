"""Fetch the champion's checkpoint as a model of nnU-Net, and store that of a new champion."""

from pathlib import Path

from droneseg.core.files import atomic_directory
from droneseg.model.bundle import read_bundle
from droneseg.model.checkpoint_store import (
    MARKER,
    CheckpointPull,
    checkpoint_folder,
    push_checkpoint,
    read_licence,
    require_replaceable,
)
from droneseg.model.store import require_tracked
from droneseg.nnunet.model_sharing import InstalledModel, find_checkpoints, write_lean_model, write_model_zip


def zip_checkpoint(champion: Path, pulled: CheckpointPull, file: Path, *, replace: bool = False) -> InstalledModel:
    """Write the fetched checkpoint, with its licence, as a zip file of nnU-Net.

    Args:
        champion: Folder of the champion's bundle.
        pulled: The fetched checkpoint.
        file: File to write.
        replace: Whether an existing file may be replaced.

    Raises:
        OutputExistsError: If the file exists and may not be replaced.
        UntrustedCheckpointError: If the checkpoint contains pickled objects other than numbers and text.
    """
    licence = read_licence(champion, pulled.record)
    return write_model_zip(pulled.folder, file, licence=licence, replace=replace)


def store_checkpoint(champion: Path, source: Path, remote: str | None = None) -> str:
    """Store the checkpoint of the champion beside it, for fine-tuning: in its own folder, `.dvc` file and remote.

    The optimiser's state, the log and the names of photographs are left out.

    Args:
        champion: Folder of the champion's bundle.
        source: Model folder of nnU-Net from which the champion was exported.
        remote: Name of the DVC remote; None for the default one.

    Returns:
        Name and address of the remote.

    Raises:
        ModelError: If the champion was not exported from this folder.
        StoreError: If the champion is not the tracked one, the folder was changed, or DVC fails.
        UntrustedCheckpointError: If a checkpoint contains pickled objects other than numbers and text.
    """
    bundle = read_bundle(champion)
    require_tracked(champion)
    require_replaceable(champion)
    provenance = bundle.manifest.provenance
    checkpoints = find_checkpoints(source, provenance.folds, provenance.checkpoint_sha256)
    with atomic_directory(checkpoint_folder(champion), marker=MARKER, replace=True) as staging_dir:
        write_lean_model(source, checkpoints, staging_dir)
    return push_checkpoint(champion, bundle.manifest, bundle.model_id, remote)
