"""Model folders for other people, and their zip files."""

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from droneseg.core.errors import ModelError, OutputExistsError, UntrustedCheckpointError
from droneseg.core.files import file_sha256
from droneseg.nnunet.checkpoint import read_checkpoint
from droneseg.nnunet.model_sharing import find_checkpoints, write_lean_model, write_model_zip
from droneseg.nnunet.paths import NnunetPaths
from support.model_folders import PHOTOGRAPH, make_model_folder
from support.workspace import Workspace

CHECKPOINT = "fold_0/checkpoint_final.pth"
INSTALL = "from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point as run; run()"
"""What `nnUNetv2_install_pretrained_model_from_zip` runs."""


@pytest.mark.slow
def test_installed_lean_model_predicts_as_the_trained_one(trained: Workspace, tmp_path: Path) -> None:
    from droneseg.nnunet.predictor import NnunetPredictor

    model, lean, results = trained.fold().parent, tmp_path / "lean", tmp_path / "results"
    for folder in (lean, results):
        folder.mkdir()
    write_lean_model(model, [model / CHECKPOINT], lean)
    installed = write_model_zip(lean, tmp_path / "model.zip", licence="Ask me.")
    assert installed.folder == "Dataset101_DroneSeg/DroneSegTrainer__champion__2d_smoke"
    trained.run(str(tmp_path / "model.zip"), code=INSTALL, nnUNet_results=str(results))
    image = next((trained.root / "nnUNet_raw/Dataset101_DroneSeg/imagesTr").glob("*.png"))
    masks = [
        NnunetPredictor(folder, NnunetPaths(results, results, results), mirrored=True).segment_file(image)
        for folder in (model, results / installed.folder)
    ]
    assert np.array_equal(*masks)
    assert len(np.unique(masks[0])) > 1
    assert (results / installed.folder / "LICENSE.md").read_text() == "Ask me."
    assert (lean / CHECKPOINT).stat().st_size < (model / CHECKPOINT).stat().st_size


def test_lean_model_has_neither_optimiser_nor_names_of_photographs(tmp_path: Path) -> None:
    model, lean = make_model_folder(tmp_path / "model", value=2.0), tmp_path / "lean"
    lean.mkdir()
    write_lean_model(model, [model / CHECKPOINT], lean)
    content = read_checkpoint(lean / CHECKPOINT)
    assert torch.equal(content["network_weights"]["layer"], torch.full((2, 3), 2.0))
    assert (content["optimizer_state"], content["logging"]) == (None, {})
    assert content["current_epoch"] == 3
    assert content["init_args"]["dataset_json"]["droneseg"] == {"version": "0"}
    assert json.loads((lean / "dataset.json").read_text())["droneseg"] == {"version": "0"}
    assert not [file for file in lean.rglob("*") if file.is_file() and PHOTOGRAPH.encode() in file.read_bytes()]
    assert PHOTOGRAPH in (model / "dataset.json").read_text()


def test_zip_file_is_written_as_a_whole_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = make_model_folder(tmp_path / "model"), tmp_path / "models/shared.zip"
    installed = write_model_zip(model, file, licence="Ask me.")
    assert " ".join(installed.options) == "-d Dataset205_Fields -tr DroneSegTrainer -p champion -c 2d -f 0"
    folder = "Dataset205_Fields/DroneSegTrainer__champion__2d"
    names = ("plans.json", "dataset.json", CHECKPOINT, "LICENSE.md")
    assert ZipFile(file).namelist() == [f"{folder}/{name}" for name in names]
    before = file.read_bytes()
    with pytest.raises(OutputExistsError, match="Use --force"):
        write_model_zip(model, file, licence="Ask me.")

    def fail(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="disk full"):
        write_model_zip(model, file, licence="Ask me.", replace=True)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_checkpoint_that_can_run_code_is_not_shared(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    content = torch.load(model / CHECKPOINT, weights_only=False)
    torch.save(content | {"extra": Path("x")}, model / CHECKPOINT)
    (tmp_path / "lean").mkdir()
    with pytest.raises(UntrustedCheckpointError):
        write_lean_model(model, [model / CHECKPOINT], tmp_path / "lean")
    with pytest.raises(UntrustedCheckpointError):
        write_model_zip(model, tmp_path / "model.zip", licence="Ask me.")
    assert not (tmp_path / "model.zip").exists()


def test_checkpoints_are_found_by_their_hash_whatever_their_name(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    best = (model / CHECKPOINT).rename(model / "fold_0/checkpoint_best.pth")
    assert find_checkpoints(model, [0], [file_sha256(best)]) == [best]
    with pytest.raises(ModelError, match="does not have the checkpoints that the champion was exported from"):
        find_checkpoints(model, [0], ["0" * 64])
