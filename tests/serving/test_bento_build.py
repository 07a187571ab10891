"""Bento built by `invoke bento-build`, installed and served in a clean environment."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.bundles import make_bundle
from support.images import png
from support.programs import require_program
from support.server import BENTO_BASE64, serving

ROOT = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "uv.lock", "README.md", "LICENSE", "MODEL_LICENSE.md", "bentofile.yaml", "tasks.py")
PHOTO = png(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a bento from a copy of the project with a small model."""
    require_program("uv")
    project = tmp_path_factory.mktemp("project")
    for name in NEEDED:
        shutil.copy(ROOT / name, project / name)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "nnUNet_results").mkdir()
    make_bundle(project / "nnUNet_results" / "champion")
    path = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the task runs programs from Python's folder
    )
    environment = os.environ | {"BENTOML_HOME": str(project / "home"), "PATH": path}
    command = [sys.executable, "-W", "ignore", "-m", "invoke", "bento-build"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (path for path in (project / "home" / "bentos" / "droneseg").iterdir() if path.is_dir())
    return built


@pytest.fixture(scope="module")
def python(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the bento's requirements into a new environment with the bento's own script."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["VIRTUAL_ENV"] = str(folder)
    script = ["bash", str(bento / "env" / "python" / "install.sh")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin" / "python"


def test_bento_returns_the_same_mask_from_a_clean_environment(
    bento: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = bento.parents[3] / "nnUNet_results" / "champion"
    with serving(tmp_path, model=champion) as server:
        expected = server.predict(PHOTO).json()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    shutil.move(champion, tmp_path / "away")  # the bento contains a copy
    command = (str(python), "-W", "ignore", "-m", "bentoml", "serve", str(bento))
    with serving(tmp_path, backend=replace(BENTO_BASE64, command=command)) as server:
        response = server.predict(PHOTO)
    assert response.status_code == 200
    result = response.json()
    assert (result["model_id"], result["segmentation_mask"]) == (expected["model_id"], expected["segmentation_mask"])


def test_build_without_model_fails(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "tasks.py", "bentofile.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "nnUNet_results" / "champion").mkdir(parents=True)
    command = [sys.executable, "-W", "ignore", "-m", "invoke", "bento-build"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "champion" in done.stderr
    assert not (tmp_path / "dist").exists()


def test_bento_installs_neither_torch_nor_nnunet(python: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'nnunetv2', 'fastapi', 'dvc') if u.find_spec(n)])"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
