"""Plans, device selection, trainer settings and model folders."""

import json
import os
from pathlib import Path

import pytest
import torch

from droneseg.core.errors import ConfigurationError, ModelError
from droneseg.nnunet import paths, trainer_settings
from droneseg.nnunet.paths import TRAINER, TRAINER_FOLDER, NnunetPaths, checkpoint_files, export_environment
from droneseg.nnunet.plans import add_configuration, read_plans

BASE = {
    "configurations": {
        "2d": {
            "patch_size": [768, 1024],
            "batch_size": 2,
            "spacing": [1.0, 1.0],
            "architecture": {"arch_kwargs": {"features_per_stage": [32, 64, 512], "n_stages": 8}},
        }
    }
}
KEEP = {"patch_size": None, "batch_size": None, "base_features": None, "max_features": None}


def test_new_configuration_has_the_depth_nnunet_would_choose() -> None:
    plans = add_configuration(BASE, "2d_cpu", patch_size=(512, 512), batch_size=4, base_features=16, max_features=320)
    made = plans["configurations"]["2d_cpu"]
    kwargs = made["architecture"]["arch_kwargs"]
    # nnU-Net's rule: 512 is halved seven times, down to 4
    assert kwargs["n_stages"] == 8
    assert kwargs["features_per_stage"] == [16, 32, 64, 128, 256, 320, 320, 320]
    assert (made["inherits_from"], made["patch_size"], made["batch_size"]) == ("2d", [512, 512], 4)
    assert "2d_cpu" not in BASE["configurations"]


def test_patch_size_is_rounded_up_to_a_multiple_of_the_strides() -> None:
    plans = add_configuration(BASE, "2d_x", **(KEEP | {"patch_size": (100, 130)}))
    patch = plans["configurations"]["2d_x"]["patch_size"]
    assert patch[0] >= 100
    assert patch[1] >= 130
    strides = plans["configurations"]["2d_x"]["architecture"]["arch_kwargs"]["strides"]
    for axis in (0, 1):
        total = 1
        for stride in strides:
            total *= stride[axis]
        assert patch[axis] % total == 0


def test_network_batchnorm_uses_batch_normalisation() -> None:
    plans = add_configuration(BASE, "2d_b", **KEEP, network="batchnorm")
    assert plans["configurations"]["2d_b"]["architecture"]["arch_kwargs"]["norm_op"].endswith("BatchNorm2d")
    with pytest.raises(ConfigurationError, match="nnU-Net's own plan"):
        add_configuration(BASE, "2d", **KEEP, network="batchnorm")


def test_convs_per_stage_applies_to_encoder_and_decoder() -> None:
    plans = add_configuration(BASE, "2d_c", **(KEEP | {"patch_size": (64, 64)}), convs_per_stage=1)
    kwargs = plans["configurations"]["2d_c"]["architecture"]["arch_kwargs"]
    assert kwargs["n_conv_per_stage"] == [1] * kwargs["n_stages"]
    assert kwargs["n_conv_per_stage_decoder"] == [1] * (kwargs["n_stages"] - 1)


def test_configuration_2d_cannot_be_changed() -> None:
    assert add_configuration(BASE, "2d", **KEEP) is BASE
    with pytest.raises(ConfigurationError, match="nnU-Net's own plan"):
        add_configuration(BASE, "2d", **KEEP, convs_per_stage=1)
    with pytest.raises(ConfigurationError, match="configuration=2d_mine"):
        add_configuration(BASE, "2d", **(KEEP | {"batch_size": 4}))


def test_missing_plans_name_the_command_that_writes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="droneseg preprocess"):
        read_plans(NnunetPaths(tmp_path, tmp_path, tmp_path))


def test_device_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert paths.choose_device("auto").type == expected


def test_unavailable_device_raises_instead_of_falling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="device=cuda is not available"):
        paths.choose_device("cuda")


def test_nnunet_finds_the_only_trainer_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    export_environment(NnunetPaths(tmp_path, tmp_path, tmp_path))
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    assert recursive_find_trainer_class_by_name(TRAINER).__name__ == TRAINER
    assert [f.name for f in TRAINER_FOLDER.glob("*.py")] == ["drone_seg_trainer.py"]


def test_trainer_settings_are_passed_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("DRONESEG_TRAINER_SETTINGS", None)
    with pytest.raises(ConfigurationError, match="droneseg train"):
        trainer_settings.read_settings_file()
    trainer_settings.write_settings_file(trainer_settings.TrainerSettings(epochs=7), tmp_path / "s.json")
    assert trainer_settings.read_settings_file().epochs == 7


def test_checkpoint_files_names_what_a_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the folder does not exist"):
        checkpoint_files(tmp_path / "absent", "checkpoint_final.pth")
    with pytest.raises(ModelError, match=r"plans\.json and dataset\.json missing"):
        checkpoint_files(tmp_path, "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_text(json.dumps({}))
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_best.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no fold contains checkpoint_final\.pth\. Found checkpoint_best\.pth"):
        checkpoint_files(tmp_path, "checkpoint_final.pth")
