"""Pull and push the champion; fetch it when a service starts."""

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

from droneseg.core.errors import BundleError, DronesegError, StoreError
from droneseg.core.files import atomic_directory, check_writable, file_md5
from droneseg.core.settings import Pull
from droneseg.model.bundle import MANIFEST_NAME, Bundle, dvc_file_of, read_bundle
from droneseg.model.dvc_remote import (
    DvcRemote,
    OnBytes,
    dvc_directory_hash,
    project_lock,
    read_dvc_file,
    require_dvc,
)
from droneseg.model.registry import is_known

logger = logging.getLogger(__name__)

_TIMEOUT_S = 200  # Cloud Run allows 240 s for a start

OnProgress = Callable[[int, int], None]
"""Callback with the bytes received and the total."""


@dataclass(frozen=True)
class PullResult:
    """Result of a pull.

    Attributes:
        bundle: The verified model.
        remote: Name and address of the remote.
        fetched: Whether files were fetched; False if the model was already present.
    """

    bundle: Bundle
    remote: str
    fetched: bool


def pull_model(
    folder: Path,
    remote: str | None = None,
    *,
    replace: bool = False,
    add_to_cache: bool = True,
    progress: OnProgress = lambda _done, _total: None,
) -> PullResult:
    """Fetch the version of a model that its `.dvc` file records.

    All files are downloaded into a temporary folder and verified before they replace the model in one step. A failed
    pull therefore leaves the previous model intact, and concurrent pulls do not interfere.

    Args:
        folder: Folder of the bundle; `nnUNet_results.dvc` records the version of `nnUNet_results/champion`.
        remote: Name of the DVC remote; None for the default one.
        replace: Whether a different model in `folder` may be replaced.
        add_to_cache: Whether to add the files to DVC's cache, without which `dvc status` reports the model as missing.
        progress: Progress callback.

    Raises:
        StoreError: If the model cannot be fetched or is not a valid bundle.
        OutputExistsError: If `folder` contains a different model and `replace` is False.
        MissingDependencyError: If DVC is not installed.
    """
    dvc_file = dvc_file_of(folder)
    version = read_dvc_file(dvc_file)
    source = DvcRemote(dvc_file.parent, remote)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with project_lock(dvc_file.parent, "pull"), TemporaryDirectory() as temporary:
        if dvc_directory_hash(folder) == version.md5:
            return PullResult(read_bundle(folder), str(source), fetched=False)
        listing = source.fetch_listing(version.md5, Path(temporary), add_to_cache=add_to_cache)
        files = _model_files(listing, folder, dvc_file)
        check_writable(folder, marker=MANIFEST_NAME, replace=replace)
        on_bytes = ProgressTotal(version.size_bytes, progress)
        with fetched_folder(source, files, folder, MANIFEST_NAME, on_bytes, add_to_cache=add_to_cache) as staging_dir:
            _require_bundle(staging_dir, source)
        return PullResult(read_bundle(folder), str(source), fetched=True)


@contextmanager
def fetched_folder(
    source: DvcRemote,
    files: Mapping[str, str],
    folder: Path,
    marker: str,
    on_bytes: OnBytes = lambda _count: None,
    *,
    add_to_cache: bool = True,
) -> Iterator[Path]:
    """Download files to a temporary folder, which replaces `folder` if the block succeeds.

    Args:
        source: Remote or cache of the files, which verifies them.
        files: md5 of each file by its path in the folder.
        folder: Folder to create or to replace; the caller has checked that it may be replaced.
        marker: Name of a file that every folder of this kind contains.
        on_bytes: Progress callback.
        add_to_cache: Whether to add the files to DVC's cache.

    Yields:
        The temporary folder with all files.

    Raises:
        StoreError: If a file cannot be fetched.
    """
    with _staging_directory(folder) as downloads:
        for name, md5 in files.items():
            (downloads / name).parent.mkdir(parents=True, exist_ok=True)
            source.fetch(md5, downloads / name, on_bytes, add_to_cache=add_to_cache)
        with atomic_directory(folder, marker=marker, replace=True) as staging_dir:
            for name in files:
                (staging_dir / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(downloads / name, staging_dir / name)
            yield staging_dir


def push_model(folder: Path, remote: str | None = None) -> str:
    """Upload the version of a model that its `.dvc` file records; skip files that the remote already has.

    Args:
        folder: Folder of the bundle.
        remote: Name of the DVC remote; None for the default one.

    Returns:
        Name and address of the remote.

    Raises:
        BundleError: If the bundle is not valid.
        StoreError: If the model in the folder is not the one that the `.dvc` file records, or the upload fails.
        MissingDependencyError: If DVC is not installed.
    """
    read_bundle(folder)
    dvc_file = dvc_file_of(folder)
    version = read_dvc_file(dvc_file)
    target = DvcRemote(dvc_file.parent, remote)
    target.has(version.md5)  # fails within 20 s if the remote is unreachable; `dvc push` retries for minutes
    require_tracked(folder)
    run_dvc(dvc_file.parent, "commit", "--force", "--quiet", dvc_file.name)  # restores DVC's cache
    run_dvc(dvc_file.parent, "push", "--quiet", dvc_file.name, *(("--remote", remote) if remote else ()))
    send_missing(target, folder)
    return str(target)


def send_missing(target: DvcRemote, folder: Path) -> None:
    """Upload the files of a folder that a remote does not have, or has damaged.

    If a remote has the listing of a folder, `dvc push` assumes that its files are present and intact.

    Raises:
        StoreError: If the remote cannot be reached or denies access.
    """
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        md5 = file_md5(file)
        if not target.has(md5, size_bytes=file.stat().st_size):
            target.send(file, md5)


def fetch_model(folder: Path, pull: Pull, remote: str | None = None) -> None:
    """Fetch a model when a service starts, in a subprocess so that the service does not keep DVC in memory.

    Args:
        folder: Folder of the bundle.
        pull: When to fetch: "never", "always", or "auto" if the model is missing and a `.dvc` file records it.
        remote: Name of the DVC remote; None for the default one.

    Raises:
        StoreError: If the model cannot be fetched. The reason is only logged, since it may contain internal addresses.
        MissingDependencyError: If DVC is not installed.
    """
    dvc_file = dvc_file_of(folder)
    exists = (folder / MANIFEST_NAME).is_file()
    if pull == "never" or (pull == "auto" and (exists or not dvc_file.is_file())):
        return
    if not dvc_file.is_file():
        raise StoreError(
            f"{dvc_file} is missing; it records the version of {folder}. Restore it, or set DRONESEG_DVC_PULL=never."
        )
    require_dvc()
    logger.info("fetching %s with DVC", folder)
    command = [sys.executable, "-m", "droneseg.model.store", str(folder), *([remote] if remote else [])]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"DVC did not fetch {folder} within {_TIMEOUT_S} s. Check the connection.") from error
    except subprocess.CalledProcessError as error:
        logger.error("cannot fetch the model: %s", " ".join(error.stderr.split()) or f"exit code {error.returncode}")
        raise StoreError(f"DVC could not fetch {folder}, which {dvc_file} records. See the server log.") from error


def require_tracked(folder: Path) -> None:
    """Check that a folder contains the model that its `.dvc` file records.

    Raises:
        StoreError: If it contains another model.
    """
    dvc_file = dvc_file_of(folder)
    if dvc_directory_hash(folder) != read_dvc_file(dvc_file).md5:
        raise StoreError(
            f"{folder} is not the model that {dvc_file} records. To use your own model, move it elsewhere and run "
            "`droneseg models promote`. To restore the champion, run `droneseg models pull --force`."
        )


def run_dvc(root: Path, *arguments: str) -> str:
    """Run a DVC command in a project and return its standard output.

    Raises:
        MissingDependencyError: If DVC is not installed.
        StoreError: If the command fails; the message includes DVC's output.
    """
    require_dvc()
    command = [sys.executable, "-m", "dvc", *arguments]
    completed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if completed.returncode:
        output = completed.stderr.strip() or completed.stdout.strip()
        message = " ".join(output.split()).removeprefix("ERROR: ") or f"exit code {completed.returncode}"
        raise StoreError(f"`dvc {' '.join(arguments)}` failed: {message}")
    return completed.stdout


class ProgressTotal:
    """Callback that sums up increments; the sum is limited to the total, since a retried download repeats increments.

    Args:
        total: Expected number of bytes.
        progress: Progress callback.
    """

    def __init__(self, total: int, progress: OnProgress) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def __call__(self, count: int) -> None:
        """Add received bytes."""
        self._done = min(self._done + count, self._total)
        self._progress(self._done, self._total)


def _model_files(listing: Mapping[str, str], folder: Path, dvc_file: Path) -> dict[str, str]:
    """Return the model's files from the listing of the tracked directory, which may contain other files.

    Returns:
        The md5 of each file by name.
    """
    prefix = f"{folder.name}/"
    files = {path.removeprefix(prefix): md5 for path, md5 in listing.items() if path.startswith(prefix)}
    if MANIFEST_NAME not in files or any("/" in name or name in ("", "..") for name in files):
        raise StoreError(
            f"The version that {dvc_file} records contains no model {folder.name}. Restore {dvc_file.name} from git."
        )
    return files


def _require_bundle(folder: Path, source: DvcRemote) -> None:
    try:
        read_bundle(folder)
    except BundleError as error:
        raise StoreError(f"The version in {source} is not a valid model: {error}") from error


@contextmanager
def _staging_directory(folder: Path) -> Iterator[Path]:
    """Create an empty folder beside the model's. Its name is fixed, so that leftovers of a killed pull are removed."""
    staging_dir = folder.with_name(f".{folder.name}.pull")
    shutil.rmtree(staging_dir, ignore_errors=True)
    staging_dir.mkdir()
    try:
        yield staging_dir
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)


def main() -> None:
    """Fetch a model and report errors in one line: `python -m droneseg.model.store FOLDER [REMOTE]`."""
    folder, remote, *_ = (*sys.argv[1:], None)
    try:
        pull_model(Path(str(folder)), remote, replace=is_known(Path(str(folder))), add_to_cache=False)
    except (DronesegError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
