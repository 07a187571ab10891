"""Downloads with Kaggle's client from a local server: authentication, resume, checksum, unpacking."""

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droneseg.core.errors import DownloadError, OutputExistsError
from droneseg.data.dataset import IMAGES_FOLDER, MASKS_FOLDER
from droneseg.data.kaggle import DATASET, DOWNLOAD_MARKER, Credentials, DownloadResult, download_dataset
from support.kaggle import KEY, TOKEN, USERNAME, Kaggle, kaggle_server
from support.workspace import Workspace

WITH_TOKEN = Credentials(token=TOKEN)


@pytest.fixture
def kaggle(dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kaggle]:
    """Serve two versions of the dataset; the first one has three pairs."""
    with kaggle_server() as served:
        for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (served.environment | {"HOME": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("time.sleep", lambda _s: None)
        from kaggle.api.kaggle_api_extended import KaggleApi

        # LOCALHOST also sets --verbose, which reads the archive into memory and prints it
        monkeypatch.setattr(KaggleApi, "args", ["--local"])
        served.archives[DATASET, 2] = archive(dataset)
        for folder in (IMAGES_FOLDER, MASKS_FOLDER):
            next(dataset.rglob(f"{folder}/003.png")).unlink()
        served.archives[DATASET, 1] = archive(dataset)
        yield served


def archive(folder: Path, extra: dict[str, bytes] | None = None) -> bytes:
    """Return the dataset as a ZIP file like Kaggle's, with other folders in it."""
    data = io.BytesIO()
    needless = {"RGB_color_image_masks/RGB_color_image_masks/000.png": b"x", "class_dict_seg.csv": b"name, r, g, b"}
    needless |= {"noise.bin": np.random.default_rng(0).bytes(8_000_000)}  # the client writes pieces of 1 MiB
    with zipfile.ZipFile(data, "w") as made:
        for file in sorted(folder.rglob("*.png")):
            made.write(file, file.relative_to(folder))
        for name, content in (needless | (extra or {})).items():
            made.writestr(name, content)
    return data.getvalue()


def download(folder: Path, credentials: Credentials = WITH_TOKEN, **options: Any) -> DownloadResult:
    return download_dataset(folder, credentials=credentials, progress=lambda *_: None, **options)


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_only_images_and_masks_are_unpacked(kaggle: Kaggle, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path / "got"
    done = download_dataset(folder, credentials=WITH_TOKEN, progress=lambda *step: seen.append(step))
    assert (done.pairs, done.problems, done.left_out) == (4, (), 3)
    root = "classes_dataset/classes_dataset"
    pairs = [f"{root}/{kind}/{index:03d}.png" for kind in (MASKS_FOLDER, IMAGES_FOLDER) for index in range(4)]
    assert names(folder) == [DOWNLOAD_MARKER, *pairs]
    assert (folder / DOWNLOAD_MARKER).read_text().startswith(f"{DATASET}\nversion newest\nmd5 ")
    assert seen[-1] == ("files", 8, 8)
    assert not (tmp_path / ".got.download").exists()


def test_version_can_be_selected(kaggle: Kaggle, tmp_path: Path) -> None:
    assert download(tmp_path / "got", version=1).pairs == 3
    with pytest.raises(DownloadError, match=r"has no dataset .*, version 7"):
        download(tmp_path / "other", version=7)


def test_user_name_and_key_authenticate(kaggle: Kaggle, tmp_path: Path) -> None:
    assert download(tmp_path / "got", Credentials(username=USERNAME, key=KEY)).pairs == 4


@pytest.mark.parametrize(
    ("credentials", "lines"),
    [
        (Credentials(), ["KAGGLE_API_TOKEN is not set", "KAGGLE_USERNAME is not set and KAGGLE_KEY is not set"]),
        (Credentials(token="wrong"), ["KAGGLE_API_TOKEN is invalid or expired"]),
        (Credentials(username="pilot"), ["KAGGLE_USERNAME is set and KAGGLE_KEY is not set"]),
    ],
    ids=["none", "a wrong token", "a name alone"],
)
def test_error_lists_the_state_of_every_credential(
    kaggle: Kaggle, tmp_path: Path, credentials: Credentials, lines: list[str]
) -> None:
    with pytest.raises(DownloadError) as refused:
        download(tmp_path / "got", credentials)
    message = str(refused.value)
    assert all(line in message for line in lines)
    assert "~/.kaggle/access_token does not exist" in message
    assert "set KAGGLE_API_TOKEN in the environment or .env" in message


def test_403_asks_to_accept_the_terms(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.forbid = True
    with pytest.raises(DownloadError, match="accept its terms"):
        download(tmp_path / "got")


def test_401_reports_rejected_credentials(kaggle: Kaggle, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="rejected the credentials"):
        download(tmp_path / "got", Credentials(username=USERNAME, key="wrong"))


def test_interrupted_download_is_resumed(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.cut_after_bytes = 1_200_000
    with pytest.raises(DownloadError, match=r"interrupted: .*contains the received part.*Run the same command again"):
        download(tmp_path / "got")
    assert not (tmp_path / "got").exists()
    (partial,) = (tmp_path / ".got.download").glob("*.zip")
    has = partial.stat().st_size
    assert 0 < has < len(kaggle.archives[DATASET, 2])
    kaggle.cut_after_bytes = None
    kaggle.ranges.clear()
    assert download(tmp_path / "got").pairs == 4
    assert kaggle.ranges == [f"bytes={has}-"]


@pytest.mark.parametrize("where", ["on the way", "in the archive"])
def test_damaged_archive_is_rejected_and_downloaded_again(kaggle: Kaggle, tmp_path: Path, where: str) -> None:
    whole = kaggle.archives[DATASET, 2]
    if where == "on the way":
        kaggle.damage = True
    else:
        kaggle.archives[DATASET, 2] = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    with pytest.raises(DownloadError, match="corrupt"):
        download(tmp_path / "got")
    assert not (tmp_path / "got").exists()
    kaggle.damage = False
    kaggle.archives[DATASET, 2] = whole
    assert download(tmp_path / "got").pairs == 4


def test_archive_members_cannot_escape_the_folder(kaggle: Kaggle, dataset: Path, tmp_path: Path) -> None:
    kaggle.archives[DATASET, 3] = archive(dataset, {"../../evil.png": b"x", f"../../{IMAGES_FOLDER}/evil.png": b"x"})
    assert download(tmp_path / "got").pairs == 3
    assert not list(tmp_path.rglob("evil.png"))


def test_dataset_with_another_layout_is_rejected(kaggle: Kaggle, tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        made.writestr("cats/000.png", b"x")
    kaggle.archives["someone/cats", 1] = data.getvalue()
    with pytest.raises(DownloadError, match=r"contains 0 folders with both .* Its folders: cats"):
        download(tmp_path / "got", dataset="someone/cats")
    with pytest.raises(DownloadError, match="Use OWNER/NAME"):
        download(tmp_path / "got", dataset="cats")
    assert not (tmp_path / "got").exists()


def test_existing_folder_is_replaced_only_with_force(kaggle: Kaggle, tmp_path: Path) -> None:
    folder = tmp_path / "got"
    download(folder, version=1)
    with pytest.raises(OutputExistsError, match="--force"):
        download(folder)
    assert download(folder, replace=True).pairs == 4
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="was not created by this command"):
        download(mine, replace=True)


def test_unreachable_server_is_reported(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(tmp_path / "got")


def test_convert_reads_the_downloaded_dataset(kaggle: Kaggle, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    done = workspace.run("data", "download", KAGGLE_API_TOKEN=TOKEN)
    assert "data/drone: 4 pairs (3 other files were not unpacked)" in done.stdout
    assert "MB: 8 of 8" in done.stderr
    converted = workspace.run("data", "convert", "data/drone", "--test-share", "0.25")
    assert "cases: 3 training, 1 test" in converted.stdout
    refused = workspace.run("data", "download", "elsewhere", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: No valid Kaggle credentials")


def test_client_is_not_imported_with_the_module() -> None:
    script = "import sys, droneseg.data.kaggle; print('kaggle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
