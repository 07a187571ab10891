"""Store the checkpoint of a promoted model, and fetch it in a clone."""

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import torch

from droneseg.core.files import file_md5, file_sha256
from droneseg.model.bundle import Bundle, read_bundle, write_bundle
from droneseg.nnunet.checkpoint import read_checkpoint
from support.model_folders import make_model_folder
from support.projects import GOOD, dvc, git, make_model, make_photographs, make_project
from support.workspace import Workspace

ROOT = Path(__file__).parents[2]
CHECKPOINT = "fold_0/checkpoint_final.pth"


def exported_from(model: Path, folder: Path) -> Bundle:
    """Write a bundle whose manifest names the checkpoint of a model folder."""
    plain = make_model(folder.with_name("plain"), GOOD)
    provenance = plain.manifest.provenance.model_copy(update={"checkpoint_sha256": (file_sha256(model / CHECKPOINT),)})
    update = {"provenance": provenance, "license": "Ask me. See MODEL_LICENSE.md."}
    return write_bundle(
        folder,
        lambda files: plain.manifest.model_copy(update=update | {"files": files}),
        {name: plain.folder / name for name in plain.manifest.files},
    )


def test_checkpoint_of_a_promoted_model_is_stored_and_pulled_in_a_clone(tmp_path: Path) -> None:
    project, clone = tmp_path / "project", tmp_path / "clone"
    make_project(project, remote=str(project / "dvc-remote"))
    shutil.copy(ROOT / ".dvc/config", project / ".dvc/config")  # the configuration shipped with droneseg
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    (project / "MODEL_LICENSE.md").write_text("All the terms.\n")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "as it comes")
    model, other = (make_model_folder(tmp_path / name, value=value) for name, value in (("model", 1.0), ("other", 2.0)))
    candidate = exported_from(model, tmp_path / "candidate")
    photographs = str(make_photographs(tmp_path / "photographs"))
    at_home = Workspace(project)
    promote = ("models", "promote", str(candidate.folder), "--report", str(tmp_path / "report"))
    shown = at_home.run(*promote, "--data", photographs).stdout
    assert "store that of this model with `droneseg models push --checkpoint MODEL_FOLDER`" in shown

    refused = at_home.run("models", "push", "--checkpoint", str(other), check=False)
    assert refused.returncode == 1
    assert "does not have the checkpoints that the champion was exported from" in refused.stderr
    assert not (project / "nnunet-model").exists()
    at_home.run("models", "push")
    shown = at_home.run("models", "push", "--checkpoint", str(model)).stdout
    assert "next: git add nnunet-model.dvc .gitignore dvc-remote && git commit && git push" in shown
    git(project, "add", "nnunet-model.dvc", ".gitignore", "dvc-remote")
    git(project, "commit", "--quiet", "--message", "keep it")
    assert git(project, "status", "--porcelain") == ""

    git(tmp_path, "clone", "--quiet", str(project), str(clone))
    away = Workspace(clone)
    away.run("models", "pull")
    assert not (clone / "nnunet-model").exists()
    done = away.run("models", "pull", "--checkpoint", "--zip", "shared.zip")
    assert f"checkpoint of model {candidate.model_id}" in done.stdout
    assert "note:" not in done.stderr
    content = read_checkpoint(clone / "nnunet-model" / CHECKPOINT)
    assert torch.equal(content["network_weights"]["layer"], torch.full((2, 3), 1.0))
    assert "gsd_m" not in json.loads((clone / "nnunet-model/dataset.json").read_text())["droneseg"]
    with ZipFile(clone / "shared.zip") as archive:
        folder = "Dataset205_Fields/DroneSegTrainer__champion__2d"
        assert archive.read(f"{folder}/LICENSE.md").decode() == "Ask me. See MODEL_LICENSE.md.\n\nAll the terms.\n"
    assert git(clone, "status", "--porcelain") == "?? shared.zip"
    again = away.run("models", "pull", "--checkpoint", "--zip", "shared.zip", check=False)
    assert (again.returncode, "already exists" in again.stderr) == (1, True)

    # the stored checkpoint is no longer that of the champion
    before = file_md5(clone / "nnunet-model" / CHECKPOINT)
    git(clone, "config", "user.name", "A Pilot")
    git(clone, "config", "user.email", "pilot@example.org")
    shown = away.run("models", "rollback").stdout
    assert f"nnunet-model.dvc has the checkpoint of model {candidate.model_id}" in shown
    assert "check out its older version with git" in shown
    champion = read_bundle(clone / "nnUNet_results/champion").model_id
    noted = away.run("models", "pull", "--checkpoint").stderr
    assert "it is not the checkpoint of the champion" in noted
    assert champion != candidate.model_id
    assert file_md5(clone / "nnunet-model" / CHECKPOINT) == before


def test_changed_folder_is_not_replaced(tmp_path: Path) -> None:
    project = tmp_path / "project"
    champion = make_project(project, scm=False, remote="remote")
    model = make_model_folder(tmp_path / "model")
    shutil.rmtree(champion)
    exported_from(model, champion)
    dvc(project, "add", "--quiet", "nnUNet_results")
    Workspace(project).run("models", "push", "--checkpoint", str(model))
    mine = project / "nnunet-model" / CHECKPOINT
    mine.write_bytes(b"mine")
    refused = Workspace(project).run("models", "push", "--checkpoint", str(model), check=False)
    assert "is not the version that nnunet-model.dvc records" in refused.stderr
    assert mine.read_bytes() == b"mine"
