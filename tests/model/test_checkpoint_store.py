"""Pull the checkpoint of the champion from a DVC remote in a folder."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from droneseg.core.errors import OutputExistsError, StoreError
from droneseg.model.checkpoint_store import pull_checkpoint, read_licence, read_record
from droneseg.model.dvc_remote import DvcOutput, read_dvc_file, read_meta, write_dvc_file
from droneseg.model.registry import RegisteredModel, RegistryEntry, append_entry
from support.projects import dvc, make_project
from support.workspace import Workspace

META = {"model_id": "0123456789ab", "license": "Non-commercial. See MODEL_LICENSE.md."}
FILES = {
    "plans.json": b'{"configurations": {}}',
    "dataset.json": b"{}",
    "fold_0/checkpoint_final.pth": b"weights" * 100,
}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def push(folder: Path, files: dict[str, bytes]) -> None:
    """Store a version of the checkpoint in the project's remote, and nowhere else."""
    shutil.rmtree(folder / "nnunet-model", ignore_errors=True)
    write_files(folder / "nnunet-model", files)
    dvc(folder, "add", "--quiet", "nnunet-model")
    dvc(folder, "push", "--quiet", "nnunet-model.dvc")
    write_dvc_file(folder / "nnunet-model.dvc", read_dvc_file(folder / "nnunet-model.dvc"), meta=META)
    for away in ("nnunet-model", ".dvc/cache"):
        shutil.rmtree(folder / away)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose champion and checkpoint are only in its remote."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, scm=False, remote="remote")
    shutil.rmtree(folder / "nnUNet_results")
    push(folder, FILES)
    return folder


@pytest.fixture
def project(pushed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pushed, tmp_path / "clone"))


@pytest.fixture
def champion(project: Path) -> Path:
    return project / "nnUNet_results/champion"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def cached(project: Path) -> set[bytes]:
    return {file.read_bytes() for file in (project / ".dvc/cache").rglob("*") if file.is_file()}


def test_checkpoint_is_fetched_only_when_asked_for(project: Path) -> None:
    Workspace(project).run("models", "pull")
    assert (project / "nnUNet_results/champion/manifest.json").is_file()
    assert not (project / "nnunet-model").exists()
    assert not cached(project) & set(FILES.values())
    shutil.rmtree(project / "nnUNet_results")
    shown = Workspace(project).run("models", "pull", "--checkpoint").stdout
    assert contents(project / "nnunet-model") == FILES
    assert not (project / "nnUNet_results").exists()
    assert f"checkpoint of model {META['model_id']}, downloaded" in shown
    assert f"licence: {META['license']}" in shown
    assert "next: droneseg train configuration=2d_mine weights=nnunet-model/fold_0/checkpoint_final.pth" in shown
    dvc(project, "status", "--quiet", "nnunet-model.dvc")  # fails if files are changed or missing
    assert "already up to date" in Workspace(project).run("models", "pull", "--checkpoint").stdout


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_remote_is_refused_and_an_earlier_copy_kept(project: Path, champion: Path, damage: str) -> None:
    pull_checkpoint(champion)
    push_newer(project, FILES | {"fold_0/checkpoint_final.pth": b"newer"})
    for file in (project / "remote").rglob("*"):
        if file.is_file() and file.read_bytes() == b"newer":
            file.chmod(0o644)
            file.write_bytes(b"ruined") if damage == "changed" else file.unlink()
    with pytest.raises(StoreError, match="Checksum mismatch" if damage == "changed" else "does not have this version"):
        pull_checkpoint(champion)
    assert contents(project / "nnunet-model") == FILES
    assert [path.name for path in project.glob(".nnunet-model*")] == []


def push_newer(project: Path, files: dict[str, bytes]) -> None:
    """Store a newer version of the checkpoint, as a colleague would; the local copy stays as it was."""
    kept = contents(project / "nnunet-model")
    push(project, files)
    write_files(project / "nnunet-model", kept)


def test_earlier_version_is_replaced_and_a_changed_copy_kept(project: Path, champion: Path) -> None:
    pull_checkpoint(champion)
    newer = FILES | {"fold_0/checkpoint_final.pth": b"newer"}
    push_newer(project, newer)
    assert pull_checkpoint(champion).fetched
    assert contents(project / "nnunet-model") == newer
    mine = project / "nnunet-model/fold_0/checkpoint_final.pth"
    mine.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="already exists and was not changed"):
        pull_checkpoint(champion)
    assert mine.read_bytes() == b"mine"
    pull_checkpoint(champion, replace=True)
    assert contents(project / "nnunet-model") == newer


def test_other_folder_of_that_name_is_never_replaced(project: Path, champion: Path) -> None:
    write_files(project / "nnunet-model", {"notes.txt": b"mine"})
    with pytest.raises(OutputExistsError, match="was not created by this command"):
        pull_checkpoint(champion, replace=True)
    assert contents(project / "nnunet-model") == {"notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["../outside.json", "fold_0/run.py", "/etc/x"])
def test_version_with_other_files_is_refused(project: Path, champion: Path, name: str) -> None:
    version = read_dvc_file(project / "nnunet-model.dvc")
    remote = project / "remote/files/md5"
    entries = json.loads((remote / version.md5[:2] / version.md5[2:]).read_bytes())
    wrong = json.dumps([*entries, {"md5": "0" * 32, "relpath": name}]).encode()
    md5 = hashlib.md5(wrong, usedforsecurity=False).hexdigest() + ".dir"
    (remote / md5[:2]).mkdir(exist_ok=True)
    (remote / md5[:2] / md5[2:]).write_bytes(wrong)
    write_dvc_file(project / "nnunet-model.dvc", DvcOutput(md5, version.size_bytes, version.files))
    with pytest.raises(StoreError, match="is not a model folder of nnU-Net"):
        pull_checkpoint(champion)
    assert not (project / "nnunet-model").exists()


def test_project_without_a_checkpoint_says_how_to_store_one(project: Path, champion: Path) -> None:
    (project / "nnunet-model.dvc").unlink()
    with pytest.raises(StoreError, match=r"so no checkpoint is stored\..*push --checkpoint"):
        pull_checkpoint(champion)
    assert read_record(champion) is None


def test_checkpoint_of_another_model_is_recognised(project: Path, champion: Path) -> None:
    version = read_dvc_file(project / "nnUNet_results.dvc")
    for champion_id, is_of_another_model in ((None, False), ("ffffffffffff", True), (META["model_id"], False)):
        if champion_id:
            append_entry(project, promotion(champion_id, version))
        record = read_record(champion)
        assert record is not None
        assert (record.champion_id, record.is_of_another_model) == (champion_id, is_of_another_model)


def promotion(model_id: str, version: DvcOutput) -> RegistryEntry:
    model = RegisteredModel(model_id=model_id, version=version)
    return RegistryEntry(when="", who="", action="promote", model=model, previous=None, reason="")


def test_licence_contains_the_file_that_it_names(project: Path, champion: Path) -> None:
    record = read_record(champion)
    assert record is not None
    assert read_licence(champion, record) == f"{META['license']}\n"
    (project / "MODEL_LICENSE.md").write_text("All the terms.\n")
    assert read_licence(champion, record) == f"{META['license']}\n\nAll the terms.\n"


def test_dvc_keeps_the_facts_about_a_checkpoint(project: Path, champion: Path) -> None:
    pull_checkpoint(champion)
    dvc(project, "add", "--quiet", "nnunet-model")
    assert read_meta(project / "nnunet-model.dvc") == META


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--zip", "model.zip"), "needs --checkpoint"), (("--checkpoint", "--zip", "model.tar"), "must end with .zip")],
)
def test_zip_file_needs_a_checkpoint_and_its_suffix(project: Path, options: tuple[str, ...], words: str) -> None:
    done = Workspace(project).run("models", "pull", *options, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (project / "nnunet-model").exists()
