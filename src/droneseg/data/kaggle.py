"""Download and unpack the Kaggle dataset."""

import base64
import hashlib
import io
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from droneseg.core.errors import DownloadError, MissingDependencyError
from droneseg.core.files import atomic_directory, check_writable, write_text
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER, list_pairs


def unpack_pairs(archive: Path, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Unpack the folders of photographs and masks, wherever in the archive they are, into the Kaggle layout.

    Args:
        archive: A ZIP file.
        folder: Where `classes_dataset/classes_dataset/...` shall be.
        progress: Told of the files done, and of all.

    Returns:
        How many files were left out.

    Raises:
        DownloadError: If it holds no such folders, two of a kind, or a damaged file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            wanted = _wanted([member.filename for member in members], archive)
            for done, (name, target) in enumerate(wanted.items(), start=1):
                # only two folders and a file's own name: an archive cannot write elsewhere
                path = folder / KAGGLE_FOLDER / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(name) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                progress(done, len(wanted))
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DownloadError(f"What was downloaded is damaged ({error}). Try again.") from error
    return len(members) - len(wanted)


def _wanted(names: list[str], archive: Path) -> dict[str, Path]:
    """Return the members to take, and where each goes."""
    folders = {PurePosixPath(name).parent for name in names}
    complete = {
        folder.parent for folder in folders if {folder.parent / IMAGES_FOLDER, folder.parent / MASKS_FOLDER} <= folders
    }
    if len(complete) != 1:
        found = ", ".join(sorted(map(str, folders))[:8])
        raise DownloadError(
            f"{archive.name} holds {len(complete)} folders with both {IMAGES_FOLDER} and {MASKS_FOLDER}, not one. "
            f"It has: {found}"
        )
    (root,) = complete
    wanted = {root / IMAGES_FOLDER, root / MASKS_FOLDER}
    return {name: Path(path.parent.name, path.name) for name in names if (path := PurePosixPath(name)).parent in wanted}


DATASET = "santurini/semantic-segmentation-drone-dataset"
MARKER = ".droneseg-download"
"""Tells a downloaded folder from somebody's own, and what is in it."""

_RETRIES = 3
_TOKEN_PAGE = "https://www.kaggle.com/settings"  # noqa: S105  # a page, not a token

OnProgress = Callable[[str, int, int], None]
"""Told of a step, how much of it is done, and all."""


@dataclass(frozen=True)
class Credentials:
    """Who downloads: a token, or a user's name and key; None for what the environment does not say."""

    token: str | None = None
    username: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Downloaded:
    """A dataset that was downloaded.

    Attributes:
        folder: In the Kaggle layout, as `data convert` takes it.
        pairs: Photographs with a mask.
        problems: Of the files as Kaggle has them; `data check` says more.
        left_out: Files of the archive that nobody needs here.
    """

    folder: Path
    pairs: int
    problems: tuple[str, ...]
    left_out: int


def download_dataset(
    folder: Path,
    dataset: str = DATASET,
    *,
    version: int | None = None,
    credentials: Credentials,
    replace: bool = False,
    progress: OnProgress,
) -> Downloaded:
    """Download a dataset in the Kaggle layout.

    The archive goes to a folder beside, where an interrupted download is gone on with; it is deleted in the end.

    Args:
        folder: Where the dataset shall be.
        dataset: OWNER/NAME, as in its address.
        version: Which version; None for the newest.
        credentials: What the environment says.
        replace: Whether an earlier download in `folder` may be replaced.
        progress: Told of the bytes that arrive, and of files unpacked.

    Raises:
        DownloadError: If there are no credentials, Kaggle refuses, or what came is not the dataset.
        OutputExistsError: If something else is in the way.
        MissingDependencyError: If Kaggle's client is not installed.
    """
    owner, _, name = dataset.partition("/")
    if not owner or not name or "/" in name:
        raise DownloadError(f"{dataset!r} is no dataset of Kaggle: write OWNER/NAME, as in its address.")
    check_writable(folder, marker=MARKER, replace=replace)
    beside = folder.with_name(f".{folder.name}.download")
    archive = beside / f"{name}-{version or 'newest'}.zip"
    beside.mkdir(parents=True, exist_ok=True)
    with _client(credentials) as api:
        response = _ask(api, owner, name, version)
        _fetch(api, response, archive, lambda done, total: progress("MB", round(done / 1e6), round(total / 1e6)))
        _verify(archive, response.headers)
    with atomic_directory(folder, marker=MARKER, replace=replace) as aside:
        left_out = unpack_pairs(archive, aside, lambda done, total: progress("files", done, total))
        write_text(aside / MARKER, f"{dataset}\nversion {version or 'newest'}\nmd5 {_md5(archive).hex()}\n")
    shutil.rmtree(beside)
    listing = list_pairs(folder)
    return Downloaded(folder, len(listing.pairs), listing.problems, left_out)


@contextmanager
def _client(credentials: Credentials) -> Iterator[Any]:
    """Give Kaggle's client, authenticated; what it prints is dropped."""
    if find_spec("kaggle") is None:
        raise MissingDependencyError("kaggle", "train")
    given = {
        "KAGGLE_API_TOKEN": credentials.token,
        "KAGGLE_USERNAME": credentials.username,
        "KAGGLE_KEY": credentials.key,
    }
    os.environ.update({name: value for name, value in given.items() if value})
    from requests import RequestException

    with redirect_stdout(io.StringIO()):
        try:
            # imported late: it authenticates as it is imported
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
        except SystemExit:
            raise DownloadError(_what_is_missing(given)) from None
        except RequestException as error:
            raise DownloadError(f"Kaggle cannot be reached: {error}. Nothing was changed; try again.") from error
        yield api


def _what_is_missing(given: Mapping[str, str | None]) -> str:
    """Say of each credential what is wrong with it, and how to get one."""
    home = Path("~/.kaggle")
    token = "is refused or expired" if given["KAGGLE_API_TOKEN"] else "is not set"
    lines = [f"KAGGLE_API_TOKEN {token}"]
    for file in ("access_token", "kaggle.json"):
        there = (home / file).expanduser().is_file()
        lines.append(f"{home / file} {'is there, but is refused or incomplete' if there else 'is not there'}")
    pair = [f"{name} is {'' if given[name] else 'not '}set" for name in ("KAGGLE_USERNAME", "KAGGLE_KEY")]
    lines.append(" and ".join(pair))
    listed = "".join(f"\n  - {line}" for line in lines)
    return (
        f"No credentials for Kaggle that work; one of these is needed:{listed}\n"
        f"Make a token at {_TOKEN_PAGE} (API, Create New Token) and set KAGGLE_API_TOKEN, in the environment or .env."
    )


def _ask(api: Any, owner: str, name: str, version: int | None) -> Any:
    """Ask Kaggle for the archive and return its answer, of which only the head was read."""
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest
    from requests import RequestException

    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = owner, name
    if version:
        request.dataset_version_number = version
    which = f"{owner}/{name}" + (f", version {version}" if version else "")
    try:
        with api.build_kaggle_client() as client:
            return client.datasets.dataset_api_client.download_dataset(request)
    except RequestException as error:
        raise DownloadError(_why_refused(which, error)) from error


def _why_refused(which: str, error: Any) -> str:
    status = getattr(error.response, "status_code", None)
    if status == 404:
        return f"Kaggle has no dataset {which}. Its address ends with OWNER/NAME."
    if status == 403:
        return f"Kaggle does not give {which}: open its page once with your account and accept its terms."
    if status == 401:
        return f"Kaggle refuses the credentials. Make a new token at {_TOKEN_PAGE} and set KAGGLE_API_TOKEN."
    return f"Kaggle does not give {which}: {_unsigned(error)}. Nothing was changed; try again."


def _unsigned(error: Exception) -> str:
    """Return what an error says without the signatures of addresses in it: they let anybody download."""
    return re.sub(r"\?\S*", "", str(error))


def _fetch(api: Any, response: Any, archive: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Write the archive, from where an interrupted download of the same one ended."""
    from requests import RequestException

    total = int(response.headers.get("Content-Length") or 0)
    with _watched(archive, total, on_bytes):
        try:
            if not (archive.is_file() and _matches(archive, response.headers)):
                api.download_file(response, str(archive), None, quiet=True, resume=True, max_retries=_RETRIES)
        except (RequestException, ValueError) as error:
            raise DownloadError(
                f"The download broke off: {_unsigned(error)}. "
                f"{archive} keeps what has come; the same command goes on with it."
            ) from error


@contextmanager
def _watched(file: Path, total: int, on_bytes: Callable[[int, int], None]) -> Iterator[None]:
    """Tell how a file grows while the block runs."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            if file.is_file() and total:
                on_bytes(min(file.stat().st_size, total), total)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
        if total:
            on_bytes(total, total)
    finally:
        done.set()
        watcher.join()


def _matches(archive: Path, headers: Mapping[str, str]) -> bool:
    """Say whether a file is what these headers are of; False if they do not tell."""
    promised = _promised_md5(headers)
    return promised is not None and _md5(archive) == promised


def _verify(archive: Path, headers: Mapping[str, str]) -> None:
    """Refuse an archive that is not what was promised; it is deleted, or every next try would go on with it.

    Raises:
        DownloadError: If it is not.
    """
    promised = _promised_md5(headers)
    if (promised is not None and _md5(archive) != promised) or not zipfile.is_zipfile(archive):
        archive.unlink()
        raise DownloadError("What came from Kaggle is damaged: its checksum is not the promised one. Try again.")


def _promised_md5(headers: Mapping[str, str]) -> bytes | None:
    """Return the MD5 that Google Cloud Storage, where Kaggle keeps its files, states; None if it does not."""
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "md5":
            return base64.b64decode(value)
    return None


def _md5(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).digest()
