"""Model registry (model-registry.jsonl): entries, lineage, listing."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from droneseg.core.errors import BundleError, StoreError
from droneseg.core.files import write_text
from droneseg.model.bundle import MANIFEST_NAME, dvc_file_of, model_id_of, read_bundle
from droneseg.model.dvc_remote import DvcOutput, Remote, dvc_directory_hash, read_dvc_file

REGISTRY_NAME = "model-registry.jsonl"


class RegisteredModel(BaseModel):
    """A model that is or was the champion.

    Attributes:
        model_id: Short hash of its manifest.
        version: What DVC knows it by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model_id: str
    version: DvcOutput


class RegistryEntry(BaseModel):
    """A change of the champion.

    Attributes:
        when: UTC, ISO 8601.
        who: As git knows them.
        action: Whether a candidate became the champion, or the one before it again.
        model: The champion from then on.
        previous: The champion until then; None for the first one.
        reason: Why.
        forced: Whether the figures alone would not have allowed it.
        figures: Of both on the same photographs, and their differences, as `models compare` reports them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    when: str
    who: str
    action: Literal["promote", "rollback"]
    model: RegisteredModel
    previous: RegisteredModel | None
    reason: str
    forced: bool = False
    figures: dict[str, Any] = {}


def read_registry(root: Path) -> list[RegistryEntry]:
    """Read all entries, the oldest first; none if there is no registry yet.

    Raises:
        StoreError: If a line is not one; the message says which.
    """
    path = root / REGISTRY_NAME
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is damaged: it is no UTF-8 text. Take it from git again.") from error
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(RegistryEntry.model_validate_json(line))
        except ValidationError as error:
            raise StoreError(
                f"{path}, line {number} is no entry: {error.errors()[0]['msg']}. See git's log."
            ) from error
    return entries


def append_entry(root: Path, entry: RegistryEntry) -> None:
    """Add an entry to the registry in one step."""
    path = root / REGISTRY_NAME
    older = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, f"{older}{json.dumps(entry.model_dump(mode='json'))}\n")


def champion_lineage(entries: Sequence[RegistryEntry]) -> list[RegisteredModel]:
    """Return the champions that lead to today's, the oldest first: what was rolled back is not among them."""
    line: list[RegisteredModel] = []
    for entry in entries:
        if entry.action == "rollback":
            line = line[:-1]
            continue
        if entry.previous and (not line or line[-1] != entry.previous):
            line.append(entry.previous)
        line.append(entry.model)
    return line


def known_ids(entries: Sequence[RegistryEntry]) -> set[str]:
    """Return the ids of all models the registry has ever seen."""
    return {model.model_id for entry in entries for model in (entry.model, entry.previous) if model}


def is_known(folder: Path) -> bool:
    """Say whether a folder's manifest is that of a model the registry knows, so that it can be fetched again.

    Raises:
        StoreError: If the registry cannot be read.
    """
    manifest = folder / MANIFEST_NAME
    known = known_ids(read_registry(dvc_file_of(folder).parent))
    return manifest.is_file() and model_id_of(manifest.read_bytes()) in known


def run_git(root: Path, *arguments: str) -> str:
    """Run git in a project and return what it says.

    Raises:
        StoreError: If it fails or is not there; with git's words.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise StoreError("git is not installed; the registry of models is kept in git.") from error
    except subprocess.CalledProcessError as error:
        raise StoreError(f"`git {arguments[0]}` failed: {' '.join(error.stderr.split())}") from error
    return done.stdout


@dataclass(frozen=True)
class ModelVersion:
    """A model that is or was the champion.

    Attributes:
        model_id: Short hash of its manifest; None if the registry does not know it and it is not here.
        state: "champion", "before it" (what a rollback leads to, or further back) or "rolled back".
        since: When it became the champion, if the registry knows.
        who: Who made it so.
        why: Their reason.
        figures: mIoU and unsafe landing rate at that time, if it was compared.
        here: Whether it lies in the champion's folder and verifies.
        in_remote: Whether the remote holds all of it; None if none was asked.
    """

    model_id: str | None
    state: str
    since: str | None
    who: str | None
    why: str | None
    figures: dict[str, Any]
    is_local: bool
    in_remote: bool | None


def list_models(folder: Path, remote: str | None) -> list[ModelVersion]:
    """List the champion and those before it, the newest first.

    Args:
        folder: The champion's.
        remote: Name of a remote to ask whether it holds each; None asks none.

    Raises:
        StoreError: If there is no `.dvc` file, or the remote cannot be reached.
    """
    pointer = dvc_file_of(folder)
    version = read_dvc_file(pointer)
    entries = read_registry(pointer.parent)
    place = Remote(pointer.parent, remote) if remote else None
    is_local = _id_of(folder)
    # somebody's own model is in the folder, too, but is no champion
    tracked = is_local is not None and dvc_directory_hash(folder) == version.md5
    line = champion_lineage(entries)
    models = {model.version: model for entry in entries for model in (entry.previous, entry.model) if model}
    shelved = []
    for each in {version: None, **dict.fromkeys(reversed(models))}:
        model = models.get(each)
        made = _promotion(entries, model.model_id) if model else None
        known = model.model_id if model else is_local if tracked else None
        state = "champion" if each == version else "before it" if model in line else "rolled back"
        shelved.append(
            ModelVersion(
                known,
                state,
                made.when if made else None,
                made.who if made else None,
                made.reason if made else None,
                _figures(made),
                is_local=known is not None and known == is_local,
                in_remote=place.holds(each.md5) if place else None,
            )
        )
    return shelved


def _id_of(folder: Path) -> str | None:
    try:
        return read_bundle(folder).model_id
    except BundleError:
        return None


def _promotion(entries: list[RegistryEntry], model_id: str) -> RegistryEntry | None:
    found = [entry for entry in entries if entry.action == "promote" and entry.model.model_id == model_id]
    return found[-1] if found else None


def _figures(entry: RegistryEntry | None) -> dict[str, Any]:
    figures = entry.figures.get("figures") if entry else None
    return {name: figures[1][name]["value"] for name in ("miou", "unsafe_landing_rate")} if figures else {}
