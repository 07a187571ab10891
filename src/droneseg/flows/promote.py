"""A candidate becomes the champion, or the one before it comes back: everything that changes, or nothing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from droneseg.core.errors import PromotionRefusedError, StoreError
from droneseg.core.files import new_folder, write_bytes
from droneseg.core.settings import Settings
from droneseg.evaluation.promote import reasons_against
from droneseg.evaluation.wording import number
from droneseg.flows.compare import compare_models
from droneseg.model.bundle import Bundle, pointer_to, read_bundle
from droneseg.model.manifest import MANIFEST_NAME
from droneseg.model.pointer import read_pointer, write_pointer
from droneseg.model.registry import (
    REGISTRY_NAME,
    Entry,
    Model,
    append_entry,
    line_of_champions,
    read_registry,
    run_git,
)
from droneseg.model.store import pull_model, require_tracked, run_dvc

_KEPT = ("images", "about", "figures", "differences")
"""What of a comparison goes into the registry."""


@dataclass(frozen=True)
class Exam:
    """On what a candidate and the champion are compared.

    Attributes:
        data: Dataset in the Kaggle layout.
        split_file: Take only one part of this split.
        part: Which one.
        report: Folder of the report; an older report is replaced.
    """

    data: Path
    split_file: Path | None
    part: str
    report: Path


def promote_model(
    candidate: Path,
    exam: Exam,
    *,
    settings: Settings,
    force: str | None = None,
    progress: Callable[[str, int, int], None],
) -> Entry:
    """Make a candidate the champion if it is better for sure and not less safe; committed to git.

    Args:
        candidate: Its bundle.
        exam: On what both are compared.
        settings: Of the environment; `model` is the champion's folder, `dvc_remote` where it comes from.
        force: A reason to promote it whatever the figures say.
        progress: Called with a model's name, done and total.

    Returns:
        What was written into the registry.

    Raises:
        PromotionRefusedError: If it may not; with all reasons.
        BundleError: If the candidate, or the champion, does not verify.
        StoreError: If the project is not in a state to be changed, or DVC or git fail; nothing is changed then.
    """
    bundle, champion = read_bundle(candidate), settings.model
    root = pointer_to(champion).parent
    who = _author(root)
    _require_unchanged(root, champion)
    previous, found = None, {}
    if pointer_to(champion).is_file():
        older = _champion(champion, settings)
        previous = Model(model_id=older.model_id, version=read_pointer(pointer_to(champion)))
        if older.model_id == bundle.model_id:
            raise PromotionRefusedError(f"{candidate} is the champion already: model {bundle.model_id}.")
        found = _compare(champion, candidate, exam, settings, progress)
        _require_allowed(candidate, reasons_against(found), exam, force)
    elif champion.exists():
        raise StoreError(
            f"{champion} is there, but {pointer_to(champion)} is not: move it elsewhere and promote it from there."
        )
    else:
        _require_allowed(candidate, ["there is no champion to compare it with"], exam, force)
    with _all_or_nothing(root, champion):
        with new_folder(champion, marker=MANIFEST_NAME, replace=True) as aside:
            for name in (MANIFEST_NAME, *bundle.manifest.files):
                shutil.copyfile(candidate / name, aside / name)
        read_bundle(champion)
        run_dvc(root, "add", "--quiet", champion.parent.name)
        model = Model(model_id=bundle.model_id, version=read_pointer(pointer_to(champion)))
        reason = force or "better with 95 % confidence, and not less safe"
        entry = Entry(
            when=_now(), who=who, action="promote", model=model, previous=previous, reason=reason,
            forced=force is not None, figures={key: found[key] for key in _KEPT if key in found},
        )  # fmt: skip
        _commit(root, champion, entry)
    return entry


def roll_back(settings: Settings, reason: str) -> Entry:
    """Give the model before the champion its place back; committed to git.

    Args:
        settings: Of the environment; `model` is the champion's folder, `dvc_remote` where the older model comes from.
        reason: Why.

    Raises:
        StoreError: If there is none before it, or it cannot be fetched; nothing is changed then.
    """
    champion = settings.model
    pointer = pointer_to(champion)
    root = pointer.parent
    who = _author(root)
    _require_unchanged(root, champion)
    line = line_of_champions(read_registry(root))
    if len(line) < 2:
        raise StoreError(
            f"{root / REGISTRY_NAME} knows no model before this one; take an older commit of {pointer.name}."
        )
    target, current = line[-2:]
    if read_pointer(pointer) != current.version:
        raise StoreError(
            f"{pointer} does not name the last model of {REGISTRY_NAME}, {current.model_id}: somebody changed it by "
            "hand. Take the version you want from git's log."
        )
    with _all_or_nothing(root, champion):
        write_pointer(pointer, target.version)
        pull_model(champion, settings.dvc_remote, replace=True)
        entry = Entry(when=_now(), who=who, action="rollback", model=target, previous=current, reason=reason)
        _commit(root, champion, entry)
    return entry


def _champion(champion: Path, settings: Settings) -> Bundle:
    """Return the champion as its `.dvc` file names it, fetched if it is not there."""
    if not champion.exists():
        return pull_model(champion, settings.dvc_remote).bundle
    require_tracked(champion)
    return read_bundle(champion)


def _compare(
    champion: Path, candidate: Path, exam: Exam, settings: Settings, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    return compare_models(
        champion,
        candidate,
        exam.data,
        exam.report,
        settings=settings,
        split_file=exam.split_file,
        part=exam.part,
        replace=True,
        progress=progress,
    ).found


def _require_allowed(candidate: Path, reasons: list[str], exam: Exam, force: str | None) -> None:
    if not reasons or force is not None:
        return
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    where = f" The report: {exam.report / 'report.md'}." if exam.report.exists() else ""
    raise PromotionRefusedError(
        f"{candidate} does not become the champion:{lines}\n--force REASON does it nevertheless.{where}"
    )


def _author(root: Path) -> str:
    """Return who git would say made a commit."""
    identity = run_git(root, "var", "GIT_AUTHOR_IDENT")
    return identity[: identity.index(">") + 1]


def _require_unchanged(root: Path, champion: Path) -> None:
    names = (pointer_to(champion).name, REGISTRY_NAME)
    if changed := run_git(root, "status", "--porcelain", "--", *names).split("\n")[0]:
        raise StoreError(f"{changed[3:]} has changes that are not committed. Commit them, or take them back with git.")


def _commit(root: Path, champion: Path, entry: Entry) -> None:
    append_entry(root, entry)
    changed = [pointer_to(champion).name, REGISTRY_NAME]
    changed += [".gitignore"] if run_git(root, "status", "--porcelain", "--", ".gitignore") else []
    run_git(root, "add", "--", *changed)
    run_git(root, "commit", "--quiet", "--message", _message(entry), "--", *changed)


def _message(entry: Entry) -> str:
    action = {"promote": "Promote", "rollback": "Roll back to"}[entry.action]
    miou = [number(figures["miou"]["value"]) for figures in entry.figures.get("figures", [])]
    figures = f"\n\nmIoU {' -> '.join(miou)}" if miou else ""
    return f"{action} model {entry.model.model_id}: {entry.reason}{figures}"


@contextmanager
def _all_or_nothing(root: Path, champion: Path) -> Iterator[None]:
    """Put champion, pointer, registry and index back if the block fails."""
    files = (pointer_to(champion), root / REGISTRY_NAME, root / ".gitignore")
    before = {path: path.read_bytes() if path.is_file() else None for path in files}
    with TemporaryDirectory(prefix=f".{champion.name}.", dir=_existing(champion.parent)) as temporary:
        kept = Path(temporary, champion.name)
        if champion.exists():
            shutil.copytree(champion, kept)
        try:
            yield
        except BaseException:
            for path, data in before.items():
                if data is None:
                    path.unlink(missing_ok=True)
                else:
                    write_bytes(path, data)
            run_git(root, "reset", "--quiet", "--", *(path.name for path in files))
            _put_back(kept, champion)
            raise


def _put_back(kept: Path, champion: Path) -> None:
    if not kept.exists():
        shutil.rmtree(champion, ignore_errors=True)
        return
    with new_folder(champion, marker=MANIFEST_NAME, replace=True) as aside:
        shutil.copytree(kept, aside, dirs_exist_ok=True)


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
