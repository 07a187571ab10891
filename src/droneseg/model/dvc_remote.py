"""DVC remote: fetch, push, .dvc files, md5 of a folder, timeouts."""

import asyncio
import base64
import errno
import hashlib
import json
import logging
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
from droneseg.core.files import directory_lock, write_text

CREDENTIALS = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to a key that may use it, or run `gcloud auth application-default login`."
)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def is_permanent(error: BaseException) -> bool:
    """Say whether trying again is no help: the disk is full, or somebody pressed Ctrl-C."""
    if not isinstance(error, Exception):
        return True
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def is_access_denied(error: BaseException) -> bool:
    """Say whether a store knows us not, or lets us not in."""
    status = getattr(error, "code", None) or getattr(error, "status", None)
    return status in (401, 403) or any(word in str(error).lower() for word in ("credentials", "forbidden"))


def summarize_error(error: BaseException) -> str:
    """Return the kind of an error and the first line it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


T = TypeVar("T")

STALL_S = 20.0


class IdleTimer:
    """When something was last heard."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def reset(self) -> None:
        """Something was."""
        self._last_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._last_s


async def wait_with_idle_timeout(work: Awaitable[T], pulse: IdleTimer) -> T:
    """Wait for work, as long as something is heard of it now and then.

    Raises:
        TimeoutError: If nothing was for `STALL_S`; the work is ended then.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=0.2)
            if not task.done() and pulse.idle_s > STALL_S:
                raise TimeoutError(f"nothing was heard for {STALL_S:g} s")
        return task.result()
    finally:
        task.cancel()


def call_with_idle_timeout(filesystem: Any, name: str, *arguments: Any, pulse: IdleTimer, **options: Any) -> Any:
    """Call a method of an fsspec filesystem, and give it up if nothing is heard of it; a local one is just called.

    Raises:
        TimeoutError: As `wait_with_idle_timeout` does.
    """
    if not getattr(filesystem, "async_impl", False):
        return getattr(filesystem, name)(*arguments, **options)
    from fsspec.asyn import sync

    async def guarded() -> Any:
        return await wait_with_idle_timeout(getattr(filesystem, f"_{name}")(*arguments, **options), pulse)

    return sync(filesystem.loop, guarded)


_CHUNK_BYTES = 1 << 20


def dvc_directory_hash(folder: Path) -> str | None:
    """Return the md5 by which DVC would name the version of a folder's parent that holds this folder alone.

    Returns:
        As it stands in a `.dvc` file, ending with `.dir`; None if the folder is not there.

    Raises:
        MissingDependencyError: If DVC is not installed.
    """
    require_dvc()
    from dvc_data.hashfile.tree import Tree

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        return None
    tree = Tree.from_list(
        [{"md5": md5_of(file), "relpath": file.relative_to(folder.parent).as_posix()} for file in files]
    )
    tree.digest()
    return str(tree.hash_info.value)


def require_dvc() -> None:
    """Raise `MissingDependencyError` unless DVC is installed; does not import it."""
    if find_spec("dvc") is None:
        raise MissingDependencyError("dvc", "store")


def md5_of(path: Path) -> str:
    """Return the md5 of a file, by which DVC knows it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def remote_md5(about: Mapping[str, Any], otherwise: str) -> str:
    """Return the md5 of an object as Cloud Storage keeps it, or as a file on this machine has it."""
    if "md5Hash" in about:
        return base64.b64decode(about["md5Hash"]).hex()
    return md5_of(Path(about["name"])) if Path(about["name"]).is_file() else otherwise.removesuffix(".dir")


def find_dvc_directory(folder: Path) -> Path:
    """Return the `.dvc` directory of the DVC project that contains a folder.

    Raises:
        StoreError: If the folder is not inside of a DVC project.
    """
    folder = folder.absolute()
    for parent in (folder, *folder.parents):
        if (parent / ".dvc").is_dir():
            return parent / ".dvc"
    raise StoreError(f"{folder} is not inside of a DVC repository. Clone the project again, or run `dvc init` in it.")


def project_lock(folder: Path, name: str) -> AbstractContextManager[None]:
    """Return a lock that processes share if they work in the same DVC project.

    Args:
        folder: Any folder of the project.
        name: Operation that one process at a time may run. Locks of different names are independent.

    Raises:
        StoreError: If the folder is not inside of a DVC project.
    """
    return directory_lock(find_dvc_directory(folder) / "tmp" / f"droneseg-{name}.lock")


@dataclass(frozen=True)
class DvcOutput:
    """A version of the tracked folder, as DVC names it.

    Attributes:
        md5: Of the folder's listing; ends with `.dir`.
        size_bytes: Of all files.
        files: How many there are.
    """

    md5: str
    size_bytes: int
    files: int


def read_dvc_file(path: Path) -> DvcOutput:
    """Read which version a `.dvc` file names.

    Raises:
        StoreError: If there is no such file, or it is not one of a folder.
    """
    try:
        (out,) = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"]
        version = DvcOutput(str(out["md5"]), int(out["size"]), int(out["nfiles"]))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: it names the version of the model beside it.") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} does not name a folder's version; take it from git again.") from error
    if not version.md5.endswith(".dir"):
        raise StoreError(f"{path} names a file, not a folder with a model in it.")
    return version


def write_dvc_file(path: Path, version: DvcOutput) -> None:
    """Make a `.dvc` file name this version."""
    out = {
        "md5": version.md5,
        "size": version.size_bytes,
        "nfiles": version.files,
        "hash": "md5",
        "path": path.name.removesuffix(".dvc"),
    }
    write_text(path, yaml.safe_dump({"outs": [out]}, sort_keys=False))


def main() -> None:
    """Keep of a `.dvc` file its version alone: `python -m droneseg.model.dvc_remote FILE`.

    One that somebody sent may name places, remotes or commands, too: DVC would follow them.
    """
    path = Path(sys.argv[1])
    try:
        write_dvc_file(path, read_dvc_file(path))
    except StoreError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()


logger = logging.getLogger(__name__)

_TRIES = 2
_PAUSE_S = 1.0

OnBytes = Callable[[int], None]
"""Told how many more bytes have arrived."""


class Remote:
    """Where versions of models are kept, and DVC's cache on this machine.

    Args:
        root: Folder of the project, with `.dvc` in it; git is not needed.
        name: Of the remote; None for the default one.

    Raises:
        MissingDependencyError: If DVC is not installed.
        StoreError: If there is no such project or remote.
    """

    def __init__(self, root: Path, name: str | None = None) -> None:
        require_dvc()
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        # it writes tracebacks of what is told in a line here
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        try:
            # DVC's databases are locked for a moment while they are made; a rollback holds the lock of the project
            with project_lock(root, "databases"):
                # the checkout may be one without git, as in an image
                repo = Repo(str(root), config={"core": {"no_scm": True}})
            self.name = name or str(repo.config["core"].get("remote", ""))
            if name and name not in repo.config["remote"]:
                known = ", ".join(repo.config["remote"]) or "none"
                raise StoreError(
                    f"{root / '.dvc/config'} has no remote {name!r}, only {known}. "
                    f"Add it: dvc remote add {name} gs://BUCKET/FOLDER"
                )
            self._odb = repo.cloud.get_remote_odb(name)
            self._cache = repo.cache.local
        except DvcException as error:
            raise StoreError(f"{root}: {error}") from error
        self.url = str(self._odb.fs.unstrip_protocol(self._odb.path))
        try:
            self._fs = self._odb.fs.fs  # made, and given its credentials, only now
        except Exception as error:  # whatever a cloud's client raises
            raise StoreError(f"{self} refuses the credentials: {summarize_error(error)}. {CREDENTIALS}") from error

    def __str__(self) -> str:
        return f"remote {self.name} ({self.url})"

    def listing(self, md5: str, aside: Path, *, keep: bool = True) -> Mapping[str, str]:
        """Return the files of a version: md5 by path.

        Args:
            md5: Of the version.
            aside: Folder for what must be fetched.
            keep: Whether DVC's cache shall hold it, too.

        Raises:
            StoreError: As `fetch` does.
        """
        target = aside / "listing"
        self.fetch(md5, target, keep=keep)
        try:
            return {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(target.read_bytes())}
        finally:
            target.unlink()

    def fetch(self, md5: str, target: Path, on_bytes: OnBytes = lambda _count: None, *, keep: bool = True) -> None:
        """Write an object to `target`, from DVC's cache if it is there.

        Args:
            md5: Of the object; with `.dir` at its end for a listing.
            target: Where it shall be; a half-written one is taken away.
            on_bytes: Told of what has arrived.
            keep: Whether DVC's cache shall hold it, too.

        Raises:
            StoreError: If the remote does not have it, cannot be reached, or gives something else.
            OSError: If the disk is full.
        """
        cached = Path(self._cache.oid_to_path(md5))
        if cached.is_file() and md5_of(cached) == md5.removesuffix(".dir"):
            shutil.copyfile(cached, target)
            on_bytes(target.stat().st_size)
            return
        self._fetch_with_tries(md5, target, on_bytes)
        if keep:
            from dvc_objects.fs.local import localfs

            cached.unlink(missing_ok=True)  # it may be there and damaged
            self._cache.add(str(target), localfs, md5)

    def has(self, md5: str, whole: int | None = None) -> bool:
        """Say whether the remote holds an object.

        Args:
            md5: Of the object.
            whole: Its size in bytes, to ask whether it is whole, too: by size, and by content where that costs little.

        Raises:
            StoreError: If it cannot be reached.
        """
        self._fs.invalidate_cache()  # what was there a moment ago says nothing
        try:
            about = call_with_idle_timeout(self._fs, "info", self._odb.oid_to_path(md5), pulse=IdleTimer())
        except FileNotFoundError:
            return False
        except Exception as error:  # whatever a cloud's client raises
            raise self._explained(error) from error
        return whole is None or (about["size"] == whole and remote_md5(about, md5) == md5.removesuffix(".dir"))

    def holds(self, md5: str) -> bool:
        """Say whether the remote holds a version whole: its listing, and all that stands in it.

        Raises:
            StoreError: If it cannot be reached, or what it holds is damaged.
        """
        if not self.has(md5):
            return False
        with TemporaryDirectory() as temporary:
            return all(self.has(each) for each in self.listing(md5, Path(temporary), keep=False).values())

    def send(self, source: Path, md5: str) -> None:
        """Write an object to the remote, over what is there.

        Raises:
            StoreError: If it cannot be reached, or does not take it.
        """
        target = self._odb.oid_to_path(md5)
        try:
            self._odb.fs.makedirs(self._odb.fs.parent(target), exist_ok=True)
            # gcsfs hands a file over as bytes, of which aiohttp warns
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                self._odb.fs.put_file(str(source), target)
        except Exception as error:  # whatever a cloud's client raises
            raise self._explained(error) from error

    def _fetch_with_tries(self, md5: str, target: Path, on_bytes: OnBytes) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._fetch_once(md5, target, on_bytes)
                return
            except BaseException as error:
                target.unlink(missing_ok=True)
                if is_permanent(error):
                    if isinstance(error, OSError) and not error.filename:
                        error.filename = str(target)
                    raise
                if not left or isinstance(error, FileNotFoundError):
                    raise self._explained(error) from error
                logger.warning("%s: %s; trying again", self, summarize_error(error))
                time.sleep(_PAUSE_S)

    def _fetch_once(self, md5: str, target: Path, on_bytes: OnBytes) -> None:
        from fsspec.callbacks import Callback

        pulse, growth = IdleTimer(), _Delta(on_bytes)

        def heard(_size: int | None, value: int, **_rest: Any) -> None:
            pulse.reset()
            growth(value)

        source, progress = self._odb.oid_to_path(md5), Callback(hooks={"bytes": heard})
        call_with_idle_timeout(self._fs, "get_file", source, str(target), callback=progress, pulse=pulse)
        if md5_of(target) != md5.removesuffix(".dir"):
            raise StoreError(f"{self} gave something damaged for {md5}")

    def _explained(self, error: BaseException) -> StoreError:
        """Say what went wrong with the remote, and what to do."""
        if isinstance(error, FileNotFoundError):
            return StoreError(
                f"{self} does not hold this version of the model. Whoever made it should run `droneseg models push`; "
                "or take another remote with --remote or DRONESEG_DVC_REMOTE."
            )
        if isinstance(error, StoreError):
            return StoreError(f"{error}: it is not what was pushed. Push it again from where it was made.")
        if is_access_denied(error):
            return StoreError(f"{self} refused: {summarize_error(error)}. {CREDENTIALS}")
        return StoreError(f"{self} cannot be reached: {summarize_error(error)}. Nothing was changed; try again.")


class _Delta:
    """Turns the sum that is told into what is new."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes
        self._seen = 0

    def __call__(self, value: int) -> None:
        self._on_bytes(value - self._seen)
        self._seen = value
