"""Load nnU-Net checkpoints safely, build their networks, and interpolate weights."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn

from droneseg.core.class_files import channel_order, classes_of, find_classes
from droneseg.core.classes import ClassTable, Normalisation
from droneseg.core.errors import ConfigurationError, ModelError, UntrustedCheckpointError
from droneseg.core.files import atomic_directory, file_sha256
from droneseg.nnunet import paths as nnunet_paths
from droneseg.nnunet.networks import rename_output_layers
from droneseg.nnunet.paths import FoldName
from droneseg.nnunet.plans import Plan, Plans, merge_configuration, read_plans, resolve_plan
from droneseg.nnunet.preprocess import redirect_stdout_to_log
from droneseg.nnunet.servable import problems_of

BLEND_NAME = "blend.json"
"""File with the sources of an interpolated model. A model folder without it is never replaced."""

_DEFAULT_TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class Fold:
    """Checkpoint of one fold.

    Attributes:
        name: Number of the fold, or "all" for a training on all images.
        epochs: Number of trained epochs.
        sha256: SHA-256 of the checkpoint file.
        weights: Weights of the network by name.
    """

    name: FoldName
    epochs: int
    sha256: str
    weights: OrderedDict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainedModel:
    """Contents of an nnU-Net model folder.

    Attributes:
        folder: The model folder.
        plans: nnU-Net's plans.
        dataset: nnU-Net's dataset.json.
        configuration: Name of the configuration in the plans.
        plan: The configuration, merged with the configurations it inherits from.
        normalisation: Normalisation of the colours.
        trainer: Class name of the trainer.
        mirror_axes: Axes along which nnU-Net mirrors at prediction.
        channel_order: Index of the colour (red, green, blue) that each channel of the network is.
        folds: Checkpoint of each fold, in the order of the fold numbers.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str
    plan: Plan
    normalisation: Normalisation
    trainer: str
    mirror_axes: tuple[int, ...]
    folds: tuple[Fold, ...]
    channel_order: tuple[int, int, int] = (0, 1, 2)

    @property
    def classes(self) -> ClassTable:
        """Classes that the network predicts.

        Raises:
            ConfigurationError: If the dataset has regions instead of classes.
        """
        return classes_of(self.dataset)


def load_trained_model(
    folder: Path,
    paths: nnunet_paths.NnunetPaths,
    *,
    checkpoint: str,
    folds: tuple[FoldName, ...] | None = None,
    trust: bool = False,
    apply_postprocessing: bool = True,
) -> TrainedModel:
    """Load an nnU-Net model folder whose model a bundle can serve.

    Args:
        folder: Model folder with plans.json, dataset.json and one folder per fold.
        paths: nnU-Net's folders.
        checkpoint: File name of the checkpoint in each fold.
        folds: Folds to load; None loads every numbered fold that has the checkpoint, or else fold_all.
        trust: Whether to load checkpoints with pickled objects other than numbers and text. Loading them can execute
            arbitrary code.
        apply_postprocessing: Whether nnU-Net's postprocessing belongs to the model, if it was found useful.

    Raises:
        ModelError: If the folder is not a model folder, or a fold is missing.
        ConfigurationError: If a bundle could not predict as nnU-Net would; all reasons are listed.
        UntrustedCheckpointError: If a checkpoint contains other pickled objects and `trust` is false.
    """
    files = nnunet_paths.fold_files(folder, checkpoint, folds)
    nnunet_paths.export_environment(paths)
    model = _read_model(folder, files, trust=trust, apply_postprocessing=apply_postprocessing)
    return replace(model, channel_order=_channel_order(model, paths))


def _channel_order(model: TrainedModel, paths: nnunet_paths.NnunetPaths) -> tuple[int, int, int]:
    """Return the colour that each channel is: nnU-Net ignores the names of the channels of RGB files.

    Raises:
        ConfigurationError: If the names have another order than red, green, blue, and the images are not there.
    """
    order = channel_order(model.dataset)
    images = paths.raw / str(model.plans.get("dataset_name", "")) / "imagesTr"
    if order == model.channel_order or any(images.glob("*_0001.*")):
        return order
    if any(images.glob("*_0000.*")):
        return model.channel_order
    names = ", ".join(map(str, model.dataset["channel_names"].values()))
    raise ConfigurationError(
        f"{model.folder} has the channels {names}. Whether this is their order depends on the images: RGB files are "
        f"read as red, green, blue, whatever these names are. {images} has no images; set nnUNet_raw to the folder "
        "with the dataset."
    )


def _read_model(
    folder: Path, files: Sequence[Path], *, trust: bool = False, apply_postprocessing: bool = False
) -> TrainedModel:
    contents = [read_checkpoint(file, trust=trust) for file in files]
    first = contents[0]
    configuration = str(first["init_args"]["configuration"])
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    if configuration not in plans.get("configurations", {}):
        raise ModelError(
            f"{folder / 'plans.json'} has no configuration {configuration}, which {files[0]} names. "
            "Use the plans.json of the same training run."
        )
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    values = merge_configuration(plans, configuration)
    problems = problems_of(folder, dataset, values, apply_postprocessing=apply_postprocessing)
    if problems:
        raise ConfigurationError(
            "\n".join([f"{folder} cannot be served as nnU-Net would:", *(f"  - {problem}" for problem in problems)])
        )
    plan = resolve_plan(plans, configuration)
    return TrainedModel(
        folder=folder,
        plans=plans,
        dataset=dataset,
        configuration=configuration,
        plan=plan,
        normalisation=plan.normalisation,
        trainer=str(first["trainer_name"]),
        mirror_axes=tuple(int(axis) for axis in first.get("inference_allowed_mirroring_axes") or ()),
        folds=tuple(
            Fold(
                nnunet_paths.fold_name(file),
                int(content["current_epoch"]),
                file_sha256(file),
                content["network_weights"],
            )
            for file, content in zip(files, contents, strict=True)
        ),
    )


def build_networks(model: TrainedModel) -> list[nn.Module]:
    """Build the network of each fold with its weights, in evaluation mode and without deep supervision.

    Raises:
        ModelError: If nnU-Net does not find the trainer of the model.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    networks = []
    with redirect_stdout_to_log():
        plans = PlansManager(model.plans)
        configuration = plans.get_configuration(model.configuration)
        trainer = find_trainer(model.trainer)
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


def find_trainer(name: str) -> Any:
    """Return one of nnU-Net's trainer classes by its name.

    Raises:
        ModelError: If it is neither in nnU-Net nor in a folder in `nnUNet_extTrainer`.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:  # nnU-Net has no more specific error
        raise ModelError(
            f"The model was trained with {name}, which is neither in nnU-Net nor in {nnunet_paths.trainer_path()}. "
            "Add the folder of its file: export nnUNet_extTrainer=FOLDER."
        ) from error


def load_teacher(
    file: Path, *, labels: Mapping[str, Any], normalisation: Normalisation, crop: tuple[int, int]
) -> nn.Module:
    """Return the network of a checkpoint as a teacher: in evaluation mode and without gradients.

    Args:
        file: Checkpoint in a fold's folder of a model folder.
        labels: `labels` in the `dataset.json` of the current training; the ignore label may differ.
        normalisation: Normalisation of the colours in the current training.
        crop: Height and width of the crops in the current training.

    Raises:
        ModelError: If the checkpoint cannot be read or is not in a model folder, if its classes or its normalisation
            differ, or if its network cannot take the crops.
        UntrustedCheckpointError: If loading the checkpoint could execute code.
    """
    folder = file.parent.parent
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing or not file.parent.name.startswith("fold_"):
        raise ModelError(
            f"{file} is not in a model folder: {' and '.join(missing) or 'fold_N'} is missing. "
            "Choose a checkpoint_*.pth file in a fold of a model folder."
        )
    model = _read_model(folder, [file])
    ours, theirs = (
        {name: i for name, i in table.items() if name != "ignore"} for table in (labels, model.dataset["labels"])
    )
    if ours != theirs:
        raise ModelError(
            f"{file} has the classes {', '.join(theirs)}, but this training has {', '.join(ours)}. "
            "Choose another teacher."
        )
    if model.normalisation != normalisation:
        raise ModelError(
            f"{file} normalises colours by {model.normalisation}, but this training by {normalisation}. "
            "Choose another teacher."
        )
    network = build_networks(model)[0].requires_grad_(False)
    try:
        network(torch.zeros(1, 3, *crop))
    except RuntimeError as error:  # torch raises no more specific error
        height, width = crop
        raise ModelError(
            f"The network of {file} cannot take crops of {width}x{height} pixels. "
            "Choose a crop_size whose sides are multiples of the teacher's coarsest stride, often 64."
        ) from error
    return network


def read_checkpoint(file: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read an nnU-Net checkpoint.

    Args:
        file: Checkpoint file.
        trust: Whether to load a checkpoint with pickled objects other than numbers and text. Loading it can execute
            arbitrary code.

    Raises:
        ModelError: If the file is damaged or not an nnU-Net checkpoint.
        UntrustedCheckpointError: If the file contains other pickled objects and `trust` is false.
    """
    # beyond tensors, nnU-Net's checkpoints contain NumPy scalars in the training log
    numbers = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    scalar: Any = (np._core.multiarray.scalar, "numpy._core.multiarray.scalar")  # type: ignore[attr-defined]  # no public name
    older: Any = (scalar[0], "numpy.core.multiarray.scalar")
    encode: Any = (__import__("_codecs").encode, "_codecs.encode")
    try:
        with torch.serialization.safe_globals([*numbers, scalar, older, encode]):
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        raise UntrustedCheckpointError(
            f"{file} contains pickled objects other than numbers and text ({_first_line(error)}); loading it can "
            "execute arbitrary code. Use --trust if you trust its source."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"Cannot load {file}: {_first_line(error)}") from error
    if not isinstance(content, dict) or "network_weights" not in content:
        raise ModelError(f"{file} is not an nnU-Net checkpoint. Choose a checkpoint_*.pth file of a fold.")
    return content | {"network_weights": rename_output_layers(content["network_weights"])}


def _first_line(error: Exception) -> str:
    """Return the first line of an error message, or the forbidden name if unpickling failed."""
    text = str(error)
    for marker in ("Unsupported global: ", "WeightsUnpickler error: "):
        if marker in text:
            return text.split(marker)[1].split(" was not")[0].splitlines()[0].removeprefix("GLOBAL ")
    return text.splitlines()[0] if text else type(error).__name__


def interpolate_weights(first: Path, second: Path, out: Path, *, share: float, replace: bool = False) -> None:
    """Write a model folder whose weights are interpolated between those of two models, fold by fold.

    Use it for a model and a fine-tuned version of it (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    Weights of independent trainings cannot be interpolated.

    Args:
        first: Model folder.
        second: Model folder with the same folds and networks; everything but the weights is copied from it.
        out: Folder to write; its `blend.json` names the sources.
        share: Weight of the second model, 0 to 1.
        replace: Whether to replace an interpolated model in `out`.

    Raises:
        ModelError: If a folder is not a model folder, or the networks differ.
        OutputExistsError: If `out` exists and may not be replaced.
    """
    first_files, second_files = (
        nnunet_paths.checkpoint_files(first, nnunet_paths.FINAL_CHECKPOINT),
        nnunet_paths.checkpoint_files(second, nnunet_paths.FINAL_CHECKPOINT),
    )
    folds = [[file.parent.name for file in files] for files in (first_files, second_files)]
    if folds[0] != folds[1]:
        raise ModelError(
            f"The models have different folds: {first} has {', '.join(folds[0])}, {second} has {', '.join(folds[1])}. "
            "Use models with the same folds."
        )
    sources: dict[str, float | dict[str, str]] = {"share_of_second": share}
    with atomic_directory(out, marker=BLEND_NAME, replace=replace) as folder:
        for name in ("plans.json", "dataset.json", nnunet_paths.FINGERPRINT_NAME):
            if (second / name).is_file():
                shutil.copy(second / name, folder / name)
        for fold, first_file, second_file in zip(folds[0], first_files, second_files, strict=True):
            content = read_checkpoint(second_file)
            weights = _interpolate(read_checkpoint(first_file)["network_weights"], content["network_weights"], share)
            (folder / fold).mkdir()
            torch.save(content | {"network_weights": weights}, folder / fold / nnunet_paths.FINAL_CHECKPOINT)
            sources[fold] = {"first_sha256": file_sha256(first_file), "second_sha256": file_sha256(second_file)}
        (folder / BLEND_NAME).write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")


def _interpolate(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], share: float
) -> OrderedDict[str, torch.Tensor]:
    different = sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or first[name].shape != second[name].shape
    )
    if different:
        raise ModelError(f"The models have different networks; {len(different)} layers differ, e.g. {different[0]}.")
    return OrderedDict(
        (name, torch.lerp(value, second[name], share) if value.is_floating_point() else second[name])
        for name, value in first.items()
    )


def write_random_model(
    paths: nnunet_paths.NnunetPaths,
    *,
    configuration: str = nnunet_paths.BASE_CONFIGURATION,
    folds: int = 1,
    seed: int = 0,
) -> Path:
    """Write a model folder with randomly initialised weights for the planned dataset.

    Args:
        paths: nnU-Net's folders with the plans of the dataset.
        configuration: Name of the configuration in the plans.
        folds: Number of folds.
        seed: Random seed of the first fold's weights; each further fold adds 1.

    Returns:
        The model folder, which nnU-Net's own predictor can load.
    """
    plans, classes = read_plans(paths), len(find_classes(paths.raw_dataset).classes)
    nnunet_paths.export_environment(paths)
    folder = paths.results / paths.raw_dataset.name / f"{_DEFAULT_TRAINER}__{paths.plans}__{configuration}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("plans.json", paths.plans_file), ("dataset.json", paths.raw_dataset / "dataset.json")):
        shutil.copyfile(source, folder / name)
    for fold in range(folds):
        torch.manual_seed(seed + fold)
        with redirect_stdout_to_log():
            network = _default_network(plans, configuration, classes)
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": configuration},
                "trainer_name": _DEFAULT_TRAINER,
                "inference_allowed_mirroring_axes": (0, 1),
                "current_epoch": 0,
            },
            folder / f"fold_{fold}" / nnunet_paths.FINAL_CHECKPOINT,
        )
    return folder


def count_gflop(paths: nnunet_paths.NnunetPaths, *, configuration: str = nnunet_paths.BASE_CONFIGURATION) -> float:
    """Return the number of floating-point operations in one forward pass over one tile, in units of 10^9.

    A multiplication and the addition of its result count as two operations.
    """
    from torch.utils.flop_counter import FlopCounterMode

    plans, classes = read_plans(paths), len(find_classes(paths.raw_dataset).classes)
    with torch.device("meta"):
        network = _default_network(plans, configuration, classes)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 3, *resolve_plan(plans, configuration).patch_size))
    return float(counter.get_total_flops()) / 1e9


def _default_network(plans: Plans, configuration: str, classes: int) -> nn.Module:
    """Build the network that nnU-Net's default trainer builds, without deep supervision."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    network: nn.Module = nnUNetTrainer.build_network_architecture(
        manager, manager.get_configuration(configuration), 3, classes, enable_deep_supervision=False
    )
    return network
