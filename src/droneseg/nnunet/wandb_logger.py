"""Weights & Biases runs and artifacts."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from droneseg.core.errors import MissingDependencyError, TrainingError
from droneseg.core.files import write_text
from droneseg.core.images import Image

RUN_NAME = "wandb-run.json"
"""File beside the checkpoints that says which run a training is."""


class TrackedRun(BaseModel):
    """A run of W&B, as it is kept beside the checkpoints.

    Attributes:
        id: By which W&B knows it.
        project: Where it is listed.
        mode: Whether it is sent while it runs.
        group: What it belongs to, such as a sweep.
        images: Whether validation overlays are sent: photographs leave the machine only then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    project: str
    mode: Literal["online", "offline"]
    group: str | None = None
    images: bool = False


def choose_mode(mode: Literal["auto", "online", "offline"], *, api_key: str | None) -> Literal["online", "offline"]:
    """Return how to send: "auto" is online with a key and offline without. The key is handed to W&B."""
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key  # it may be from .env, which W&B does not read
    if mode != "auto":
        return mode
    return "online" if api_key or _logged_in() else "offline"


def keep_run(
    folder: Path, *, project: str, mode: Literal["online", "offline"], group: str | None, images: bool
) -> TrackedRun:
    """Write down which run the training in a folder is: the one it was, if it goes on in the same project."""
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
    """Return the run that the training in a folder is; None if it was not tracked."""
    file = folder / RUN_NAME
    return TrackedRun.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


class Run:
    """A run that is being written.

    Args:
        folder: Of the training.
        name: As people read it; None leaves it.
        config: Of the training.
        aside: Where W&B's own files go; default: to the training.

    Raises:
        MissingDependencyError: If W&B is not installed.
        TrainingError: If W&B refuses the key or cannot be reached.
    """

    def __init__(self, folder: Path, *, name: str | None, config: Mapping[str, Any], aside: Path | None = None) -> None:
        kept = read_run(folder)
        if kept is None:
            raise TrainingError(f"{folder} has no {RUN_NAME}: start the training with tracking=wandb.")
        self._wandb = wandb = _wandb()
        self.wants_images = kept.images
        in_sweep = "WANDB_SWEEP_ID" in os.environ  # set by W&B's own agent, which names the run
        try:
            self._run = wandb.init(
                project=kept.project,
                group=kept.group,
                id=None if in_sweep else kept.id,
                name=None if in_sweep else name,
                resume="allow" if kept.mode == "online" and not in_sweep else None,
                mode=kept.mode,
                dir=str(aside or folder),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise TrainingError(
                f"W&B does not take the run: {str(error).rstrip('.')}. "
                "Check WANDB_API_KEY, or use tracking.mode=offline."
            ) from error
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Send the figures of an epoch; W&B takes one that is told again, after a crash, for the same."""
        self._run.log({"epoch": epoch, **figures}, step=epoch)

    def log_images(self, epoch: int, images: Mapping[str, Image]) -> None:
        """Send pictures by their names: RGB, shape (H, W, 3), dtype uint8."""
        pictures = {f"validation/{name}": self._wandb.Image(image, caption=name) for name, image in images.items()}
        self._run.log({"epoch": epoch, **pictures}, step=epoch)

    def log_bundle(self, folder: Path, files: Sequence[str], manifest: Mapping[str, Any], *, name: str) -> None:
        """Send a bundle as an artifact, its manifest as metadata."""
        artifact = self._wandb.Artifact(name, type="model", metadata=dict(manifest))
        for file in files:
            artifact.add_file(str(folder / file), name=file)
        self._run.log_artifact(artifact)

    def finish(self, *, failed: bool = False) -> None:
        """Send what is left and end."""
        self._run.finish(exit_code=int(failed))


def send_bundle(
    fold: Path, folder: Path, files: Sequence[str], manifest: Mapping[str, Any], *, name: str
) -> str | None:
    """Send a bundle to the run of the training it was made of.

    Args:
        fold: Folder of that training.
        folder: The bundle.
        files: Its files, the manifest among them.
        manifest: What is in it.
        name: Of the artifact.

    Returns:
        The run's id, or None if the training was not tracked.

    Raises:
        TrainingError: As `Run` does.
    """
    kept = read_run(fold)
    if kept is None:
        return None
    # the training is done: `dvc repro` would run it again if anything in its folder changed
    run = Run(fold, name=None, config={}, aside=folder.parent)
    run.log_bundle(folder, files, manifest, name=name)
    run.finish()
    return kept.id


def read_config(file: Path) -> dict[str, Any]:
    """Return what a training's record says, for W&B's table of configurations."""
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**record.pop("config"), **record}


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError("wandb", "train") from error
    return wandb


def _logged_in() -> bool:
    """Say whether `wandb login` left a key."""
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False
