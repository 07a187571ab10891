"""Settings of the trainer, passed through a file."""

from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet import trainer_settings


def test_trainer_settings_are_passed_through_a_file_in_the_folder_of_the_fold(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    assert trainer_settings.read_settings_file(fold) is None
    trainer_settings.write_settings_file(trainer_settings.TrainerSettings(epochs=7), fold)
    recorded = trainer_settings.read_settings_file(fold)
    assert recorded is not None
    assert recorded.epochs == 7


def test_settings_of_an_earlier_version_keep_their_initial_weights(tmp_path: Path) -> None:
    (tmp_path / "trainer_settings.json").write_text('{"init_from": "first.pth"}')
    recorded = trainer_settings.read_settings_file(tmp_path)
    assert recorded is not None
    assert recorded.weights == "first.pth"
    (tmp_path / "trainer_settings.json").write_text('{"epochs": 0}')
    with pytest.raises(ConfigurationError, match="Delete it to train with default settings"):
        trainer_settings.read_settings_file(tmp_path)
