"""Fetching the model with the real DVC, from a remote that is a folder."""

import shutil
from pathlib import Path

import pytest

from droneseg.core.errors import MissingDependencyError, StoreError
from droneseg.core.settings import Pull
from droneseg.model.bundle import read_bundle
from droneseg.model.store import fetch_model
from support.bundles import make_bundle
from support.projects import make_project


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose model is in its remote, and only there."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, scm=False, remote="remote")
    for away in ("nnUNet_results", ".dvc/cache"):
        shutil.rmtree(folder / away)
    return folder


@pytest.fixture
def project(pushed: Path, tmp_path: Path) -> Path:
    """Return a clone of it."""
    return Path(shutil.copytree(pushed, tmp_path / "clone"))


@pytest.fixture
def champion(project: Path) -> Path:
    return project / "nnUNet_results" / "champion"


@pytest.mark.parametrize("pull", ["auto", "always"])
def test_a_model_that_is_not_there_is_fetched_and_verifies(champion: Path, pull: Pull) -> None:
    fetch_model(champion, pull)
    assert read_bundle(champion).manifest.version == "0"


def test_never_leaves_it_where_it_is(champion: Path) -> None:
    fetch_model(champion, "never")
    assert not champion.exists()


def test_a_model_that_is_there_is_left_alone(champion: Path) -> None:
    champion.parent.mkdir()
    make_bundle(champion, patch=(8, 8))
    mine = (champion / "manifest.json").read_bytes()
    shutil.rmtree(champion.parents[1] / "remote")  # nobody asks for it
    fetch_model(champion, "auto")
    assert (champion / "manifest.json").read_bytes() == mine


@pytest.mark.parametrize("folder", ["/model-of-a-test", "champion"])
def test_a_folder_at_the_top_is_nobodys(folder: str) -> None:
    for pull in ("auto", "never"):
        fetch_model(Path(folder), pull)


def test_an_empty_folder_is_no_model(champion: Path) -> None:
    champion.mkdir(parents=True)
    fetch_model(champion, "auto")
    assert read_bundle(champion).manifest.version == "0"


def test_a_model_that_no_file_names_is_not_dvcs_to_fetch(tmp_path: Path) -> None:
    fetch_model(tmp_path / "mine" / "champion", "auto")
    with pytest.raises(StoreError, match=r"mine\.dvc is missing.*DRONESEG_DVC_PULL"):
        fetch_model(tmp_path / "mine" / "champion", "always")


def test_a_remote_that_is_away_is_told_and_why_is_logged(
    project: Path, champion: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(project / "remote")
    with pytest.raises(StoreError, match=r"DVC could not fetch .*champion.*nnUNet_results\.dvc names it"):
        fetch_model(champion, "auto")
    assert "does not hold this version of the model" in caplog.text
    assert not champion.exists()


def test_a_remote_whose_file_is_damaged_gives_no_model(project: Path, champion: Path) -> None:
    for file in (project / "remote").rglob("*"):
        if file.is_file() and file.suffix != ".dir":
            file.chmod(0o644)
            file.write_bytes(b"damaged" + file.read_bytes())
    with pytest.raises(StoreError):
        fetch_model(champion, "auto")


def test_without_dvc_the_error_says_what_to_install(champion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("droneseg.model.remote.find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="store"):
        fetch_model(champion, "auto")
