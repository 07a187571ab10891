"""Model registry (`model-registry.jsonl`): entries, champion lineage, listing of models."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, field_validator

from droneseg.core.errors import BundleError, StoreError
from droneseg.core.files import write_text
from droneseg.model.bundle import MANIFEST_NAME, dvc_file_of, model_id_of, read_bundle
from droneseg.model.dvc_remote import DvcOutput, DvcRemote, dvc_directory_hash, read_dvc_file

REGISTRY_NAME = "model-registry.jsonl"

_LISTED_METRICS = ("miou", "unsafe_landing_rate")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegisteredModel(_Record):
    """A current or former champion.

    Attributes:
        model_id: Short hash of the manifest.
        version: Version of the tracked directory in DVC.
    """

    model_id: str
    version: DvcOutput


class RecordedInterval(_Record):
    """A metric with its 95 % confidence interval; None where it is undefined.

    Attributes:
        value: Value on all images.
        low: Lower bound.
        high: Upper bound.
    """

    value: float | None
    low: float | None
    high: float | None


class RecordedComparison(_Record):
    """Comparison of two models, as `droneseg models compare` reports it.

    Attributes:
        images: Number of images.
        about: Lines that describe models and data.
        figures: Metrics of the previous and of the new champion.
        differences: Differences of the metrics, new minus previous.
    """

    images: int
    about: tuple[str, ...]
    figures: tuple[Mapping[str, RecordedInterval], Mapping[str, RecordedInterval]]
    differences: Mapping[str, RecordedInterval]


class RegistryEntry(_Record):
    """A change of the champion.

    Attributes:
        when: UTC time in ISO 8601.
        who: Author according to git.
        action: "promote" for a new champion, "rollback" for a return to the previous one.
        model: Champion after the change.
        previous: Champion before the change; None for the first one.
        reason: Reason for the change.
        forced: Whether the promotion rule was overridden.
        figures: Comparison behind a promotion; None, stored as `{}`, if there was no comparison.
    """

    when: str
    who: str
    action: Literal["promote", "rollback"]
    model: RegisteredModel
    previous: RegisteredModel | None
    reason: str
    forced: bool = False
    figures: RecordedComparison | None = None

    @field_validator("figures", mode="before")
    @classmethod
    def _read_empty(cls, value: object) -> object:
        return value or None

    @field_serializer("figures", mode="wrap")
    def _write_empty(self, value: RecordedComparison | None, serialize: Any) -> object:
        return serialize(value) if value else {}


def read_registry(root: Path) -> list[RegistryEntry]:
    """Read all entries, oldest first; none if the registry does not exist.

    Raises:
        StoreError: If the file is not UTF-8 or a line is not a valid entry.
    """
    path = root / REGISTRY_NAME
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is corrupt: it is not UTF-8 text. Restore it from git.") from error
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(RegistryEntry.model_validate_json(line))
        except ValidationError as error:
            raise StoreError(
                f"{path}, line {number} is not a valid entry: {error.errors()[0]['msg']}. Restore it from git."
            ) from error
    return entries


def append_entry(root: Path, entry: RegistryEntry) -> None:
    """Append an entry to the registry in one step."""
    path = root / REGISTRY_NAME
    older = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, f"{older}{json.dumps(entry.model_dump(mode='json'))}\n")


def champion_lineage(entries: Sequence[RegistryEntry]) -> list[RegisteredModel]:
    """Return the champions that led to the current one, oldest first, without the models that were rolled back."""
    lineage: list[RegisteredModel] = []
    for entry in entries:
        if entry.action == "rollback":
            lineage = lineage[:-1]
            continue
        if entry.previous and (not lineage or lineage[-1] != entry.previous):
            lineage.append(entry.previous)
        lineage.append(entry.model)
    return lineage


def known_ids(entries: Sequence[RegistryEntry]) -> set[str]:
    """Return the ids of all models in the registry."""
    return {model.model_id for entry in entries for model in (entry.model, entry.previous) if model}


def is_known(folder: Path) -> bool:
    """Return whether a folder contains a registered model. Such a model can be fetched again, so it may be replaced.

    Raises:
        StoreError: If the registry cannot be read.
    """
    manifest = folder / MANIFEST_NAME
    known = known_ids(read_registry(dvc_file_of(folder).parent))
    return manifest.is_file() and model_id_of(manifest.read_bytes()) in known


def run_git(root: Path, *arguments: str) -> str:
    """Run a git command in a project and return its standard output.

    Raises:
        StoreError: If git is not installed or the command fails; the message includes git's output.
    """
    try:
        completed = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise StoreError("git is not installed; the model registry needs it. Install git.") from error
    except subprocess.CalledProcessError as error:
        raise StoreError(f"`git {arguments[0]}` failed: {' '.join(error.stderr.split())}") from error
    return completed.stdout


@dataclass(frozen=True)
class ModelVersion:
    """A current or former champion, and where it is available.

    Attributes:
        model_id: Short hash of the manifest; None if the model is neither in the registry nor on this machine.
        state: "champion", "previous" (a target of `droneseg models rollback`) or "rolled back".
        since: Time of the promotion; None if the registry does not contain the promotion.
        who: Author of the promotion; None as for `since`.
        why: Reason for the promotion; None as for `since`.
        figures: mIoU and unsafe landing rate at the promotion; empty without a comparison.
        is_local: Whether the champion's folder contains the model and its verification succeeds.
        in_remote: Whether the remote has all of its files; None if no remote was checked.
    """

    model_id: str | None
    state: Literal["champion", "previous", "rolled back"]
    since: str | None
    who: str | None
    why: str | None
    figures: Mapping[str, float | None]
    is_local: bool
    in_remote: bool | None


def list_models(folder: Path, remote: str | None) -> list[ModelVersion]:
    """List the champion and its predecessors, newest first.

    Args:
        folder: Folder of the champion.
        remote: Name of the remote in which to look for each model; None skips this check.

    Raises:
        StoreError: If the `.dvc` file is missing or the remote cannot be reached.
    """
    dvc_file = dvc_file_of(folder)
    champion = read_dvc_file(dvc_file)
    entries = read_registry(dvc_file.parent)
    source = DvcRemote(dvc_file.parent, remote) if remote else None
    local_id = _bundle_id(folder)
    # the folder may contain the user's own model, which is not the champion
    is_tracked = local_id is not None and dvc_directory_hash(folder) == champion.md5
    lineage = champion_lineage(entries)
    registered = {model.version: model for entry in entries for model in (entry.previous, entry.model) if model}

    def describe(version: DvcOutput) -> ModelVersion:
        model = registered.get(version)
        promotion = _promotion(entries, model.model_id) if model else None
        model_id = model.model_id if model else local_id if is_tracked else None
        return ModelVersion(
            model_id=model_id,
            state="champion" if version == champion else "previous" if model in lineage else "rolled back",
            since=promotion.when if promotion else None,
            who=promotion.who if promotion else None,
            why=promotion.reason if promotion else None,
            figures=_listed_metrics(promotion),
            is_local=model_id is not None and model_id == local_id,
            in_remote=source.has_all(version.md5) if source else None,
        )

    return [describe(version) for version in {champion: None, **dict.fromkeys(reversed(registered))}]


def _bundle_id(folder: Path) -> str | None:
    """Return the id of the model in a folder; None if it is missing or invalid."""
    try:
        return read_bundle(folder).model_id
    except BundleError:
        return None


def _promotion(entries: Sequence[RegistryEntry], model_id: str) -> RegistryEntry | None:
    """Return the latest promotion of a model."""
    promotions = [entry for entry in entries if entry.action == "promote" and entry.model.model_id == model_id]
    return promotions[-1] if promotions else None


def _listed_metrics(entry: RegistryEntry | None) -> dict[str, float | None]:
    if entry is None or entry.figures is None:
        return {}
    _, promoted = entry.figures.figures
    return {name: promoted[name].value for name in _LISTED_METRICS}
