"""Training configuration: presets, overrides and error messages."""

import json
import os
from pathlib import Path

import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.trainer_settings import weights_by_id
from droneseg.training.config import load_config


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("smoke", "2d_smoke"),
        ("cpu", "2d_cpu"),
        ("pretrained", "2d_lite0"),
        ("multiscale", "2d_multiscale"),
        ("gpu", "2d"),
    ],
)
def test_every_preset_is_valid(preset: str, name: str) -> None:
    assert load_config([f"preset={preset}"]).configuration == name


def test_gpu_preset_uses_nnunets_plan_and_schedule() -> None:
    config = load_config(["preset=gpu"])
    assert (config.patch_size, config.batch_size, config.base_features, config.max_features) == (None,) * 4
    trainer = config.trainer
    assert (trainer.epochs, trainer.iterations, trainer.optimizer, trainer.learning_rate) == (1000, 250, "sgd", 0.01)


def test_overrides_reach_trainer_and_run_settings() -> None:
    config = load_config(["preset=cpu", "max_minutes=30", "resume=true", "tracking=wandb", "tracking.mode=offline"])
    assert config.trainer.max_minutes == 30
    assert config.resume
    assert config.tracking.name == "wandb"
    assert config.tracking.mode == "offline"


def test_load_config_changes_no_global_state() -> None:
    import logging

    before = (Path.cwd(), list(logging.getLogger().handlers), dict(os.environ))
    load_config(["preset=smoke"])
    assert (Path.cwd(), list(logging.getLogger().handlers), dict(os.environ)) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["preset=huge", "foo=1"],
            r"preset=huge: choose one of cpu, gpu, multiscale, pretrained, smoke\n.*foo=1: unknown key 'foo'",
        ),
        (["epohcs=3"], "epohcs=3: unknown key 'epohcs'; did you mean 'epochs'"),
        (["epochs"], "epochs: expected key=value"),
        (["~epochs"], "expected key=value"),
        (["+epochs=3"], r"unknown key '\+epochs'"),
        (["hydra.run.dir=x"], r"unknown key 'hydra\.run\.dir'"),
        (["epochs=0", "learning_rate=-1"], r"epochs=0.*\n.*learning_rate=-1"),
        (["resume=true", "overwrite=true"], "cannot be combined"),
        (["configuration=3d"], "configuration='3d'"),
        (["device=tpu"], "device='tpu'"),
    ],
)
def test_invalid_overrides_are_reported(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_config(overrides)


@pytest.mark.parametrize("crop", [(96, 64), (192, 64), (64, 256)])
def test_crop_size_must_fit_the_plan(tmp_path: Path, crop: tuple[int, int]) -> None:
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.run import configure_plans

    paths = NnunetPaths(tmp_path, tmp_path, tmp_path)
    paths.plans_file.parent.mkdir(parents=True)
    base = {"patch_size": [64, 64], "batch_size": 2, "normalization_schemes": ["RGBTo01Normalization"] * 3}
    plans = json.dumps({"configurations": {"2d": base}})
    paths.plans_file.write_text(plans)
    overrides = ["preset=pretrained", "patch_size=[128,192]"]
    with pytest.raises(
        ConfigurationError, match=r"does not fit.* multiples of \[64, 64\] up to the patch size \[128, 192\]"
    ):
        configure_plans(load_config([*overrides, f"crop_size=[{crop[0]},{crop[1]}]"]), paths)
    assert paths.plans_file.read_text() == plans
    configure_plans(load_config([*overrides, "crop_size=[64,128]"]), paths)
    assert "2d_lite0" in paths.plans_file.read_text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["class_weights=[0,-1,1,1,1,1]"], "class_weights.1=-1: Input should be greater than or equal to 0"),
        (["class_weights=[0,nan,0,0,0,1]"], "class_weights.1=nan: Input should be a finite number"),
        (["class_weights=[0,0,0,0,0,0]"], "at least one weight must be above 0"),
        (["class_weights={water: -1}"], "class_weights.water=-1: Input should be greater than or equal to 0"),
        (["class_weights={water: 0}"], "at least one weight must be above 0"),
        (["network=plain", "encoder_rate=0.5"], "network=plain has no pretrained encoder"),
        (["network=batchnorm", "decoder_levels=3"], "network=batchnorm has no pretrained encoder"),
        (["resume=true", "overwrite=true"], "  - resume and overwrite cannot be combined"),
        (["decoder_features=[64,32]", "network=efficientnet-lite0"], "decoder_features has 2 numbers"),
        (["fine_weight=0.5", "crop_scales=[1,1]"], "network=batchnorm has no pretrained encoder"),
        (["crop_scales=[2,0.5]"], "crop_scales=[2.0, 0.5]: the smallest scale must be first"),
        (["teacher_weight=2"], "teacher_weight: also set teacher"),
        (["whole_share=0.1", "haze_share=0.2"], "whole_share, haze_share: also set crop_scales"),
    ],
)
def test_invalid_combinations_are_reported_in_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(["preset=smoke", *overrides])
    _, *lines = str(caught.value).splitlines()
    assert words in lines[0]
    assert len(lines) <= 2
    assert max(map(len, lines)) < 200


def test_class_weights_are_given_by_id_name_or_role() -> None:
    def weights(*overrides: str, has_background: bool = False) -> object:
        given = load_config(overrides).trainer.class_weights
        return weights_by_id(given, DEFAULT_CLASSES, has_background=has_background)

    assert weights("preset=smoke", "class_weights={water: 3}", has_background=True) == (1, 1, 3, 1, 1, 1)
    assert weights("preset=smoke", "class_weights={water: 3}") == (0, 1, 3, 1, 1, 1)
    assert weights("preset=pretrained") == (0, 2.5, 1.5, 0.8, 1.5, 0.7), "weights of the included model"
    assert weights("preset=pretrained", "class_weights={water: 3}") == (0, 2.5, 3, 0.8, 1.5, 0.7)
    assert weights("preset=pretrained", "class_weights={soft-surfaces: 3}") == (0, 2.5, 1.5, 3, 1.5, 0.7)
    assert weights("preset=pretrained", "class_weights=[0,1,1,1,1,2]") == (0, 1, 1, 1, 1, 2)
    assert weights("preset=pretrained", "class_weights=null") is None


def test_weights_of_own_classes_are_added_to_those_of_a_preset() -> None:
    weights = load_config(["preset=pretrained", "class_weights={gravel: 2}"]).trainer.class_weights
    assert isinstance(weights, dict)
    assert (weights["gravel"], weights["obstacle"]) == (2, 2.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wter": 3.0}, r"wter \(did you mean water\?\) is neither a class nor a role; the classes are background, ob"),
        ({"gravel": 3.0, "obstacle": 1.0, "zzz": 1.0}, "class_weights: gravel, zzz are neither a class nor a role"),
        ((1.0, 2.0), "class_weights has 2 weights for 6 classes"),
    ],
)
def test_weights_of_other_classes_are_refused(given: dict[str, float] | tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        weights_by_id(given, DEFAULT_CLASSES, has_background=True)
