"""Presets compose, overrides apply, and wrong ones are explained."""

import os
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.training.presets import load_config


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu"])
def test_every_preset_is_valid(preset: str) -> None:
    config = load_config([f"preset={preset}"])
    assert config.configuration == ("2d" if preset == "gpu" else f"2d_{preset}")


def test_the_gpu_preset_is_nnunets_own_plan_and_schedule() -> None:
    config = load_config(["preset=gpu"])
    assert (config.patch_size, config.batch_size, config.base_features, config.max_features) == (None,) * 4
    trainer = config.trainer
    assert (trainer.epochs, trainer.iterations, trainer.optimizer, trainer.learning_rate) == (1000, 250, "sgd", 0.01)


def test_overrides_reach_the_trainer_and_the_run() -> None:
    config = load_config(["preset=cpu", "max_minutes=30", "resume=true", "tracking=wandb", "tracking.mode=offline"])
    assert config.trainer.max_minutes == 30
    assert config.resume
    assert config.tracking.name == "wandb"
    assert config.tracking.mode == "offline"


def test_composing_leaves_folder_and_logging_alone() -> None:
    import logging

    before = (Path.cwd(), list(logging.getLogger().handlers), dict(os.environ))
    load_config(["preset=smoke"])
    assert (Path.cwd(), list(logging.getLogger().handlers), dict(os.environ)) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preset=huge", "foo=1"], r"preset=huge: choose one of cpu, gpu, smoke\n.*foo=1: there is no key 'foo'"),
        (["epohcs=3"], "epohcs=3: there is no key 'epohcs'; did you mean 'epochs'"),
        (["epochs"], "epochs: write key=value"),
        (["~epochs"], "write key=value"),
        (["+epochs=3"], r"no key '\+epochs'"),
        (["hydra.run.dir=x"], r"no key 'hydra\.run\.dir'"),
        (["epochs=0", "learning_rate=-1"], r"epochs=0.*\n.*learning_rate=-1"),
        (["resume=true", "overwrite=true"], "contradict"),
        (["configuration=3d"], "configuration='3d'"),
        (["device=tpu"], "device='tpu'"),
    ],
)
def test_wrong_overrides_are_explained(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_config(overrides)
