"""DVC remotes: `.dvc` files, hashes of files and directories, download and upload of objects."""

import asyncio
import base64
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml

from droneseg.core.errors import MissingDependencyError, StoreError
from droneseg.core.files import directory_lock, file_md5, write_text

logger = logging.getLogger(__name__)

CREDENTIALS_HINT = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to a key with access, or run `gcloud auth application-default login`."
)
IDLE_TIMEOUT_S = 20.0  # gcsfs itself retries for four minutes or waits indefinitely for a response

_TRIES = 2
_PAUSE_S = 1.0
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_OBJECTS = ("files", "md5")  # where DVC 3 keeps objects in a remote and in its cache

OnBytes = Callable[[int], None]
"""Callback with the number of bytes received since the last call."""

T = TypeVar("T")


def require_dvc() -> None:
    """Raise `MissingDependencyError` unless DVC is installed; does not import it."""
    if find_spec("dvc") is None:
        raise MissingDependencyError("dvc", "store")


def find_dvc_directory(folder: Path) -> Path:
    """Return the `.dvc` directory of the DVC project that contains a folder.

    Raises:
        StoreError: If the folder is not inside a DVC project.
    """
    folder = folder.absolute()
    for parent in (folder, *folder.parents):
        if (parent / ".dvc").is_dir():
            return parent / ".dvc"
    raise StoreError(f"{folder} is not inside a DVC repository. Clone the project again, or run `dvc init` in it.")


def project_lock(folder: Path, name: str) -> AbstractContextManager[None]:
    """Return a lock shared by all processes that work in the same DVC project.

    Args:
        folder: Any folder of the project.
        name: Name of an operation that only one process may run at a time. Locks with different names are independent.

    Raises:
        StoreError: If the folder is not inside a DVC project.
    """
    return directory_lock(find_dvc_directory(folder) / "tmp" / f"droneseg-{name}.lock")


@dataclass(frozen=True)
class DvcOutput:
    """A version of a tracked directory, as a `.dvc` file records it.

    Attributes:
        md5: Hash of the directory's listing; ends with `.dir`.
        size_bytes: Total size of all files.
        files: Number of files.
    """

    md5: str
    size_bytes: int
    files: int


def read_dvc_file(path: Path) -> DvcOutput:
    """Read the version that a `.dvc` file records.

    Raises:
        StoreError: If the file is missing, malformed or does not track a directory.
    """
    try:
        (out,) = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"]
        version = DvcOutput(str(out["md5"]), int(out["size"]), int(out["nfiles"]))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; it records the version of the model. Restore it from git.") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} does not record the version of one directory. Restore it from git.") from error
    if not version.md5.endswith(".dir"):
        raise StoreError(f"{path} tracks a file; a model is a directory. Restore it from git.")
    return version


def write_dvc_file(path: Path, version: DvcOutput, *, meta: Mapping[str, str] | None = None) -> None:
    """Write a `.dvc` file that records a version of the directory beside it.

    Args:
        path: File to write.
        version: Version of the directory.
        meta: Further facts about it, which DVC keeps but does not use.
    """
    out = {
        "md5": version.md5,
        "size": version.size_bytes,
        "nfiles": version.files,
        "hash": "md5",
        "path": path.name.removesuffix(".dvc"),
    }
    content: dict[str, Any] = {"meta": dict(meta)} if meta else {}
    write_text(path, yaml.safe_dump(content | {"outs": [out]}, sort_keys=False, width=1000))


def read_meta(path: Path) -> dict[str, str]:
    """Return the further facts in a `.dvc` file that `read_dvc_file` accepts; none if it has no block `meta`."""
    meta = yaml.safe_load(path.read_text(encoding="utf-8")).get("meta")
    return {str(key): str(value) for key, value in meta.items()} if isinstance(meta, dict) else {}


def dvc_directory_hash(folder: Path, *, tracked: Path | None = None) -> str | None:
    """Return the hash DVC would record for a directory if it contained only this folder.

    Args:
        folder: Folder.
        tracked: Directory that DVC tracks: the folder or one that contains it; None for its parent.

    Returns:
        Hash as in a `.dvc` file, ending with `.dir`; None if the folder is missing or empty.
    """
    root = tracked or folder.parent
    files = [file for file in folder.rglob("*") if file.is_file()]
    entries = [{"md5": file_md5(file), "relpath": file.relative_to(root).as_posix()} for file in files]
    return directory_hash(entries) if entries else None


def directory_hash(entries: list[dict[str, str]]) -> str:
    """Return the hash of a directory's listing, as DVC computes it.

    Args:
        entries: `md5` and `relpath` of each file, in any order.
    """
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def is_permanent(error: BaseException) -> bool:
    """Return whether a retry is pointless: the disk is full or read-only, or the user pressed Ctrl-C."""
    if not isinstance(error, Exception):
        return True
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def is_access_denied(error: BaseException) -> bool:
    """Return whether the store denied access."""
    status = getattr(error, "code", None) or getattr(error, "status", None)
    return status in (401, 403) or any(word in str(error).lower() for word in ("credentials", "forbidden"))


def summarize_error(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class IdleTimer:
    """Seconds since data last arrived."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def reset(self) -> None:
        """Restart the timer."""
        self._last_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last reset."""
        return time.monotonic() - self._last_s


async def wait_with_idle_timeout(work: Awaitable[T], timer: IdleTimer) -> T:
    """Wait for a transfer while data keeps arriving.

    Args:
        work: The transfer; cancelled at the timeout.
        timer: Timer that the transfer resets whenever data arrives.

    Raises:
        TimeoutError: If no data arrived for `IDLE_TIMEOUT_S`.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=0.2)
            if not task.done() and timer.idle_s > IDLE_TIMEOUT_S:
                raise TimeoutError(f"no data for {IDLE_TIMEOUT_S:g} s")
        return task.result()
    finally:
        task.cancel()


def call_with_idle_timeout(filesystem: Any, name: str, *arguments: Any, timer: IdleTimer, **options: Any) -> Any:
    """Call a method of an fsspec filesystem, with an idle timeout if the filesystem is asynchronous.

    Args:
        filesystem: fsspec filesystem.
        name: Name of the method.
        arguments: Positional arguments of the method.
        timer: Timer that the call resets whenever data arrives.
        options: Keyword arguments of the method.

    Raises:
        TimeoutError: If no data arrived for `IDLE_TIMEOUT_S`.
    """
    if not getattr(filesystem, "async_impl", False):
        return getattr(filesystem, name)(*arguments, **options)
    from fsspec.asyn import sync

    async def guarded() -> Any:
        return await wait_with_idle_timeout(getattr(filesystem, f"_{name}")(*arguments, **options), timer)

    return sync(filesystem.loop, guarded)


class DvcRemote:
    """A remote of a DVC project and the project's cache; objects are addressed by their md5.

    DVC resolves the configuration and connects. This class transfers objects, because `dvc pull` and `DVCFileSystem`
    have neither an idle timeout nor checksum verification (decision 15).

    Args:
        root: Folder inside the DVC project; git is not needed.
        name: Name of the remote; None for the default one.

    Raises:
        MissingDependencyError: If DVC is not installed.
        StoreError: If the project or the remote does not exist, or the credentials are invalid.
    """

    def __init__(self, root: Path, name: str | None = None) -> None:
        require_dvc()
        directory = find_dvc_directory(root)
        # gcsfs logs the tracebacks of errors that are reported here in one line
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        from dvc.config import Config
        from dvc.exceptions import DvcException
        from dvc.fs import get_cloud_fs

        try:
            config = Config(str(directory))
            self.name = _remote_name(config, directory, name)
            filesystem_class, options, path = get_cloud_fs(config, name=self.name)
            self._dvc_filesystem = filesystem_class(**options)
        except DvcException as error:
            raise StoreError(f"{root}: {error}") from error
        self._root = self._dvc_filesystem.join(path, *_OBJECTS)
        self._cache = Path(config.get("cache", {}).get("dir") or directory / "cache", *_OBJECTS)
        self.url = str(self._dvc_filesystem.unstrip_protocol(self._root))
        try:
            self._filesystem = self._dvc_filesystem.fs  # reads the credentials
        except Exception as error:  # cloud clients have no common base class
            message = f"The credentials for {self} are invalid: {summarize_error(error)}. {CREDENTIALS_HINT}"
            raise StoreError(message) from error

    def __str__(self) -> str:
        return f"remote {self.name} ({self.url})"

    def fetch_listing(self, md5: str, staging_dir: Path, *, add_to_cache: bool = True) -> Mapping[str, str]:
        """Fetch the listing of a directory: md5 by relative path.

        Args:
            md5: Hash of the listing, ending with `.dir`.
            staging_dir: Directory for a temporary file.
            add_to_cache: Whether to add the listing to DVC's cache.

        Raises:
            StoreError: If the remote does not have it, cannot be reached, or returns other data.
        """
        target = staging_dir / "listing"
        self.fetch(md5, target, add_to_cache=add_to_cache)
        try:
            return {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(target.read_bytes())}
        finally:
            target.unlink()

    def fetch(
        self, md5: str, target: Path, on_bytes: OnBytes = lambda _count: None, *, add_to_cache: bool = True
    ) -> None:
        """Copy an object from DVC's cache, or download it, and verify its md5.

        Args:
            md5: Hash of the object; ends with `.dir` for a listing.
            target: File to write; removed if the download fails.
            on_bytes: Progress callback.
            add_to_cache: Whether to add a downloaded object to DVC's cache.

        Raises:
            StoreError: If the remote does not have it, cannot be reached, or returns other data.
            OSError: If the disk is full.
        """
        cached = self._cache / md5[:2] / md5[2:]
        if cached.is_file() and file_md5(cached) == md5.removesuffix(".dir"):
            shutil.copyfile(cached, target)
            on_bytes(target.stat().st_size)
            return
        self._download_with_retry(md5, target, on_bytes)
        if add_to_cache:
            _write_cache_file(cached, target)

    def has(self, md5: str, *, size_bytes: int | None = None) -> bool:
        """Return whether the remote has an object.

        Args:
            md5: Hash of the object.
            size_bytes: Size of the object. If given, the stored object must have this size and, where the store
                reports checksums, this md5.

        Raises:
            StoreError: If the remote cannot be reached.
        """
        self._filesystem.invalidate_cache()  # fsspec caches listings
        try:
            info = call_with_idle_timeout(self._filesystem, "info", self._path_of(md5), timer=IdleTimer())
        except FileNotFoundError:
            return False
        except Exception as error:  # cloud clients have no common base class
            raise self._translate(error) from error
        return size_bytes is None or (info["size"] == size_bytes and remote_md5(info, md5) == md5.removesuffix(".dir"))

    def has_all(self, md5: str) -> bool:
        """Return whether the remote has a listing and every object in it.

        Raises:
            StoreError: If the remote cannot be reached, or the listing is damaged.
        """
        if not self.has(md5):
            return False
        with TemporaryDirectory() as temporary:
            listing = self.fetch_listing(md5, Path(temporary), add_to_cache=False)
        return all(self.has(file_hash) for file_hash in listing.values())

    def send(self, source: Path, md5: str) -> None:
        """Upload a file as the object with this md5; an existing object is replaced.

        Raises:
            StoreError: If the remote cannot be reached or denies access.
        """
        target = self._path_of(md5)
        try:
            self._dvc_filesystem.makedirs(self._dvc_filesystem.parent(target), exist_ok=True)
            # aiohttp warns because gcsfs uploads a file as bytes
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                self._dvc_filesystem.put_file(str(source), target)
        except Exception as error:  # cloud clients have no common base class
            raise self._translate(error) from error

    def _path_of(self, md5: str) -> str:
        return str(self._dvc_filesystem.join(self._root, md5[:2], md5[2:]))

    def _download_with_retry(self, md5: str, target: Path, on_bytes: OnBytes) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                self._download(md5, target, on_bytes)
                return
            except BaseException as error:
                target.unlink(missing_ok=True)
                if is_permanent(error):
                    if isinstance(error, OSError) and not error.filename:
                        error.filename = str(target)
                    raise
                if not tries_left or isinstance(error, FileNotFoundError):
                    raise self._translate(error) from error
                logger.warning("%s: %s; retrying", self, summarize_error(error))
                time.sleep(_PAUSE_S)

    def _download(self, md5: str, target: Path, on_bytes: OnBytes) -> None:
        from fsspec.callbacks import Callback

        timer, delta = IdleTimer(), _Delta(on_bytes)

        def on_total(_size: int | None, value: int, **_rest: Any) -> None:
            timer.reset()
            delta(value)

        callback = Callback(hooks={"bytes": on_total})
        source = self._path_of(md5)
        call_with_idle_timeout(self._filesystem, "get_file", source, str(target), callback=callback, timer=timer)
        if file_md5(target) != md5.removesuffix(".dir"):
            raise StoreError(
                f"Checksum mismatch for {md5} from {self}. Push the model again from the machine that has it."
            )

    def _translate(self, error: BaseException) -> StoreError:
        """Return the error that explains a failed transfer to the user."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, FileNotFoundError):
            return StoreError(
                f"{self} does not have this version of the model. Ask its author to run `droneseg models push`, or "
                "choose another remote with --remote or DRONESEG_DVC_REMOTE."
            )
        if is_access_denied(error):
            return StoreError(f"{self} denied access: {summarize_error(error)}. {CREDENTIALS_HINT}")
        return StoreError(f"{self} cannot be reached: {summarize_error(error)}. Nothing was changed; try again.")


def remote_md5(info: Mapping[str, Any], default: str) -> str:
    """Return the md5 of a stored object without downloading it.

    Args:
        info: The object's `info` from fsspec. Cloud Storage reports the md5; a local file is read.
        default: Hash to return for stores that report none.
    """
    if "md5Hash" in info:
        return base64.b64decode(info["md5Hash"]).hex()
    return file_md5(Path(info["name"])) if Path(info["name"]).is_file() else default.removesuffix(".dir")


def _remote_name(config: Mapping[str, Any], directory: Path, name: str | None) -> str:
    """Return the name of the requested or default remote.

    Raises:
        StoreError: If there is no such remote.
    """
    remotes = config["remote"]
    chosen = name or config["core"].get("remote")
    if not chosen:
        raise StoreError(
            f"{directory / 'config'} has no default remote. Set one: dvc remote default NAME; or use --remote."
        )
    if chosen.lower() not in remotes:
        raise StoreError(
            f"{directory / 'config'} has no remote {chosen!r}, only {', '.join(remotes) or 'none'}. "
            f"Add it: dvc remote add {chosen} gs://BUCKET/FOLDER"
        )
    return str(chosen)


def _write_cache_file(cached: Path, source: Path) -> None:
    """Copy a file into DVC's cache in one step, read-only as DVC does."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    staging_file = cached.with_name(f".{cached.name}.part")
    try:
        shutil.copyfile(source, staging_file)
        staging_file.chmod(0o444)
        os.replace(staging_file, cached)
    finally:
        staging_file.unlink(missing_ok=True)


class _Delta:
    """Callback that converts running totals to increments.

    Args:
        on_bytes: Callback with the increment.
    """

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes
        self._previous = 0

    def __call__(self, total: int) -> None:
        self._on_bytes(total - self._previous)
        self._previous = total


def main() -> None:
    """Reduce a `.dvc` file to the version it records: `python -m droneseg.model.dvc_remote FILE`.

    A file from an untrusted source may also contain paths, remotes or commands, which DVC would use.
    """
    path = Path(sys.argv[1])
    try:
        write_dvc_file(path, read_dvc_file(path))
    except StoreError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
