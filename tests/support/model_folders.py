"""Model folders of nnU-Net with a checkpoint of one layer, for tests that need no network."""

import json
from pathlib import Path

import torch

PHOTOGRAPH = "garden_with_neighbours"
"""Name of a photograph that the dataset.json and the checkpoint contain."""


def make_model_folder(folder: Path, *, value: float = 0.0) -> Path:
    """Write a model folder as a training leaves it; all of its weights have one value."""
    dataset = {
        "labels": {"background": 0, "field": 1},
        "droneseg": {"version": "0", "gsd_m": {PHOTOGRAPH: 0.02}, "generated": {"water": PHOTOGRAPH}},
    }
    plans = {
        "dataset_name": "Dataset205_Fields",
        "plans_name": "nnUNetPlans",
        "configurations": {"2d": {"architecture": {"arch_kwargs": {"strides": [[1, 1]]}}}},
    }
    (folder / "fold_0").mkdir(parents=True)
    for name, content in (("plans.json", plans), ("dataset.json", dataset)):
        (folder / name).write_text(json.dumps(content))
    checkpoint = {
        "network_weights": {"layer": torch.full((2, 3), value)},
        "optimizer_state": {"momentum": torch.zeros(1000)},
        "grad_scaler_state": None,
        "logging": {"train_losses": [1.0]},
        "_best_ema": 0.5,
        "current_epoch": 3,
        "init_args": {"plans": plans, "configuration": "2d", "fold": 0, "dataset_json": dataset},
        "trainer_name": "DroneSegTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0/checkpoint_final.pth")
    return folder
