"""Pull, push and list models with a DVC remote in a folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from droneseg.core.errors import MissingDependencyError, StoreError
from droneseg.core.settings import Pull
from droneseg.model.bundle import read_bundle
from droneseg.model.dvc_remote import read_dvc_file
from droneseg.model.registry import list_models, read_registry
from droneseg.model.store import fetch_model, pull_model, push_model
from support.bundles import make_bundle
from support.projects import make_project


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose model is only in its remote."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, scm=False, remote="remote")
    for away in ("nnUNet_results", ".dvc/cache"):
        shutil.rmtree(folder / away)
    return folder


@pytest.fixture
def project(pushed: Path, tmp_path: Path) -> Path:
    """Return a copy of the project."""
    return Path(shutil.copytree(pushed, tmp_path / "clone"))


@pytest.fixture
def champion(project: Path) -> Path:
    return project / "nnUNet_results" / "champion"


@pytest.mark.parametrize("pull", ["auto", "always"])
def test_missing_model_is_fetched_and_verified(champion: Path, pull: Pull) -> None:
    fetch_model(champion, pull)
    assert read_bundle(champion).manifest.version == "0"


def test_pull_never_fetches_nothing(champion: Path) -> None:
    fetch_model(champion, "never")
    assert not champion.exists()


def test_pull_auto_keeps_an_existing_model(champion: Path) -> None:
    champion.parent.mkdir()
    make_bundle(champion, patch=(8, 8))
    mine = (champion / "manifest.json").read_bytes()
    shutil.rmtree(champion.parents[1] / "remote")  # the remote is not needed
    fetch_model(champion, "auto")
    assert (champion / "manifest.json").read_bytes() == mine


def test_pull_always_does_not_replace_an_unregistered_model(champion: Path, caplog: pytest.LogCaptureFixture) -> None:
    champion.parent.mkdir()
    make_bundle(champion, patch=(8, 8))
    mine = (champion / "manifest.json").read_bytes()
    with pytest.raises(StoreError, match="DVC could not fetch"):
        fetch_model(champion, "always")
    assert "already exists and was not changed" in caplog.text
    assert (champion / "manifest.json").read_bytes() == mine


def test_untracked_model_is_not_listed_as_champion(project: Path, champion: Path) -> None:
    assert [version.is_local for version in list_models(champion, None)] == [False]
    pull_model(champion)
    assert [version.is_local for version in list_models(champion, None)] == [True]
    shutil.rmtree(champion)
    make_bundle(champion, patch=(8, 8))
    (only,) = list_models(champion, None)
    assert (only.model_id, only.is_local) == (None, False)


def test_push_repairs_missing_and_damaged_objects(project: Path, champion: Path) -> None:
    pull_model(champion)
    network = max(
        (file for file in (project / "remote").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    whole = network.read_bytes()
    network.chmod(0o644)
    for damage in (b"\0" * len(whole), None):
        if damage is None:
            network.unlink()
            assert [version.in_remote for version in list_models(champion, "models")] == [False]
        else:
            network.write_bytes(damage)
        push_model(champion)
        assert network.read_bytes() == whole
        network.chmod(0o644)
    assert [version.in_remote for version in list_models(champion, "models")] == [True]


def test_binary_registry_is_reported(project: Path) -> None:
    (project / "model-registry.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="is corrupt: it is not UTF-8 text"):
        read_registry(project)


def test_dvc_file_is_reduced_to_its_version(project: Path, tmp_path: Path) -> None:
    sent = tmp_path / "candidate.dvc"
    version = read_dvc_file(project / "nnUNet_results.dvc")
    out = {"md5": version.md5, "size": version.size_bytes, "nfiles": version.files, "hash": "md5", "remote": "theirs"}
    command = [sys.executable, "-m", "droneseg.model.dvc_remote", str(sent)]
    sent.write_text(yaml.safe_dump({"wdir": "..", "cmd": "rm x", "outs": [out | {"path": ".github", "cache": False}]}))
    subprocess.run(command, check=True)
    wanted = {"md5": version.md5, "size": version.size_bytes, "nfiles": version.files, "hash": "md5"}
    assert yaml.safe_load(sent.read_text()) == {"outs": [wanted | {"path": "candidate"}]}
    sent.write_text(yaml.safe_dump({"outs": [out | {"path": "a"}, out | {"path": "b"}]}))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not record the version of one directory" in done.stderr


@pytest.mark.parametrize("folder", ["/model-of-a-test", "champion"])
def test_folder_without_dvc_file_is_not_fetched(folder: str) -> None:
    for pull in ("auto", "never"):
        fetch_model(Path(folder), pull)


def test_model_is_fetched_into_an_empty_folder(champion: Path) -> None:
    champion.mkdir(parents=True)
    fetch_model(champion, "auto")
    assert read_bundle(champion).manifest.version == "0"


def test_pull_always_requires_a_dvc_file(tmp_path: Path) -> None:
    fetch_model(tmp_path / "mine" / "champion", "auto")
    with pytest.raises(StoreError, match=r"mine\.dvc is missing.*DRONESEG_DVC_PULL"):
        fetch_model(tmp_path / "mine" / "champion", "always")


def test_unavailable_remote_is_reported_and_the_reason_logged(
    project: Path, champion: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(project / "remote")
    with pytest.raises(StoreError, match=r"DVC could not fetch .*champion.*nnUNet_results\.dvc records"):
        fetch_model(champion, "auto")
    assert "does not have this version of the model" in caplog.text
    assert not champion.exists()


def test_dvc_file_outside_of_a_project_is_reported(project: Path, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_results.dvc").write_bytes((project / "nnUNet_results.dvc").read_bytes())
    with pytest.raises(StoreError, match="not inside a DVC repository"):
        pull_model(tmp_path / "nnUNet_results/champion")


def test_damaged_remote_is_rejected(project: Path, champion: Path) -> None:
    for file in (project / "remote").rglob("*"):
        if file.is_file() and file.suffix != ".dir":
            file.chmod(0o644)
            file.write_bytes(b"damaged" + file.read_bytes())
    with pytest.raises(StoreError):
        fetch_model(champion, "auto")


def test_missing_dvc_is_reported_with_the_install_command(champion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("droneseg.model.dvc_remote.find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="store"):
        fetch_model(champion, "auto")
