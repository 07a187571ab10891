"""Between two checkpoints of one network: weights in between often keep what each of the two knows."""

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from droneseg.core.errors import ModelError
from droneseg.core.files import new_folder
from droneseg.nnunet.checkpoint import read_checkpoint, sha256_of
from droneseg.nnunet.layout import FINAL_CHECKPOINT, checkpoint_files

BLEND_NAME = "blend.json"
"""What a blended model was made of; only a folder that holds one is ever replaced, never a training."""


def blend_models(first: Path, second: Path, out: Path, *, share: float, replace: bool = False) -> None:
    """Write a model folder of nnU-Net whose weights lie between those of two others, fold by fold.

    For a network and what became of it when it was trained further on other data (Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models"); two trainings from different beginnings do not blend.

    Args:
        first: Model folder.
        second: Model folder with the same folds and networks; all but the weights is taken from it.
        out: Folder to write; its `blend.json` says what it was made of.
        share: Of the second model, 0 to 1.
        replace: Whether an older blend there may be replaced.

    Raises:
        ModelError: If a folder holds no model, or the two do not have the same networks.
        OutputExistsError: If something is in the way.
    """
    firsts, seconds = checkpoint_files(first, FINAL_CHECKPOINT), checkpoint_files(second, FINAL_CHECKPOINT)
    folds = [[file.parent.name for file in files] for files in (firsts, seconds)]
    if folds[0] != folds[1]:
        raise ModelError(f"{first} has {', '.join(folds[0])} and {second} has {', '.join(folds[1])}.")
    about: dict[str, Any] = {"share_of_second": share}
    with new_folder(out, marker=BLEND_NAME, replace=replace) as folder:
        for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
            if (second / name).is_file():
                shutil.copy(second / name, folder / name)
        for one, other in zip(firsts, seconds, strict=True):
            begun, further = read_checkpoint(one), read_checkpoint(other)
            weights = _between(begun["network_weights"], further["network_weights"], share)
            target = folder / one.parent.name
            target.mkdir()
            torch.save(further | {"network_weights": weights}, target / FINAL_CHECKPOINT)
            about[target.name] = {"first_sha256": sha256_of(one), "second_sha256": sha256_of(other)}
        (folder / BLEND_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _between(first: dict[str, Any], second: dict[str, Any], share: float) -> "OrderedDict[str, torch.Tensor]":
    different = sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or first[name].shape != second[name].shape
    )
    if different:
        raise ModelError(f"These are not the same networks: {', '.join(different[:3])} and more differ.")
    return OrderedDict(
        (name, torch.lerp(value, second[name], share) if value.is_floating_point() else second[name])
        for name, value in first.items()
    )
