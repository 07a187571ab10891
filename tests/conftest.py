"""What several test modules share: small generated data, and the way to the real data."""

import os
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.classes import colours
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from support.images import png
from support.workspace import TINY, Workspace


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four pairs in the Kaggle layout: 40x30 pixels, RGB masks with all five classes."""
    root = tmp_path / "drone" / KAGGLE_FOLDER
    rng = np.random.default_rng(0)
    for folder in (IMAGES_FOLDER, MASKS_FOLDER):
        (root / folder).mkdir(parents=True)
    for index in range(4):
        ids = rng.integers(1, 6, (30, 40))
        image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        (root / IMAGES_FOLDER / f"{index:03d}.png").write_bytes(png(image))
        (root / MASKS_FOLDER / f"{index:03d}.png").write_bytes(png(colours()[ids]))
    return tmp_path / "drone"


@pytest.fixture
def real_data() -> Path:
    """The folder of real drone data, if this machine has it."""
    folder = os.environ.get("DRONESEG_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        if os.environ.get("DRONESEG_REQUIRE_ALL"):
            pytest.fail("DRONESEG_TEST_DATA does not name the real data")
        pytest.skip("set DRONESEG_TEST_DATA to the folder of real drone data")
    return Path(folder)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Generated data, converted with a split and preprocessed."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    made.run("data", "sample", "data", "--count", "12", "--size", "96x80")
    shares = ("--val-share", "0.2", "--test-share", "0.2")
    made.run("data", "split", "data", "--out", "split.json", "--by", "random", *shares)
    made.run("data", "convert", "data", "--split", "split.json")
    made.run("preprocess", "--processes", "2")
    return made


@pytest.fixture(scope="session")
def trained(workspace: Workspace) -> Workspace:
    """The same with a finished training."""
    workspace.run("train", *TINY, "validation=fast")
    return workspace


@pytest.fixture(scope="session")
def exported(trained: Workspace) -> Workspace:
    """The trained workspace with a bundle in nnUNet_results/champion, INT8 included."""
    trained.run("export", "--from", str(trained.fold().parent), "--int8", "--images", "4", "--license", "Apache-2.0")
    return trained
