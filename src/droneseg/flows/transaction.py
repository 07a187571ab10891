"""All-or-nothing change of champion, registry and git commit."""

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from droneseg.core.errors import StoreError
from droneseg.core.files import atomic_directory, write_bytes
from droneseg.evaluation.report import number
from droneseg.model.bundle import MANIFEST_NAME, dvc_file_of
from droneseg.model.dvc_remote import project_lock
from droneseg.model.registry import REGISTRY_NAME, RegistryEntry, append_entry, run_git


def author(root: Path) -> str:
    """Return who git would say made a commit."""
    try:
        identity = run_git(root, "var", "GIT_AUTHOR_IDENT")
    except StoreError as error:
        if "identity" not in str(error):
            raise
        raise StoreError(
            "git does not know who you are, which the registry keeps: "
            "git config user.name NAME && git config user.email ADDRESS"
        ) from error
    return identity[: identity.index(">") + 1]


def require_unchanged(root: Path, champion: Path) -> None:
    """Refuse to change what somebody else is changing.

    Raises:
        StoreError: If the pointer or the registry has changes that are not committed.
    """
    names = (dvc_file_of(champion).name, REGISTRY_NAME)
    if changed := run_git(root, "status", "--porcelain", "--", *names).split("\n")[0]:
        raise StoreError(f"{changed[3:]} has changes that are not committed. Commit them, or take them back with git.")


def commit(root: Path, entry: RegistryEntry, before: Mapping[Path, bytes | None]) -> None:
    """Write the entry and commit it with what else was changed, of these files, and nothing else."""
    append_entry(root, entry)
    changed = [path.name for path, data in before.items() if _content(path) != data]
    run_git(root, "add", "--", *changed)
    run_git(root, "commit", "--quiet", "--message", _message(entry), "--", *changed)


def _message(entry: RegistryEntry) -> str:
    action = {"promote": "Promote", "rollback": "Roll back to"}[entry.action]
    miou = [number(figures["miou"]["value"]) for figures in entry.figures.get("figures", [])]
    figures = f"\n\nmIoU {' -> '.join(miou)}" if miou else ""
    return f"{action} model {entry.model.model_id}: {entry.reason}{figures}"


@contextmanager
def block_signals() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM while the block runs.

    For moments only. After a network has run, OpenVINO's threads and a signal end the process without any `finally`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def champion_transaction(root: Path, champion: Path) -> Iterator[Mapping[Path, bytes | None]]:
    """Put champion, pointer, registry and index back if the block fails; yields what the files held before.

    One process at a time: whoever waited must look again whether what it decided on is still there. What was there is
    kept beside the champion, so that `recover_unfinished` can put it back after a kill.
    """
    with project_lock(root, "champion"):
        _undo(root, champion)
        before = {path: _content(path) for path in (*_tracked(root, champion), root / ".gitignore")}
        _keep(before, champion)
        try:
            yield before
        except BaseException:
            _undo(root, champion, *before)
            raise
        _forget(champion)


def recover_unfinished(champion: Path) -> None:
    """Take back a change that a killed process began and did not commit; does nothing if there is none.

    Raises:
        StoreError: If git cannot say whether it was committed.
    """
    if _kept(champion).exists():
        root = dvc_file_of(champion).parent
        with project_lock(root, "champion"):
            _undo(root, champion)


def _tracked(root: Path, champion: Path) -> tuple[Path, ...]:
    return (dvc_file_of(champion), root / REGISTRY_NAME)


def _kept(champion: Path) -> Path:
    return champion.with_name(f".{champion.name}.before")


def _keep(before: Mapping[Path, bytes | None], champion: Path) -> None:
    """Copy what may change, aside first: a copy under its own name is whole."""
    kept = _kept(champion)
    aside = kept.with_name(f"{kept.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "files").mkdir(parents=True)
    for path, data in before.items():
        if data is not None:
            write_bytes(aside / "files" / path.name, data)
    if champion.exists():
        shutil.copytree(champion, aside / "model")
    aside.rename(kept)


def _forget(champion: Path) -> None:
    kept = _kept(champion)
    if kept.exists():
        # half of it must not be taken for the whole
        shutil.rmtree(kept.with_name(f"{kept.name}.part"), ignore_errors=True)
        kept.rename(kept.with_name(f"{kept.name}.part"))
    shutil.rmtree(kept.with_name(f"{kept.name}.part"), ignore_errors=True)


def _undo(root: Path, champion: Path, *files: Path) -> None:
    """Put back what was kept, unless the change was committed: that was its last step.

    After a kill these are pointer and registry alone: anything else somebody may have edited since.
    """
    files = files or _tracked(root, champion)
    kept = _kept(champion)
    if kept.exists() and _committed(root, REGISTRY_NAME) == _content(kept / "files" / REGISTRY_NAME):
        for path in files:
            data = _content(kept / "files" / path.name)
            if data is None:
                path.unlink(missing_ok=True)
            else:
                write_bytes(path, data)
        _put_back(kept / "model", champion)
        with suppress(StoreError):  # what went wrong before is what matters
            run_git(root, "reset", "--quiet", "--", *(path.name for path in files))
    _forget(champion)
    for half in (*champion.parent.glob(f".{champion.name}.*.part"), *champion.parent.glob(f".{champion.name}.*.old")):
        shutil.rmtree(half, ignore_errors=True)  # of a process that was killed: only one at a time changes it


def _committed(root: Path, name: str) -> bytes | None:
    """Return a file as git's last commit has it."""
    if not run_git(root, "ls-tree", "HEAD", "--", name).strip():
        return None
    return run_git(root, "show", f"HEAD:{name}").encode()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _put_back(kept: Path, champion: Path) -> None:
    if not kept.exists():
        shutil.rmtree(champion, ignore_errors=True)
        return
    with atomic_directory(champion, marker=MANIFEST_NAME, replace=True) as aside:
        shutil.copytree(kept, aside, dirs_exist_ok=True)


def now() -> str:
    """Return the time as the registry has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
