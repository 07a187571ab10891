"""Project with git, DVC, a champion and a registry, and images that one network segments perfectly."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.model.bundle import Bundle
from support.bundles import make_bundle, write_network
from support.forking import run_forked
from support.images import png

_DVC = "import sys; from dvc.cli import main; sys.exit(main(sys.argv[1:]))"

# one colour per class that the network of support.bundles assigns to it
_PAINT = np.array([(0, 0, 0), (10, 10, 10), (20, 20, 220), (20, 220, 20), (220, 20, 20), (235, 235, 235)])

GOOD = ((0, 0, 0), (-3, -3, -3), (-2, -2, 4), (-2, 4, -2), (4, -2, -2), (2, 2, 2)), (-9, 2, 0, 0, 0, -1.5)
"""Weights that segment every pixel correctly."""
POOR = GOOD[0], (-9, 2, 0, -9, -9, -1.5)
"""Weights that never predict soft surfaces or moving objects."""
WORSE = GOOD[0], (-9, 2, -9, -9, -9, -1.5)
"""Weights that never predict water either."""
UNSAFE = GOOD[0], (-9, -9, -2, -2, -2, -1.5)
"""Weights that predict obstacles as landing zones and the rest correctly."""


def git(folder: Path, *arguments: str) -> str:
    """Run git, which must succeed, and return its output."""
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str, environment: Mapping[str, str] = os.environ) -> str:
    """Run DVC in a forked process, which must succeed, and return its output."""
    done = run_forked(_DVC, arguments, folder=folder, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_model(folder: Path, network: object = GOOD, *, patch: tuple[int, int] = (16, 24), padding: int = 0) -> Bundle:
    """Write a bundle with one of the networks above."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / "network.onnx"
    write_network(file, *network, padding=padding)  # type: ignore[misc]  # weights and biases
    bundle = make_bundle(folder, network=file, patch=patch)
    file.unlink()
    return bundle


def make_project(folder: Path, *, scm: bool = True, network: object = POOR, padding: int = 0, remote: str = "") -> Path:
    """Create a project whose champion is committed and pushed to a DVC remote; return the champion's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    champion = folder / "nnUNet_results" / "champion"
    if scm:
        git(folder, "init", "--quiet", "--initial-branch", "main")
        git(folder, "config", "user.name", "A Pilot")
        git(folder, "config", "user.email", "pilot@example.org")
    dvc(folder, "init", "--quiet", *(() if scm else ("--no-scm",)))
    dvc(folder, "config", "core.analytics", "false")
    dvc(folder, "remote", "add", "--default", "models", remote or str(folder.parent / f"{folder.name}-remote"))
    dvc(folder, "remote", "modify", "models", "verify", "true")
    (folder / ".dvcignore").write_text("nnUNet_results/*\n!nnUNet_results/champion\n")
    make_model(champion, network, padding=padding)
    dvc(folder, "add", "--quiet", "nnUNet_results")
    dvc(folder, "push", "--quiet", "nnUNet_results.dvc")
    if scm:
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "a champion")
    return champion


def make_photographs(folder: Path, count: int = 24) -> Path:
    """Write image and mask pairs in the Kaggle layout: 40x30 pixels, all five classes in varying shares."""
    rng = np.random.default_rng(0)
    root = folder / KAGGLE_FOLDER
    for name in (IMAGES_FOLDER, MASKS_FOLDER):
        (root / name).mkdir(parents=True)
    for index in range(count):
        ids = rng.choice(np.arange(1, 6), (30, 40), p=rng.dirichlet(np.full(5, 3.0)))
        (root / IMAGES_FOLDER / f"{index:03d}.png").write_bytes(png(_PAINT[ids].astype(np.uint8)))
        (root / MASKS_FOLDER / f"{index:03d}.png").write_bytes(png(DEFAULT_CLASSES.colours()[ids]))
    return folder
