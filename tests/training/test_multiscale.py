"""Trainings with the loader of crops at random scales."""

import json

import pytest

from support.workspace import TINY, Workspace

pytestmark = pytest.mark.slow

SHARES = ("whole_share=0.2", "rotation_share=0.3", "exposure_share=0.5", "blur_share=0.3", "shadow_share=0.3")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_random_scales_writes_a_model(workspace: Workspace, workers: int) -> None:
    name = f"2d_scales{workers}"
    workspace.run(
        "train", *TINY, "crop_scales=[0.4,2.5]", "repeat_rare=true", "deep_supervision=true", *SHARES,
        f"workers={workers}", f"configuration={name}",
    )  # fmt: skip
    fold = workspace.fold(name)
    assert (fold / "checkpoint_final.pth").is_file()
    losses = [epoch["train_loss"] for epoch in json.loads((fold / "epochs.json").read_text())]
    assert all(0 < loss < 3 for loss in losses)


def test_preset_multiscale_trains(workspace: Workspace) -> None:
    sizes = ("patch_size=[128,128]", "crop_size=[64,64]", "batch_size=2", "workers=0")
    workspace.run("train", "preset=multiscale", *sizes, "epochs=1", "iterations=2", "val_iterations=1")
    assert (workspace.fold("2d_multiscale") / "checkpoint_final.pth").is_file()
