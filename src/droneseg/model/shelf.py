"""What models there are: the champions of the registry, and where each is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from droneseg.core.errors import BundleError
from droneseg.model.bundle import pointer_to, read_bundle
from droneseg.model.digests import version_of
from droneseg.model.pointer import read_pointer
from droneseg.model.registry import Entry, line_of_champions, read_registry
from droneseg.model.remote import Remote


@dataclass(frozen=True)
class Shelved:
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
    here: bool
    in_remote: bool | None


def list_models(folder: Path, remote: str | None) -> list[Shelved]:
    """List the champion and those before it, the newest first.

    Args:
        folder: The champion's.
        remote: Name of a remote to ask whether it holds each; None asks none.

    Raises:
        StoreError: If there is no `.dvc` file, or the remote cannot be reached.
    """
    pointer = pointer_to(folder)
    version = read_pointer(pointer)
    entries = read_registry(pointer.parent)
    place = Remote(pointer.parent, remote) if remote else None
    here = _id_of(folder)
    # somebody's own model is in the folder, too, but is no champion
    tracked = here is not None and version_of(folder) == version.md5
    line = line_of_champions(entries)
    models = {model.version: model for entry in entries for model in (entry.previous, entry.model) if model}
    shelved = []
    for each in {version: None, **dict.fromkeys(reversed(models))}:
        model = models.get(each)
        made = _promotion(entries, model.model_id) if model else None
        known = model.model_id if model else here if tracked else None
        state = "champion" if each == version else "before it" if model in line else "rolled back"
        shelved.append(
            Shelved(
                known,
                state,
                made.when if made else None,
                made.who if made else None,
                made.reason if made else None,
                _figures(made),
                here=known is not None and known == here,
                in_remote=place.holds(each.md5) if place else None,
            )
        )
    return shelved


def _id_of(folder: Path) -> str | None:
    try:
        return read_bundle(folder).model_id
    except BundleError:
        return None


def _promotion(entries: list[Entry], model_id: str) -> Entry | None:
    found = [entry for entry in entries if entry.action == "promote" and entry.model.model_id == model_id]
    return found[-1] if found else None


def _figures(entry: Entry | None) -> dict[str, Any]:
    figures = entry.figures.get("figures") if entry else None
    return {name: figures[1][name]["value"] for name in ("miou", "unsafe_landing_rate")} if figures else {}
