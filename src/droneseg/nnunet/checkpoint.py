"""Load checkpoints safely; build networks; interpolate or initialise weights."""

import hashlib
import json
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn

from droneseg.core.classes import CLASSES
from droneseg.core.errors import ModelError, UntrustedCheckpointError
from droneseg.core.files import atomic_directory
from droneseg.nnunet.paths import (
    BASE_CONFIGURATION,
    FINAL_CHECKPOINT,
    PLANS,
    NnunetPaths,
    checkpoint_files,
    export_environment,
)
from droneseg.nnunet.plans import read_plans
from droneseg.nnunet.preprocess import redirect_stdout_to_log


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
    folder: Path, layout: NnunetPaths, *, checkpoint: str, folds: tuple[int, ...] | None = None, trust: bool = False
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
    export_environment(layout)
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
    with redirect_stdout_to_log():
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


BLEND_NAME = "blend.json"
"""What a blended model was made of; only a folder that holds one is ever replaced, never a training."""


def interpolate_weights(first: Path, second: Path, out: Path, *, share: float, replace: bool = False) -> None:
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
    with atomic_directory(out, marker=BLEND_NAME, replace=replace) as folder:
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


_TRAINER = "nnUNetTrainer"


def write_random_model(
    layout: NnunetPaths, *, configuration: str = BASE_CONFIGURATION, folds: int = 1, seed: int = 0
) -> Path:
    """Write a model folder for the planned dataset whose folds have untrained weights.

    Args:
        layout: nnU-Net's folders; the dataset in them is planned.
        configuration: Name in the plans.
        folds: How many.
        seed: Of the first fold's weights; the others follow.

    Returns:
        The model folder, which nnU-Net's own predictor can load.
    """
    plans = read_plans(layout)
    export_environment(layout)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = layout.results / layout.raw_dataset.name / f"{_TRAINER}__{PLANS}__{configuration}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("plans.json", layout.plans_file), ("dataset.json", layout.raw_dataset / "dataset.json")):
        shutil.copyfile(source, folder / name)
    manager = PlansManager(plans)
    for fold in range(folds):
        torch.manual_seed(seed + fold)
        with redirect_stdout_to_log():
            network = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(configuration), 3, len(CLASSES), enable_deep_supervision=False
            )
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": configuration},
                "trainer_name": _TRAINER,
                "inference_allowed_mirroring_axes": (0, 1),
                "current_epoch": 0,
            },
            folder / f"fold_{fold}" / FINAL_CHECKPOINT,
        )
    return folder


def count_gflop(layout: NnunetPaths, *, configuration: str = BASE_CONFIGURATION) -> float:
    """Return the arithmetic of one pass over one tile in 10^9 operations, a multiplication and its addition as two."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from torch.utils.flop_counter import FlopCounterMode

    manager = PlansManager(read_plans(layout))
    chosen = manager.get_configuration(configuration)
    with torch.device("meta"):
        network = nnUNetTrainer.build_network_architecture(
            manager, chosen, 3, len(CLASSES), enable_deep_supervision=False
        )
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 3, *chosen.patch_size))
    return float(counter.get_total_flops()) / 1e9
