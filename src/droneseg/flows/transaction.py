"""Atomic change of the champion, the registry and the git history: all of them change or none."""

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
    """Return the name and e-mail address that git records as the author of a commit.

    Raises:
        StoreError: If git has no identity configured.
    """
    try:
        identity = run_git(root, "var", "GIT_AUTHOR_IDENT")
    except StoreError as error:
        if "identity" not in str(error):
            raise
        raise StoreError(
            "git has no user name and email address, which the registry records. Set them: "
            "git config user.name NAME && git config user.email ADDRESS"
        ) from error
    return identity[: identity.index(">") + 1]


def require_unchanged(root: Path, champion: Path) -> None:
    """Check that the champion's `.dvc` file and the registry have no uncommitted changes.

    Raises:
        StoreError: If one of them has uncommitted changes.
    """
    names = (dvc_file_of(champion).name, REGISTRY_NAME)
    if changed := run_git(root, "status", "--porcelain", "--", *names).split("\n")[0]:
        raise StoreError(f"{changed[3:]} has uncommitted changes. Commit or discard them first.")


def commit(root: Path, entry: RegistryEntry, before: Mapping[Path, bytes | None]) -> None:
    """Append an entry to the registry and commit it to git, together with changed files.

    Args:
        root: Folder of the git repository.
        entry: New entry of the registry.
        before: Contents of the files before the change, as `champion_transaction` yields them; other files are not
            committed.
    """
    append_entry(root, entry)
    changed = [path.name for path, data in before.items() if _content(path) != data]
    run_git(root, "add", "--", *changed)
    run_git(root, "commit", "--quiet", "--message", _message(entry), "--", *changed)


def _message(entry: RegistryEntry) -> str:
    action = {"promote": "Promote", "rollback": "Roll back to"}[entry.action]
    message = f"{action} model {entry.model.model_id}\n\n{entry.reason}"  # a subject is too short for a reason
    if not entry.figures:
        return message
    miou = [number(metrics["miou"].value) for metrics in entry.figures.figures]
    return f"{message}\nmIoU {' -> '.join(miou)}"


@contextmanager
def block_signals() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM while the block runs; use it for short blocks only.

    After an inference, a signal can end the process inside OpenVINO's threads without running any `finally`.
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
    """Restore the champion, its `.dvc` file, the registry and git's index if the block fails.

    A lock lets only one process run the block at a time; the state may have changed while this one waited for the
    lock. A backup beside the champion lets `recover_unfinished` restore the state if the process is killed.

    Yields:
        Contents of the files before the change, by path; None for missing files.
    """
    with project_lock(root, "champion"):
        _undo(root, champion)
        before = {path: _content(path) for path in (*_tracked_files(root, champion), root / ".gitignore")}
        _write_backup(before, champion)
        try:
            yield before
        except BaseException:
            _undo(root, champion, *before)
            raise
        _delete_backup(champion)


def recover_unfinished(champion: Path) -> None:
    """Undo a change that a killed process did not commit; do nothing if there is none.

    Raises:
        StoreError: If git fails, so that it is unknown whether the change was committed.
    """
    if _backup(champion).exists():
        root = dvc_file_of(champion).parent
        with project_lock(root, "champion"):
            _undo(root, champion)


def _tracked_files(root: Path, champion: Path) -> tuple[Path, ...]:
    return (dvc_file_of(champion), root / REGISTRY_NAME)


def _backup(champion: Path) -> Path:
    return champion.with_name(f".{champion.name}.before")


def _incomplete_backup(champion: Path) -> Path:
    return champion.with_name(f".{champion.name}.before.part")


def _write_backup(before: Mapping[Path, bytes | None], champion: Path) -> None:
    """Write the backup: the contents of the files and a copy of the champion.

    The backup gets its final name when it is complete, so that an incomplete one is never used.
    """
    backup, incomplete = _backup(champion), _incomplete_backup(champion)
    shutil.rmtree(incomplete, ignore_errors=True)
    (incomplete / "files").mkdir(parents=True)
    for path, data in before.items():
        if data is not None:
            write_bytes(incomplete / "files" / path.name, data)
    if champion.exists():
        shutil.copytree(champion, incomplete / "model")
    incomplete.rename(backup)


def _delete_backup(champion: Path) -> None:
    backup, incomplete = _backup(champion), _incomplete_backup(champion)
    if backup.exists():
        # renamed first: a partly deleted backup must not be used
        shutil.rmtree(incomplete, ignore_errors=True)
        backup.rename(incomplete)
    shutil.rmtree(incomplete, ignore_errors=True)


def _undo(root: Path, champion: Path, *files: Path) -> None:
    """Restore the backup unless the change was committed, which is its last step; then delete the backup and leftovers.

    Args:
        root: Folder of the git repository.
        champion: Folder of the champion.
        files: Files to restore; by default the `.dvc` file and the registry only, since users may have edited other
            files after a process was killed.
    """
    files = files or _tracked_files(root, champion)
    backup = _backup(champion)
    if backup.exists() and _committed(root, REGISTRY_NAME) == _content(backup / "files" / REGISTRY_NAME):
        for path in files:
            data = _content(backup / "files" / path.name)
            if data is None:
                path.unlink(missing_ok=True)
            else:
                write_bytes(path, data)
        _restore_champion(backup / "model", champion)
        with suppress(StoreError):  # report the first error, not one of the clean-up
            run_git(root, "reset", "--quiet", "--", *(path.name for path in files))
    _delete_backup(champion)
    for suffix in ("part", "old"):
        for leftover in champion.parent.glob(f".{champion.name}.*.{suffix}"):
            # left by a killed process, since the lock excludes running ones
            shutil.rmtree(leftover, ignore_errors=True)


def _committed(root: Path, name: str) -> bytes | None:
    """Return the content of a file in git's last commit; None if the commit does not contain it."""
    if not run_git(root, "ls-tree", "HEAD", "--", name).strip():
        return None
    return run_git(root, "show", f"HEAD:{name}").encode()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _restore_champion(model: Path, champion: Path) -> None:
    """Replace the champion with its backup; delete the champion if there was none before."""
    if not model.exists():
        shutil.rmtree(champion, ignore_errors=True)
        return
    with atomic_directory(champion, marker=MANIFEST_NAME, replace=True) as staging_dir:
        shutil.copytree(model, staging_dir, dirs_exist_ok=True)


def now() -> str:
    """Return the current time in the registry's format, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
