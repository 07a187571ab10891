"""The demo: every stage, with a shorter training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.errors import ConfigurationError
from droneseg.flows.demo import run_demo
from support.workspace import DRONESEG, Workspace

pytestmark = pytest.mark.slow

# a fixed number of steps on fewer scenes: the demo's own training ends by time, so a slow machine learns less
_SHORTER = """
from functools import partial
from droneseg.flows import demo
demo.TRAIN_SCENES = 80
demo.run_demo = partial(demo.run_demo, overrides=("epochs=4", "iterations=100", "max_minutes=null"))
"""


def test_demo_beats_the_colour_classifier_and_writes_only_to_its_folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    space = Workspace(tmp_path_factory.mktemp("demo"))
    done = space.run("demo", "--out", "here", code=_SHORTER + DRONESEG)
    assert "24 held-out scenes" in done.stdout
    assert [path.name for path in space.root.iterdir()] == ["here"]
    report = json.loads((space.root / "here/report.json").read_text())
    assert report["colour_classifier_miou"] < 0.45
    assert report["miou"] > report["colour_classifier_miou"] + 0.05
    assert report["baseline_miou"] < report["colour_classifier_miou"]
    assert set(report["per_class_iou"]) == {"obstacles", "water", "soft-surfaces", "moving-objects", "landing-zones"}
    assert list(report["seconds"]) == [
        "sample",
        "check",
        "convert",
        "preprocess",
        "train",
        "export",
        "predict",
        "evaluate",
    ]
    assert np.asarray(Image.open(space.root / "here/overlay.png")).shape[2] == 3
    evaluated = space.run("evaluate", report["predictions"], report["truth"], "--json")
    assert json.loads(evaluated.stdout)["scores"]["miou"] == pytest.approx(report["miou"])


def test_demo_refuses_a_folder_with_other_content(tmp_path_factory: pytest.TempPathFactory) -> None:
    space = Workspace(tmp_path_factory.mktemp("mine"))
    (space.root / "mine").mkdir()
    (space.root / "mine/thesis.txt").write_text("precious")
    done = space.run("demo", "--out", "mine", check=False)
    assert done.returncode == 1
    assert "is not the output of an earlier demo" in done.stderr
    assert [path.name for path in (space.root / "mine").iterdir()] == ["thesis.txt"]


def test_an_invalid_override_is_found_before_anything_is_generated(tmp_path: Path) -> None:
    overrides = ("class_weights={gravel: 2}",)
    with pytest.raises(ConfigurationError, match="gravel is neither a class nor a role; the classes are background"):
        run_demo(tmp_path / "demo", lambda *_: None, max_pixels=10**6, overrides=overrides)
    assert not (tmp_path / "demo").exists()
