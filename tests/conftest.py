"""Fixtures of several test modules: generated data, workspaces, the folder of real data."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from support.images import png
from support.shared import make_once
from support.waiting import HANG_S
from support.workspace import TINY, Workspace

# a process that may not write compiled modules compiles torch and Evidently at every start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# httpx gives up after 5 s by default
for function in (httpx.get, httpx.post, httpx.request, httpx.Client.__init__):
    function.__kwdefaults__["timeout"] = HANG_S


def _share_cores() -> None:
    """Give each process of pytest-xdist its own cores: threads of two processes on one core wait for each other."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        first = int(worker.removeprefix("gw")) % len(cores)
        os.sched_setaffinity(0, cores[first::count])


_share_cores()  # before torch and OpenVINO count the cores


# by duration; a long file that starts last leaves the other processes idle
_SLOWEST_FIRST = (
    "tests/test_walk.py", "tests/training/test_sweep.py", "tests/test_documentation.py", "tests/test_pipeline.py",
    "tests/flows/test_demo.py", "tests/nnunet/test_servable.py", "tests/serving/test_server.py",
    "tests/serving/test_background.py",
    "tests/flows/test_promote.py", "tests/training/test_run.py", "tests/flows/test_inference_benchmark.py",
    "tests/training/test_pretrained.py", "tests/nnunet/test_wandb_logger.py", "tests/nnunet/test_drone_seg_trainer.py",
    "tests/serving/test_bento_build.py",
    "tests/model/test_bucket.py", "tests/inference/test_parity.py", "tests/serving/test_openapi.py",
    "tests/flows/test_export.py", "tests/serving/test_api_server.py", "tests/performance/test_load.py",
    "tests/test_drift_chain.py",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the slowest files first."""
    if missing := [name for name in _SLOWEST_FIRST if not (config.rootpath / name).is_file()]:
        raise pytest.UsageError(f"_SLOWEST_FIRST in conftest.py names files that do not exist: {', '.join(missing)}")
    order = {name: index for index, name in enumerate(_SLOWEST_FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


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
        (root / MASKS_FOLDER / f"{index:03d}.png").write_bytes(png(DEFAULT_CLASSES.colours()[ids]))
    return tmp_path / "drone"


@pytest.fixture(scope="module")
def normal_priority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start background processes at normal priority: at the lowest they hardly run next to busy processes."""
    nice = tmp_path_factory.mktemp("bin") / "nice"
    nice.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    nice.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{nice.parent}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder of real drone data, if this machine has it."""
    folder = os.environ.get("DRONESEG_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        if os.environ.get("DRONESEG_REQUIRE_ALL"):
            pytest.fail("DRONESEG_TEST_DATA does not name the real data")
        pytest.skip("set DRONESEG_TEST_DATA to the folder of real drone data")
    return Path(folder)


def _copy(folder: Path, factory: pytest.TempPathFactory, name: str) -> Workspace:
    """Return a copy of a shared workspace that the tests of this process may write into."""
    return Workspace(Path(shutil.copytree(folder, factory.mktemp(name), symlinks=True, dirs_exist_ok=True)))


@pytest.fixture(scope="session")
def preprocessed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared workspace with generated data, converted with a split and preprocessed."""

    def make(folder: Path) -> None:
        workspace = Workspace(folder)
        workspace.run("data", "sample", "data", "--count", "12", "--size", "96x80")
        shares = ("--val-share", "0.2", "--test-share", "0.2")
        workspace.run("data", "split", "data", "--out", "split.json", "--by", "random", *shares)
        workspace.run("data", "convert", "data", "--split", "split.json")
        workspace.run("preprocess", "--processes", "2")

    return make_once(tmp_path_factory, "preprocessed", make)


@pytest.fixture(scope="session")
def trained_folder(preprocessed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared workspace with a finished training, too."""

    def make(folder: Path) -> None:
        shutil.copytree(preprocessed_folder, folder, symlinks=True, dirs_exist_ok=True)
        Workspace(folder).run("train", *TINY, "validation=fast")

    return make_once(tmp_path_factory, "trained", make)


@pytest.fixture(scope="session")
def exported_folder(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared workspace with a bundle in nnUNet_results/champion, too; the bundle has an INT8 network."""

    def make(folder: Path) -> None:
        shutil.copytree(trained_folder, folder, symlinks=True, dirs_exist_ok=True)
        workspace = Workspace(folder)
        model = str(workspace.fold().parent)
        workspace.run("export", "--from", model, "--int8", "--images", "4", "--license", "Apache-2.0")

    return make_once(tmp_path_factory, "exported", make)


@pytest.fixture(scope="session")
def workspace(preprocessed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Generated data, converted with a split and preprocessed."""
    return _copy(preprocessed_folder, tmp_path_factory, "workspace")


@pytest.fixture(scope="session")
def trained(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a finished training."""
    return _copy(trained_folder, tmp_path_factory, "trained")


@pytest.fixture(scope="session")
def exported(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a finished training and its bundle in nnUNet_results/champion."""
    return _copy(exported_folder, tmp_path_factory, "exported")
