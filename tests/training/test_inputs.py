"""Inputs of a training are checked before it starts."""

import json
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.paths import NnunetPaths
from droneseg.training import run
from droneseg.training.config import load_config
from droneseg.training.search_space import SweepConfig
from droneseg.training.sweep import run_sweep


@pytest.fixture
def paths(tmp_path: Path) -> NnunetPaths:
    return NnunetPaths(*(tmp_path / name for name in ("raw", "preprocessed", "results")))


def test_fold_that_the_split_lacks_is_refused_with_all_other_problems(paths: NnunetPaths, tmp_path: Path) -> None:
    paths.preprocessed_dataset.mkdir(parents=True)
    (paths.preprocessed_dataset / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * 3))
    labels = {"background": 0, "gravel": 1, "pond": 2}
    (paths.preprocessed_dataset / "dataset.json").write_text(json.dumps({"labels": labels}))
    given = ["preset=smoke", "fold=7", f"weights={tmp_path}", "teacher=nothing.pth", "deep_supervision=false"]
    given.append("class_weights={gravl: 2, water: 3, lake: 1}")  # water is a role
    with pytest.raises(ConfigurationError) as caught:
        run.train(load_config(given), paths)
    assert "fold=7 is not in " in str(caught.value)
    assert "splits_final.json. Choose from its folds: 0, 1, 2." in str(caught.value)
    assert f"weights={tmp_path} is a folder. Choose a checkpoint_*.pth file of a fold, a zip" in str(caught.value)
    assert "teacher=nothing.pth does not exist." in str(caught.value)
    assert (
        "class_weights: gravl (did you mean gravel?), lake are neither a class nor a role; the classes are background, "
        "gravel, pond, the roles landing, soft, obstacle, water, moving."
    ) in str(caught.value)
    assert not paths.results.exists()


def test_a_sweep_is_refused_before_its_first_trial(paths: NnunetPaths, tmp_path: Path) -> None:
    paths.preprocessed_dataset.mkdir(parents=True)
    labels = {"background": 0, "gravel": 1}
    (paths.preprocessed_dataset / "dataset.json").write_text(json.dumps({"labels": labels}))
    train = ["preset=smoke", "class_weights={road: 2}"]
    config = SweepConfig(train=train, space={"learning_rate": {"low": 0.001, "high": 0.01}})
    with pytest.raises(ConfigurationError, match="road is neither a class nor a role"):
        run_sweep(config, paths, tmp_path / "sweep", name="own", trials=1)
    assert not (tmp_path / "sweep").exists()


def test_class_weights_are_checked_before_the_data_is_preprocessed(paths: NnunetPaths) -> None:
    paths.raw_dataset.mkdir(parents=True)
    (paths.raw_dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "gravel": 1}}))
    with pytest.raises(ConfigurationError, match="road is neither a class nor a role"):
        run.train(load_config(["preset=smoke", "class_weights={road: 2}"]), paths)
    with pytest.raises(ConfigurationError, match=r"nnUNetPlans\.json"):
        run.train(load_config(["preset=smoke", "class_weights={gravel: 2}"]), paths)
