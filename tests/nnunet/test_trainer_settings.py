"""Settings of the trainer, passed through a file."""

import os
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet import trainer_settings


def test_trainer_settings_are_passed_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("DRONESEG_TRAINER_SETTINGS", None)
    with pytest.raises(ConfigurationError, match="droneseg train"):
        trainer_settings.read_settings_file()
    trainer_settings.write_settings_file(trainer_settings.TrainerSettings(epochs=7), tmp_path / "s.json")
    assert trainer_settings.read_settings_file().epochs == 7
