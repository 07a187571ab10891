"""Inputs of a training are checked before it starts, and an interruption says what is saved."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from droneseg.core.errors import ConfigurationError, TrainingError
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


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (True, r"Training interrupted\. Continue from the last checkpoint with resume=true\."),
        (False, "Training interrupted before its first checkpoint, so nothing was saved"),
    ],
)
def test_interruption_says_whether_there_is_a_checkpoint(
    saved: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "nnunetv2.run.run_training", SimpleNamespace(run_training=interrupt))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(device=str, set_num_threads=print))
    if saved:
        (tmp_path / "checkpoint_latest.pth").touch()
    with pytest.raises(TrainingError, match=message):
        run._run(load_config(["preset=smoke"]), "cpu", False, tmp_path)
