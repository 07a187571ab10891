"""Checkpoints of nnU-Net, loaded without running what they pickle, and the networks they belong to."""

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn

from droneseg.core.errors import ModelError, UntrustedCheckpointError
from droneseg.nnunet.layout import Layout, announce, checkpoint_files
from droneseg.nnunet.output import prints_as_logs


@dataclass(frozen=True)
class Fold:
    """The checkpoint of one fold.

    Attributes:
        number: Of the fold.
        epochs: Trained.
        sha256: Of the file.
        weights: Of the network, by name.
    """

    number: int
    epochs: int
    sha256: str
    weights: "OrderedDict[str, torch.Tensor]"


@dataclass(frozen=True)
class TrainedModel:
    """A model folder of nnU-Net, read.

    Attributes:
        folder: Where it lies.
        plans: nnU-Net's plans.
        dataset: nnU-Net's dataset.json.
        configuration: Name in the plans.
        trainer: Name of the trainer's class.
        mirror_axes: Axes along which nnU-Net mirrors at prediction.
        folds: In order.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    folds: tuple[Fold, ...]


def load_trained_model(
    folder: Path, layout: Layout, *, checkpoint: str, folds: tuple[int, ...] | None = None, trust: bool = False
) -> TrainedModel:
    """Read a model folder of nnU-Net.

    Args:
        folder: It holds plans.json, dataset.json and the folds.
        layout: nnU-Net's folders.
        checkpoint: File name of the checkpoint in each fold.
        folds: Which ones; None for all that have it.
        trust: Whether to load checkpoints that pickle more than numbers and text, which can run any code.

    Raises:
        ModelError: If there is no such model.
        UntrustedCheckpointError: If a checkpoint pickles more than numbers and text and `trust` is false.
    """
    files = [
        file for file in checkpoint_files(folder, checkpoint) if folds is None or _fold_number(file.parent) in folds
    ]
    missing = sorted(set(folds or ()) - {_fold_number(file.parent) for file in files})
    if missing:
        raise ModelError(f"{folder}: fold {', '.join(map(str, missing))} holds no {checkpoint}.")
    announce(layout)
    contents = [read_checkpoint(file, trust=trust) for file in files]
    first = contents[0]
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    if first["init_args"]["configuration"] not in plans.get("configurations", {}):
        raise ModelError(f"{folder / 'plans.json'} does not hold configuration {first['init_args']['configuration']}.")
    return TrainedModel(
        folder=folder,
        plans=plans,
        dataset=json.loads((folder / "dataset.json").read_text(encoding="utf-8")),
        configuration=str(first["init_args"]["configuration"]),
        trainer=str(first["trainer_name"]),
        mirror_axes=tuple(int(axis) for axis in first.get("inference_allowed_mirroring_axes") or ()),
        folds=tuple(
            Fold(
                _fold_number(file.parent),
                int(content["current_epoch"]),
                sha256_of(file),
                content["network_weights"],
            )
            for file, content in zip(files, contents, strict=True)
        ),
    )


def build_networks(model: TrainedModel) -> list[nn.Module]:
    """Build one network per fold with its weights, ready to predict: no deep supervision, evaluation mode."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    networks = []
    with prints_as_logs():
        plans = PlansManager(model.plans)
        configuration = plans.get_configuration(model.configuration)
        trainer = recursive_find_trainer_class_by_name(model.trainer)
        for fold in model.folds:
            network = trainer.build_network_architecture(
                plans,
                configuration,
                determine_num_input_channels(plans, configuration, model.dataset),
                plans.get_label_manager(model.dataset).num_segmentation_heads,
                enable_deep_supervision=False,
            )
            network.load_state_dict(fold.weights)
            networks.append(network.eval())
    return networks


def _fold_number(folder: Path) -> int:
    return int(folder.name.removeprefix("fold_"))


def sha256_of(file: Path) -> str:
    """Return the hash by which a bundle names the checkpoint it was made of."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_checkpoint(file: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net as it is.

    Args:
        file: The checkpoint.
        trust: Whether to load it even if it pickles more than numbers and text, which can run any code.

    Raises:
        ModelError: If it is none, or damaged.
        UntrustedCheckpointError: If it pickles more and `trust` is false.
    """
    # what nnU-Net's checkpoints hold beyond tensors: numpy scalars in the log of the training
    numbers = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    scalar: Any = (np._core.multiarray.scalar, "numpy._core.multiarray.scalar")  # type: ignore[attr-defined]  # no public name
    older: Any = (scalar[0], "numpy.core.multiarray.scalar")
    encode: Any = (__import__("_codecs").encode, "_codecs.encode")
    try:
        with torch.serialization.safe_globals([*numbers, scalar, older, encode]):
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        raise UntrustedCheckpointError(
            f"{file} pickles more than numbers and text ({_first_line(error)}); loading it could run any code. "
            "If you trust where it came from, use --trust."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"{file}: cannot be loaded: {_first_line(error)}") from error
    if not isinstance(content, dict) or "network_weights" not in content:
        raise ModelError(f"{file} is no checkpoint of nnU-Net.")
    return content


def _first_line(error: Exception) -> str:
    text = str(error)
    for marker in ("Unsupported global: ", "WeightsUnpickler error: "):
        if marker in text:
            return text.split(marker)[1].split(" was not")[0].splitlines()[0].removeprefix("GLOBAL ")
    return text.splitlines()[0] if text else type(error).__name__
