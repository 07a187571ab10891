"""Device selection, nnU-Net's trainer folder and model folders."""

import json
import os
from pathlib import Path

import pytest
import torch

from droneseg.core.errors import ConfigurationError, ModelError
from droneseg.nnunet import paths
from droneseg.nnunet.paths import TRAINER, TRAINER_FOLDER, NnunetPaths, checkpoint_files, export_environment


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


def test_checkpoint_files_names_what_a_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the folder does not exist"):
        checkpoint_files(tmp_path / "absent", "checkpoint_final.pth")
    with pytest.raises(ModelError, match=r"missing: plans\.json, dataset\.json"):
        checkpoint_files(tmp_path, "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_text(json.dumps({}))
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_best.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no fold contains checkpoint_final\.pth\. Found checkpoint_best\.pth"):
        checkpoint_files(tmp_path, "checkpoint_final.pth")


def test_dataset_is_selected_by_number_or_name_in_any_folder(tmp_path: Path) -> None:
    folders = NnunetPaths(*(tmp_path / name for name in ("raw", "preprocessed", "results")))
    for folder in ("raw/Dataset205_Meadow", "preprocessed/Dataset205_Meadow", "results/Dataset007_Quarry"):
        (tmp_path / folder).mkdir(parents=True)
    assert folders.select(205).dataset == folders.select("Dataset205_Meadow").dataset == "Dataset205_Meadow"
    assert folders.select("7").raw_dataset == tmp_path / "raw/Dataset007_Quarry"
    chosen = folders.select(plans="nnUNetResEncUNetMPlans")
    assert (chosen.dataset, chosen.plans_file.name) == ("Dataset101_DroneSeg", "nnUNetResEncUNetMPlans.json")
    with pytest.raises(ConfigurationError, match="choose one of Dataset007_Quarry, Dataset205_Meadow") as caught:
        folders.select(20)
    assert "\n" not in str(caught.value)
    (tmp_path / "raw/Dataset205_Farm").mkdir()
    with pytest.raises(ConfigurationError, match="choose one of Dataset205_Farm, Dataset205_Meadow by its name"):
        folders.select(205)


@pytest.mark.parametrize("own", [None, "/home/me/trainers", "/home/me/trainers:/lab/trainers:"])
def test_own_trainer_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("nnUNet_extTrainer", None)
    if own is not None:
        os.environ["nnUNet_extTrainer"] = own  # noqa: SIM112  # nnU-Net's spelling
    assert not paths.finds_our_trainer()
    for _ in range(2):
        export_environment(NnunetPaths(tmp_path, tmp_path, tmp_path))
    expected = [*filter(None, (own or "").split(":")), str(TRAINER_FOLDER)]
    assert os.environ["nnUNet_extTrainer"].split(":") == expected  # noqa: SIM112
    assert paths.finds_our_trainer()
