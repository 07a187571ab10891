"""Weights & Biases runs and artifacts."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from droneseg.core.errors import TrainingError, optional_import
from droneseg.core.files import write_text
from droneseg.core.images import Image

RUN_NAME = "wandb-run.json"
"""File next to the checkpoints with the W&B run of a training."""


class TrackedRun(BaseModel):
    """W&B run of a training, as stored next to its checkpoints.

    Attributes:
        id: Run id.
        project: Project of the run.
        mode: "online" uploads the run during the training, "offline" only stores it.
        group: Group of the run, for example a sweep.
        images: Whether validation overlays, which contain the user's images, are uploaded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    project: str
    mode: Literal["online", "offline"]
    group: str | None = None
    images: bool = False


def choose_mode(mode: Literal["auto", "online", "offline"], *, api_key: str | None) -> Literal["online", "offline"]:
    """Return the W&B mode of a run; "auto" is online if there is an API key or a login, otherwise offline.

    Sets `WANDB_API_KEY`, from which W&B reads the key.
    """
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key  # the key may come from .env, which W&B does not read
    if mode != "auto":
        return mode
    return "online" if api_key or _logged_in() else "offline"


def choose_run(
    folder: Path, *, project: str, mode: Literal["online", "offline"], group: str | None, images: bool
) -> TrackedRun:
    """Choose the run of a training and save it in the folder; a resumed training keeps its run in the same project.

    Args:
        folder: Folder of the fold.
        project: W&B project.
        mode: "online" uploads the run during the training, "offline" only stores it.
        group: Group of the run.
        images: Whether validation overlays are uploaded.
    """
    before = read_run(folder)
    same = before is not None and before.project == project
    run = TrackedRun(
        id=before.id if before and same else uuid.uuid4().hex[:8],
        project=project,
        mode=mode,
        group=group,
        images=images,
    )
    write_text(folder / RUN_NAME, run.model_dump_json(indent=2) + "\n")
    return run


def read_run(folder: Path) -> TrackedRun | None:
    """Return the run of the training in a folder, or None if it is not tracked."""
    file = folder / RUN_NAME
    return TrackedRun.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


class Run:
    """An open W&B run.

    Args:
        folder: Folder of the fold.
        name: Display name of the run; None keeps the current one.
        config: Configuration of the training.
        wandb_folder: Folder for W&B's own files; default: the folder of the fold.

    Raises:
        MissingDependencyError: If W&B is not installed.
        TrainingError: If W&B rejects the key or cannot be reached.
    """

    def __init__(
        self, folder: Path, *, name: str | None, config: Mapping[str, Any], wandb_folder: Path | None = None
    ) -> None:
        tracked = read_run(folder)
        if tracked is None:
            raise TrainingError(f"{folder} has no {RUN_NAME}. Train with tracking=wandb.")
        self._wandb = wandb = _wandb()
        self.wants_images = tracked.images
        in_sweep = "WANDB_SWEEP_ID" in os.environ  # set by `wandb agent`, which chooses id and name
        try:
            self._run = wandb.init(
                project=tracked.project,
                group=tracked.group,
                id=None if in_sweep else tracked.id,
                name=None if in_sweep else name,
                resume="allow" if tracked.mode == "online" and not in_sweep else None,
                mode=tracked.mode,
                dir=str(wandb_folder or folder),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise TrainingError(
                f"W&B did not start the run: {str(error).rstrip('.')}. "
                "Check WANDB_API_KEY, or use tracking.mode=offline."
            ) from error
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch; after a crash, W&B ignores an epoch that it already has."""
        self._run.log({"epoch": epoch, **metrics}, step=epoch)

    def log_images(self, epoch: int, images: Mapping[str, Image]) -> None:
        """Log images by name; RGB, shape (H, W, 3), dtype uint8."""
        media = {f"validation/{name}": self._wandb.Image(image, caption=name) for name, image in images.items()}
        self._run.log({"epoch": epoch, **media}, step=epoch)

    def log_bundle(self, folder: Path, files: Sequence[str], manifest: Mapping[str, Any], *, name: str) -> None:
        """Log a bundle as an artifact, with its manifest as metadata."""
        artifact = self._wandb.Artifact(name, type="model", metadata=dict(manifest))
        for file in files:
            artifact.add_file(str(folder / file), name=file)
        self._run.log_artifact(artifact)

    def finish(self, *, failed: bool = False) -> None:
        """Upload remaining data and close the run."""
        self._run.finish(exit_code=int(failed))


def send_bundle(
    fold: Path, folder: Path, files: Sequence[str], manifest: Mapping[str, Any], *, name: str
) -> str | None:
    """Log a bundle as an artifact of the run of its training.

    Args:
        fold: Folder of the training's fold.
        folder: Folder of the bundle.
        files: File names in the bundle, including the manifest.
        manifest: Contents of the manifest.
        name: Name of the artifact.

    Returns:
        The run id, or None if the training was not tracked.

    Raises:
        TrainingError: If W&B rejects the key or cannot be reached.
    """
    tracked = read_run(fold)
    if tracked is None:
        return None
    # W&B's files are not written to the training's folder: a change there would make `dvc repro` repeat the training
    run = Run(fold, name=None, config={}, wandb_folder=folder.parent)
    run.log_bundle(folder, files, manifest, name=name)
    run.finish()
    return tracked.id


def read_config(file: Path) -> dict[str, Any]:
    """Return the record of a training as a flat configuration for W&B."""
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**record.pop("config"), **record}


def _wandb() -> Any:
    with optional_import("wandb", "train"):
        import wandb
    return wandb


def _logged_in() -> bool:
    """Return whether `wandb login` has stored a key."""
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False
