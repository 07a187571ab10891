"""End to end: Kaggle download, training, W&B, bundle, bucket, clone, service, promotion, rollback."""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from droneseg.data.dataset import IMAGES_FOLDER
from droneseg.data.kaggle import DATASET
from droneseg.model.registry import read_registry
from support.buckets import Bucket, bucket
from support.kaggle import TOKEN, Kaggle, kaggle_server
from support.projects import dvc, git
from support.server import Server, serving
from support.waiting import HANG_S
from support.wandb_files import offline_runs
from support.workspace import Workspace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KEY = "a key for tests"
TRAIN = (
    "preset=smoke", "patch_size=[64,64]", "batch_size=4", "base_features=8", "max_features=16", "val_iterations=1",
    "workers=0", "validation=none", "tracking=wandb",
)  # fmt: skip


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[Kaggle]:
    scenes = tmp_path / "scenes"
    Workspace(tmp_path).run("data", "sample", "scenes", "--count", "40", "--size", "96x80")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for file in sorted(scenes.rglob("*.png")):
            archive.write(file, file.relative_to(scenes))
    with kaggle_server() as served:
        served.archives[DATASET, 1] = data.getvalue()
        yield served


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket("team", monkeypatch) as served:
        yield served


def start_project(folder: Path, store: Bucket) -> Workspace:
    """Create a project with a git remote and a DVC remote in a bucket."""
    project = Workspace(folder)
    folder.mkdir()
    git(folder.parent, "init", "--quiet", "--bare", "--initial-branch", "main", "origin.git")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    identify(folder)
    git(folder, "remote", "add", "origin", str(folder.parent / "origin.git"))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    dvc(folder, "init", "--quiet")
    for arguments in (
        ("add", "--default", "gcs", f"{store.url}/dvc"),
        ("modify", "gcs", "endpointurl", store.server),
        ("modify", "gcs", "allow_anonymous_login", "true"),
    ):
        dvc(folder, "remote", *arguments)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "begin")
    return project


def identify(folder: Path) -> None:
    git(folder, "config", "user.name", "A Pilot")
    git(folder, "config", "user.email", "pilot@example.org")


def train(project: Workspace, name: str, *overrides: str) -> Path:
    """Train with offline tracking and export a candidate."""
    environment = {"WANDB_API_KEY": "", "HOME": str(project.root)}
    project.run("train", *TRAIN, f"configuration=2d_{name}", *overrides, **environment)
    fold = project.fold(f"2d_{name}")
    project.run("export", "--from", str(fold.parent), "--out", name, "--images", "4", **environment)
    (training,), artifact = offline_runs(fold), offline_runs(project.root)[-1]
    assert training.id == artifact.id
    assert artifact.artifacts[0][1] == json.loads((project.root / name / "manifest.json").read_text())
    return project.root / name


def served_id(server: Server, photograph: Path) -> str:
    """Return the id of the model that a service predicts with."""
    answer = server.predict(photograph.read_bytes(), **{"X-API-Key": KEY})
    assert answer.status_code == 200
    return str(answer.json()["model_id"])


def reload(server: Server) -> None:
    answer = httpx.post(f"{server.url}/admin/reload", headers={"X-API-Key": KEY}, timeout=HANG_S)
    assert answer.status_code == 200, answer.text


def test_kaggle_download_to_served_promotion_and_rollback(tmp_path: Path, kaggle: Kaggle, store: Bucket) -> None:
    first = start_project(tmp_path / "first", store)
    first.run("data", "download", KAGGLE_API_TOKEN=TOKEN, **kaggle.environment)
    first.run("data", "split", "data/drone", "--out", "split.json", "--by", "random", "--test-share", "0.5")
    first.run("data", "convert", "data/drone", "--split", "split.json")
    first.run("preprocess", "--processes", "2")
    train(first, "weak", "epochs=1", "iterations=2")
    first.run("models", "promote", "weak", "--data", "data/drone", "--force", "the first one")
    train(first, "better", "epochs=4", "iterations=60")
    first.run("models", "push")
    git(first.root, "push", "--quiet", "origin", "main")
    for kept in ("better", "data", "split.json"):
        shutil.move(first.root / kept, tmp_path / kept)
    shutil.rmtree(first.root)

    git(tmp_path, "clone", "--quiet", "origin.git", "second")
    second = Workspace(tmp_path / "second")
    identify(second.root)
    weak_id = read_registry(second.root)[0].model.model_id
    assert weak_id in second.run("models", "pull").stdout
    photograph = next(iter(sorted((tmp_path / "data").rglob(f"{IMAGES_FOLDER}/*.png"))))
    with serving(second.root, api_key=KEY) as server:
        assert served_id(server, photograph) == weak_id
        spec = ("--data", str(tmp_path / "data/drone"), "--split", str(tmp_path / "split.json"), "--part", "test")
        promoted = json.loads(second.run("models", "promote", str(tmp_path / "better"), *spec, "--json").stdout)
        assert promoted["figures"]["images"] == 20
        assert promoted["figures"]["differences"]["miou"]["low"] > 0
        assert not promoted["forced"]
        better_id = promoted["model"]["model_id"]
        assert served_id(server, photograph) == weak_id
        reload(server)
        assert served_id(server, photograph) == better_id
        second.run("models", "rollback", "--reason", "to see that it works")
        reload(server)
        assert served_id(server, photograph) == weak_id
    assert [entry.action for entry in read_registry(second.root)] == ["promote", "promote", "rollback"]
    assert git(second.root, "status", "--porcelain", "--untracked-files=no") == ""
    listed = json.loads(second.run("models", "list", "--remote", "gcs", "--json").stdout)
    assert [(model["model_id"], model["state"], model["in_remote"]) for model in listed] == [
        (weak_id, "champion", True), (better_id, "rolled back", False),
    ]  # fmt: skip
