"""A DVC remote: asks for objects by their md5, and believes none that does not match it."""

import hashlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from droneseg.core.errors import MissingDependencyError, StoreError
from droneseg.model.faults import CREDENTIALS, hopeless, refused, short
from droneseg.model.stall import Pulse, call

logger = logging.getLogger(__name__)

_TRIES = 2
_PAUSE_S = 1.0
_CHUNK_BYTES = 1 << 20

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
            raise StoreError(f"{self} refuses the credentials: {short(error)}. {CREDENTIALS}") from error

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

    def has(self, md5: str, size_bytes: int | None = None) -> bool:
        """Say whether the remote holds an object, and in this size if one is given.

        Raises:
            StoreError: If it cannot be reached.
        """
        self._fs.invalidate_cache()  # what was there a moment ago says nothing
        try:
            about = call(self._fs, "info", self._odb.oid_to_path(md5), pulse=Pulse())
        except FileNotFoundError:
            return False
        except Exception as error:  # whatever a cloud's client raises
            raise self._explained(error) from error
        return size_bytes is None or about["size"] == size_bytes

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
                if hopeless(error):
                    raise
                if not left or isinstance(error, FileNotFoundError):
                    raise self._explained(error) from error
                logger.warning("%s: %s; trying again", self, short(error))
                time.sleep(_PAUSE_S)

    def _fetch_once(self, md5: str, target: Path, on_bytes: OnBytes) -> None:
        from fsspec.callbacks import Callback

        pulse, growth = Pulse(), _Growth(on_bytes)

        def heard(_size: int | None, value: int, **_rest: Any) -> None:
            pulse.beat()
            growth(value)

        source, progress = self._odb.oid_to_path(md5), Callback(hooks={"bytes": heard})
        call(self._fs, "get_file", source, str(target), callback=progress, pulse=pulse)
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
        if refused(error):
            return StoreError(f"{self} refused: {short(error)}. {CREDENTIALS}")
        return StoreError(f"{self} cannot be reached: {short(error)}. Nothing was changed; try again.")


class _Growth:
    """Turns the sum that is told into what is new."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes
        self._seen = 0

    def __call__(self, value: int) -> None:
        self._on_bytes(value - self._seen)
        self._seen = value


def version_of(folder: Path) -> str | None:
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
