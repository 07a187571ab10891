"""Pull and push the champion; fetch it at service start."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from droneseg.core.errors import BundleError, DronesegError, OtherClassesError, StoreError
from droneseg.core.files import atomic_directory, check_writable
from droneseg.core.settings import Pull
from droneseg.model.bundle import MANIFEST_NAME, Bundle, dvc_file_of, read_bundle
from droneseg.model.dvc_remote import Remote, dvc_directory_hash, md5_of, project_lock, read_dvc_file, require_dvc
from droneseg.model.registry import is_known

logger = logging.getLogger(__name__)

_TIMEOUT_S = 200  # Cloud Run gives a start 240 s

OnProgress = Callable[[int, int], None]
"""Told of the bytes that are there and of all."""


@dataclass(frozen=True)
class PullResult:
    """What a pull did.

    Attributes:
        bundle: The model.
        remote: Where it came from, in words.
        fetched: Whether anything had to be; False if it was there already.
    """

    bundle: Bundle
    remote: str
    fetched: bool


def pull_model(
    folder: Path,
    remote: str | None = None,
    *,
    replace: bool = False,
    keep: bool = True,
    progress: OnProgress = lambda _done, _total: None,
) -> PullResult:
    """Fetch the version of a model that its `.dvc` file names, and nothing else.

    Everything is fetched into a folder beside, held against its checksums and read as a bundle; then it takes its place
    in one step. So a failure leaves what was there, and two pulls at once do no harm.

    Args:
        folder: Of the bundle; `nnUNet_results.dvc` names the version of `nnUNet_results/champion`.
        remote: Name of DVC's remote; None for the default one.
        replace: Whether another model in that folder may be replaced.
        keep: Whether DVC's cache shall hold it, too, as `dvc status` expects.
        progress: Told of what has arrived.

    Raises:
        StoreError: If it cannot be fetched.
        BundleError: If what was pushed is no bundle.
        OutputExistsError: If another model is there.
        MissingDependencyError: If DVC is not installed.
    """
    pointer = dvc_file_of(folder)
    version = read_dvc_file(pointer)
    source = Remote(pointer.parent, remote)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with project_lock(pointer.parent, "pull"), TemporaryDirectory() as temporary:
        if dvc_directory_hash(folder) == version.md5:
            return PullResult(read_bundle(folder), str(source), fetched=False)
        listing = _of_model(source.listing(version.md5, Path(temporary), keep=keep), folder, pointer)
        check_writable(folder, marker=MANIFEST_NAME, replace=replace)
        count = _ProgressTotal(version.size_bytes, progress)
        with _staging_directory(folder) as waiting:
            for name, md5 in listing.items():
                source.fetch(md5, waiting / name, count, keep=keep)
            with atomic_directory(folder, marker=MANIFEST_NAME, replace=True) as aside:
                for name in listing:
                    os.replace(waiting / name, aside / name)
                _require_bundle(aside, source)
        return PullResult(read_bundle(folder), str(source), fetched=True)


def push_model(folder: Path, remote: str | None = None) -> str:
    """Send the version of a model that its `.dvc` file names to a remote; what is there already is not sent again.

    Args:
        folder: Of the bundle.
        remote: Name of DVC's remote; None for the default one.

    Returns:
        Where it went, in words.

    Raises:
        BundleError: If it does not verify.
        StoreError: If the folder holds another model than the `.dvc` file names, or DVC cannot send it.
        MissingDependencyError: If DVC is not installed.
    """
    read_bundle(folder)
    pointer = dvc_file_of(folder)
    version = read_dvc_file(pointer)
    target = Remote(pointer.parent, remote)
    target.has(version.md5)  # or DVC would try for minutes to reach a remote that is away
    require_tracked(folder)
    run_dvc(pointer.parent, "commit", "--force", "--quiet", pointer.name)  # its cache may be gone
    run_dvc(pointer.parent, "push", "--quiet", pointer.name, *(("--remote", remote) if remote else ()))
    for file in folder.iterdir():
        # DVC believes a remote that has a version's listing to have its files, whole
        md5 = md5_of(file)
        if not target.has(md5, whole=file.stat().st_size):
            target.send(file, md5)
    return str(target)


def fetch_model(folder: Path, pull: Pull, remote: str | None = None) -> None:
    """Fetch a model as a service starts, if it is asked to, in a process of its own: DVC is large, and done with then.

    Args:
        folder: Of the bundle.
        pull: "auto" fetches what is not there and is named by a `.dvc` file.
        remote: Name of DVC's remote; None for the default one.

    Raises:
        StoreError: If it cannot be fetched. Why is logged: it may name places that not all may know.
        MissingDependencyError: If DVC is not installed.
    """
    pointer = dvc_file_of(folder)
    there = (folder / MANIFEST_NAME).is_file()
    if pull == "never" or (pull == "auto" and (there or not pointer.is_file())):
        return
    if not pointer.is_file():
        raise StoreError(f"{pointer} is missing: it names the version of {folder}. Or set DRONESEG_DVC_PULL=never.")
    require_dvc()
    logger.info("fetching %s with DVC", folder)
    command = [sys.executable, "-m", "droneseg.model.store", str(folder), *([remote] if remote else [])]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"DVC did not fetch {folder} within {_TIMEOUT_S} s.") from error
    except subprocess.CalledProcessError as error:
        logger.error("fetching: %s", " ".join(error.stderr.split()) or f"ended with {error.returncode}")
        raise StoreError(f"DVC could not fetch {folder} as {pointer} names it; the log says why.") from error


def require_tracked(folder: Path) -> None:
    """Refuse a folder that holds another model than its `.dvc` file names.

    Raises:
        StoreError: If it does.
    """
    pointer = dvc_file_of(folder)
    if dvc_directory_hash(folder) != read_dvc_file(pointer).md5:
        raise StoreError(
            f"{folder} is not the model that {pointer} names. If it is yours, move it elsewhere and make it the "
            "champion with `droneseg models promote`; `droneseg models pull --force` fetches the champion again."
        )


def run_dvc(root: Path, *arguments: str) -> str:
    """Run a command of DVC in a project, and return what it says.

    Raises:
        MissingDependencyError: If DVC is not installed.
        StoreError: If it fails; with DVC's words.
    """
    require_dvc()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        words = " ".join(said.split()).removeprefix("ERROR: ") or f"exit code {done.returncode}"
        raise StoreError(f"`dvc {' '.join(arguments)}` failed: {words}")
    return done.stdout


class _ProgressTotal:
    """Adds up what arrives; a second try begins again, so it stops at the whole."""

    def __init__(self, total: int, progress: OnProgress) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def __call__(self, more: int) -> None:
        self._done = min(self._done + more, self._total)
        self._progress(self._done, self._total)


def _of_model(files: Mapping[str, str], folder: Path, pointer: Path) -> dict[str, str]:
    """Return the files of the model alone: a version may hold others beside it."""
    inside = {
        name.removeprefix(f"{folder.name}/"): md5 for name, md5 in files.items() if name.startswith(f"{folder.name}/")
    }
    if MANIFEST_NAME not in inside or any("/" in name or name in ("", "..") for name in inside):
        raise StoreError(f"The version that {pointer} names holds no model {folder.name}.")
    return inside


def _require_bundle(folder: Path, source: Remote) -> None:
    try:
        read_bundle(folder)
    except OtherClassesError:
        raise
    except BundleError as error:
        raise StoreError(f"{source} holds a version that is no whole model: {error}") from error


@contextmanager
def _staging_directory(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside, always of the same name: what a killed pull left there is taken away."""
    waiting = folder.with_name(f".{folder.name}.pull")
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir()
    try:
        yield waiting
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


def main() -> None:
    """Fetch a model: `python -m droneseg.model.store FOLDER [REMOTE]`; the error is one line."""
    folder, remote, *_ = (*sys.argv[1:], None)
    try:
        pull_model(Path(str(folder)), remote, replace=is_known(Path(str(folder))), keep=False)
    except (DronesegError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
