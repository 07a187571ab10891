"""A project as people have it: git, DVC, a champion, its registry; and photographs that one network reads right."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from droneseg.core.classes import colours
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.model.bundle import Bundle
from support.bundles import make_bundle, write_network
from support.forking import run_forked
from support.images import png

_DVC = "import sys; from dvc.cli import main; sys.exit(main(sys.argv[1:]))"

# what the network of support.bundles calls each class, and nothing else
_PAINT = np.array([(0, 0, 0), (10, 10, 10), (20, 20, 220), (20, 220, 20), (220, 20, 20), (235, 235, 235)])

GOOD = ((0, 0, 0), (-3, -3, -3), (-2, -2, 4), (-2, 4, -2), (4, -2, -2), (2, 2, 2)), (-9, 2, 0, 0, 0, -1.5)
"""Right about every pixel."""
POOR = GOOD[0], (-9, 2, 0, -9, -9, -1.5)
"""Knows neither soft surfaces nor moving objects."""
WORSE = GOOD[0], (-9, 2, -9, -9, -9, -1.5)
"""Does not know water, either."""
UNSAFE = GOOD[0], (-9, -9, -2, -2, -2, -1.5)
"""Takes obstacles for landing zones, and is right about the rest."""


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
    """Make a bundle of one of the networks above."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / "network.onnx"
    write_network(file, *network, padding=padding)  # type: ignore[misc]  # weights and biases
    bundle = make_bundle(folder, network=file, patch=patch)
    file.unlink()
    return bundle


def make_project(folder: Path, *, scm: bool = True, network: object = POOR, padding: int = 0, remote: str = "") -> Path:
    """Make a project whose champion is added, committed and pushed to a remote: a folder in it, or beside it."""
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
    """Write pairs in the Kaggle layout: 40x30 pixels with all five classes, in shares that differ."""
    rng = np.random.default_rng(0)
    root = folder / KAGGLE_FOLDER
    for name in (IMAGES_FOLDER, MASKS_FOLDER):
        (root / name).mkdir(parents=True)
    for index in range(count):
        ids = rng.choice(np.arange(1, 6), (30, 40), p=rng.dirichlet(np.full(5, 3.0)))
        (root / IMAGES_FOLDER / f"{index:03d}.png").write_bytes(png(_PAINT[ids].astype(np.uint8)))
        (root / MASKS_FOLDER / f"{index:03d}.png").write_bytes(png(colours()[ids]))
    return folder
