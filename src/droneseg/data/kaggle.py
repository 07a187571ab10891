"""Download a dataset from Kaggle: client, checksum, unpacking of images and masks."""

import base64
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
from droneseg.core.files import atomic_directory, check_writable, file_md5, write_text
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER, list_pairs

DATASET = "santurini/semantic-segmentation-drone-dataset"
DOWNLOAD_MARKER = ".droneseg-download"
"""File that marks a downloaded folder and records dataset, version and checksum of the archive."""

_TOKEN_PAGE = "https://www.kaggle.com/settings"  # noqa: S105  # a page, not a token

OnProgress = Callable[[str, int, int], None]
"""Progress callback with the unit ("MB" or "files"), the number done and the total."""


@dataclass(frozen=True)
class Credentials:
    """Kaggle credentials: an API token, or a user name and key; values that are not configured are None."""

    token: str | None = None
    username: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class DownloadResult:
    """Result of a download.

    Attributes:
        folder: Dataset in the Kaggle layout, as `droneseg data convert` reads it.
        pairs: Number of images with a mask.
        problems: Problems with the names of files; `droneseg data check` also decodes them.
        left_out: Number of files in the archive that were not unpacked.
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
) -> DownloadResult:
    """Download a dataset from Kaggle and unpack its images and masks.

    The archive is stored in a folder beside the target, so that an interrupted download can be resumed. It is deleted
    once everything is unpacked.

    Args:
        folder: Folder to write.
        dataset: Dataset as OWNER/NAME.
        version: Version of the dataset; None for the newest.
        credentials: Kaggle credentials.
        replace: Whether an earlier download in `folder` may be replaced.
        progress: Progress callback.

    Raises:
        DownloadError: If credentials are missing or invalid, the download fails, or the archive is damaged or has
            another layout.
        OutputExistsError: If `folder` contains files of another origin, or a download while `replace` is False.
        MissingDependencyError: If Kaggle's client is not installed.
    """
    owner, _, name = dataset.partition("/")
    if not owner or not name or "/" in name:
        raise DownloadError(f"{dataset!r} is not a Kaggle dataset. Use OWNER/NAME, as in its URL.")
    check_writable(folder, marker=DOWNLOAD_MARKER, replace=replace)
    download_dir = folder.with_name(f".{folder.name}.download")
    download_dir.mkdir(parents=True, exist_ok=True)
    with _client(credentials) as client:
        archive = _download_archive(client, dataset, version, download_dir, progress)
    with atomic_directory(folder, marker=DOWNLOAD_MARKER, replace=replace) as staging_dir:
        left_out = unpack_pairs(archive, staging_dir, lambda done, total: progress("files", done, total))
        record = f"{dataset}\nversion {version or 'newest'}\nmd5 {file_md5(archive)}\n"
        write_text(staging_dir / DOWNLOAD_MARKER, record)
    shutil.rmtree(download_dir)
    listing = list_pairs(folder)
    return DownloadResult(folder, len(listing.pairs), listing.problems, left_out)


@contextmanager
def _client(credentials: Credentials) -> Iterator[Any]:
    """Authenticate Kaggle's client; its output to stdout is discarded while the block runs."""
    if find_spec("kaggle") is None:
        raise MissingDependencyError("kaggle", "train")
    variables = {
        "KAGGLE_API_TOKEN": credentials.token,
        "KAGGLE_USERNAME": credentials.username,
        "KAGGLE_KEY": credentials.key,
    }
    os.environ.update({name: value for name, value in variables.items() if value})
    from requests import RequestException

    with redirect_stdout(io.StringIO()):
        try:
            client = _make_client()
            client.authenticate()
        except SystemExit:
            raise DownloadError(_explain_credentials(variables)) from None
        except RequestException as error:
            raise DownloadError(f"Kaggle cannot be reached: {error}. Nothing was changed; try again.") from error
        yield client


def _make_client() -> Any:
    # imported late: kaggle authenticates when it is imported
    from kaggle.api.kaggle_api_extended import KaggleApi

    class Client(KaggleApi):  # type: ignore[misc]  # kaggle has no types
        """Kaggle's client, which compares the checksum of an existing archive instead of its date."""

        headers: Mapping[str, str] = {}

        def download_needed(self, response: Any, outfile: str, quiet: bool = True) -> bool:  # noqa: ARG002  # the base's
            self.headers = response.headers
            return not _matches_md5(Path(outfile), self.headers)

    return Client()


def _explain_credentials(variables: Mapping[str, str | None]) -> str:
    """Return a message with the state of each source of credentials."""
    config_dir = Path("~/.kaggle")
    token_state = "is invalid or expired" if variables["KAGGLE_API_TOKEN"] else "is not set"
    lines = [f"KAGGLE_API_TOKEN {token_state}"]
    for name in ("access_token", "kaggle.json"):
        exists = (config_dir / name).expanduser().is_file()
        lines.append(f"{config_dir / name} {'is invalid or incomplete' if exists else 'does not exist'}")
    pair = [f"{name} is {'' if variables[name] else 'not '}set" for name in ("KAGGLE_USERNAME", "KAGGLE_KEY")]
    lines.append(" and ".join(pair))
    sources = "".join(f"\n  - {line}" for line in lines)
    return (
        f"No valid Kaggle credentials. One of these is needed:{sources}\n"
        f"Create a token at {_TOKEN_PAGE} (API, Create New Token) and set KAGGLE_API_TOKEN in the environment or .env."
    )


def _download_archive(client: Any, dataset: str, version: int | None, folder: Path, progress: OnProgress) -> Path:
    """Download the archive, or resume its download, and verify it."""
    from requests import RequestException

    archive = folder / f"{dataset.partition('/')[2]}.zip"
    label = f"{dataset}, version {version}" if version else dataset
    with _report_growth(archive, client, lambda done, total: progress("MB", round(done / 1e6), round(total / 1e6))):
        try:
            client.dataset_download_files(f"{dataset}/{version}" if version else dataset, path=str(folder))
        except (RequestException, ValueError) as error:
            if not client.headers:
                raise DownloadError(_explain_refusal(label, error)) from error
            raise DownloadError(
                f"The download was interrupted: {_without_signature(error)}. {archive} contains the received part. "
                "Run the same command again to resume."
            ) from error
    if (_expected_md5(client.headers) and not _matches_md5(archive, client.headers)) or not zipfile.is_zipfile(archive):
        archive.unlink()  # otherwise every retry would resume the damaged file
        raise DownloadError("The download from Kaggle is corrupt: its checksum does not match. Try again.")
    return archive


def _explain_refusal(label: str, error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 404:
        return f"Kaggle has no dataset {label}. Use OWNER/NAME from the end of its URL."
    if status == 403:
        return f"Kaggle denied access to {label}. Open its page once with your account and accept its terms."
    if status == 401:
        return f"Kaggle rejected the credentials. Create a token at {_TOKEN_PAGE} and set KAGGLE_API_TOKEN."
    return f"Kaggle did not return {label}: {_without_signature(error)}. Nothing was changed; try again."


def _without_signature(error: Exception) -> str:
    """Return the message of an error without the query strings of signed URLs, which would let anyone download."""
    return re.sub(r"\?\S*", "", str(error))


@contextmanager
def _report_growth(file: Path, client: Any, on_bytes: Callable[[int, int], None]) -> Iterator[None]:
    """Report the size of a growing file while the block runs; Kaggle's client has no progress callback."""
    finished = threading.Event()

    def total() -> int:
        return int(client.headers.get("Content-Length") or 0)

    def watch() -> None:
        while not finished.wait(0.2):
            if file.is_file() and total():
                on_bytes(min(file.stat().st_size, total()), total())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        if total():
            on_bytes(total(), total())
    finally:
        finished.set()
        watcher.join()


def _matches_md5(archive: Path, headers: Mapping[str, str]) -> bool:
    """Return whether an archive exists and has the MD5 in the headers; False if the headers contain none."""
    expected = _expected_md5(headers)
    return expected is not None and archive.is_file() and file_md5(archive) == expected


def _expected_md5(headers: Mapping[str, str]) -> str | None:
    """Return the MD5 in the header `x-goog-hash` of Google Cloud Storage, which hosts Kaggle's files."""
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "md5":
            return base64.b64decode(value).hex()
    return None


def unpack_pairs(archive: Path, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Unpack the images and masks of an archive to the Kaggle layout, whatever their folder in the archive.

    Args:
        archive: ZIP file; deleted if it is damaged.
        folder: Folder in which `classes_dataset/classes_dataset/...` is created.
        progress: Callback with the number of files unpacked and the total.

    Returns:
        The number of files that were not unpacked.

    Raises:
        DownloadError: If the archive is damaged or does not contain exactly one pair of folders for images and masks.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            targets = _select_members([member.filename for member in members], archive)
            for done, (name, target) in enumerate(targets.items(), start=1):
                # the target has a fixed folder and the bare file name, so a member cannot escape from `folder`
                path = folder / KAGGLE_FOLDER / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(name) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                progress(done, len(targets))
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DownloadError(f"The downloaded archive is corrupt ({error}). Try again.") from error
    return len(members) - len(targets)


def _select_members(names: list[str], archive: Path) -> dict[str, Path]:
    """Return the members to unpack, each with its path relative to the Kaggle folder."""
    folders = {PurePosixPath(name).parent for name in names}
    parents = {
        folder.parent for folder in folders if {folder.parent / IMAGES_FOLDER, folder.parent / MASKS_FOLDER} <= folders
    }
    if len(parents) != 1:
        raise DownloadError(
            f"{archive.name} contains {len(parents)} folders with both {IMAGES_FOLDER} and {MASKS_FOLDER}; expected "
            f"one. Choose another dataset. Its folders: {', '.join(sorted(map(str, folders))[:8])}"
        )
    (root,) = parents
    selected = {root / IMAGES_FOLDER, root / MASKS_FOLDER}
    paths = {name: PurePosixPath(name) for name in names}
    return {name: Path(path.parent.name, path.name) for name, path in paths.items() if path.parent in selected}
