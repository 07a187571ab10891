"""Inputs of a training are checked before it starts."""

import json
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.paths import NnunetPaths
from droneseg.training import run
from droneseg.training.config import load_config


@pytest.fixture
def paths(tmp_path: Path) -> NnunetPaths:
    return NnunetPaths(*(tmp_path / name for name in ("raw", "preprocessed", "results")))


def test_fold_that_the_split_lacks_is_refused_with_all_other_problems(paths: NnunetPaths, tmp_path: Path) -> None:
    paths.preprocessed_dataset.mkdir(parents=True)
    (paths.preprocessed_dataset / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * 3))
    given = ["preset=smoke", "fold=7", f"init_from={tmp_path}", "teacher=nothing.pth", "deep_supervision=false"]
    with pytest.raises(ConfigurationError) as caught:
        run.train(load_config(given), paths)
    assert "fold=7 is not in " in str(caught.value)
    assert "splits_final.json. Choose from its folds: 0, 1, 2." in str(caught.value)
    assert f"init_from={tmp_path} is a folder. Choose a checkpoint_*.pth file of a fold" in str(caught.value)
    assert "teacher=nothing.pth does not exist." in str(caught.value)
