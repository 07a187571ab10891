"""Start, resume and finish a training."""

import json
import logging
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from droneseg.core.class_files import DESCRIPTION_NAME, classes_of
from droneseg.core.classes import ClassTable
from droneseg.core.errors import ConfigurationError, OutputExistsError, TrainingError
from droneseg.core.files import read_json, write_text
from droneseg.core.logs import log_file
from droneseg.core.system import describe_machine, usable_cores
from droneseg.nnunet import paths as nnunet_paths
from droneseg.nnunet import wandb_logger
from droneseg.nnunet.plans import Plans, add_configuration, read_fine_classes, read_plans, resolve_plan, write_plans
from droneseg.nnunet.preprocess import redirect_stdout_to_log
from droneseg.nnunet.trainer_settings import TrainerSettings, problem_of_weights, write_settings_file
from droneseg.training.config import TrainingConfig, WandbTracking

logger = logging.getLogger(__name__)

_LOG_NAME = "droneseg.log"
_CHECKPOINTS = (nnunet_paths.FINAL_CHECKPOINT, nnunet_paths.LATEST_CHECKPOINT, nnunet_paths.BEST_CHECKPOINT)
_PACKAGES = ("droneseg", "nnunetv2", "torch", "numpy", "batchgeneratorsv2", "dynamic-network-architectures")


def package_versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the installed version of each package, or "not installed"."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_revision() -> str | None:
    """Return the commit of the git checkout that contains this file, or None if there is none.

    The commit ends with "-dirty" if the checkout has changes.
    """
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=folder, capture_output=True, check=False
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    # an installed copy of this file may be inside an unrelated repository
    return described.stdout.strip() if tracked.returncode == 0 else None


@dataclass(frozen=True)
class TrainingResult:
    """Result of a finished training.

    Attributes:
        model_folder: Model folder for `droneseg export --from`: plans, dataset.json and one folder per fold.
        fold_folder: Folder of this fold with checkpoints, logs, plots and validation.
        mean_validation_dice: Mean Dice of nnU-Net's final validation, or None if the validation was skipped.
    """

    model_folder: Path
    fold_folder: Path
    mean_validation_dice: float | None


def train(config: TrainingConfig, paths: nnunet_paths.NnunetPaths, *, wandb_key: str | None = None) -> TrainingResult:
    """Train one fold.

    Args:
        config: Configuration of the training.
        paths: nnU-Net's folders.
        wandb_key: API key of Weights & Biases, if any.

    Raises:
        ConfigurationError: If the data is not preprocessed, the fold or a file does not exist, the class weights do not
            fit the classes, or the device is not available.
        OutputExistsError: If the fold already has a training and neither `resume` nor `overwrite` is set.
        TrainingError: If the training cannot be resumed, was interrupted, or its loss is not finite.
    """
    paths = paths.select(config.dataset, config.plans)
    check_training(config, paths)
    _export_environment(config, paths)
    device = nnunet_paths.choose_device(config.device)
    if config.num_gpus > 1 and device.type != "cuda":
        raise ConfigurationError(
            f"num_gpus={config.num_gpus} needs device=cuda, but only {device.type} is available. Use num_gpus=1."
        )
    plans = configure_plans(config, paths)
    fold_folder = paths.fold_folder(config.configuration, config.fold)
    if config.trainer.weights and not _resumes(config, paths):
        _check_weights(config, paths, plans)
    resuming = _prepare_folder(config, plans, paths, fold_folder)
    _start_tracking(config, fold_folder, wandb_key)
    settings = write_trainer_settings(config, fold_folder)
    _write_record(config, settings, device.type, fold_folder)
    with log_file(fold_folder / _LOG_NAME), redirect_stdout_to_log():
        precision = ", bf16" if settings.bf16 else ""
        logger.info("training %s fold %d on %s%s", config.configuration, config.fold, device.type, precision)
        _run(config, paths, device.type, resuming=resuming)
    return TrainingResult(paths.model_folder(config.configuration), fold_folder, _validation_dice(fold_folder))


def check_training(config: TrainingConfig, paths: nnunet_paths.NnunetPaths) -> None:
    """Check before a training that its fold, files and classes exist.

    Args:
        config: Configuration of the training.
        paths: nnU-Net's folders, with the dataset of the training.

    Raises:
        ConfigurationError: If the fold, or a file from which the training takes weights, does not exist, or the class
            weights do not fit the classes; all problems are listed.
    """
    problems = [*_problems_of_fold(config.fold, paths), *_problems_of_files(config, resumes=_resumes(config, paths))]
    folders = (paths.preprocessed_dataset, paths.raw_dataset)  # data that is not preprocessed yet has classes, too
    if file := next((folder / DESCRIPTION_NAME for folder in folders if (folder / DESCRIPTION_NAME).is_file()), None):
        content = read_json(file, expected="Run `droneseg preprocess` again.")
        problems += problems_of_classes(config, classes_of(content))
    if problems:
        raise ConfigurationError("\n".join(problems))


def problems_of_classes(config: TrainingConfig, classes: ClassTable) -> list[str]:
    """Return why a configuration does not fit the classes of a dataset; empty if it does."""
    weights = config.trainer.class_weights
    problem = problem_of_weights(weights, classes) if weights is not None else None
    return [problem] if problem else []


def _problems_of_fold(fold: int, paths: nnunet_paths.NnunetPaths) -> list[str]:
    """Return a problem if the split has no such fold: nnU-Net would silently train on a random split instead."""
    file = paths.preprocessed_dataset / nnunet_paths.SPLITS_NAME
    if not file.is_file():  # nnU-Net chooses five folds
        return []
    count = len(json.loads(file.read_text(encoding="utf-8")))
    if fold < count:
        return []
    return [f"fold={fold} is not in {file}. Choose from its folds: {', '.join(map(str, range(count)))}."]


def _resumes(config: TrainingConfig, paths: nnunet_paths.NnunetPaths) -> bool:
    """Return whether the training continues from a checkpoint of its own, which replaces the initial weights."""
    return config.resume and bool(_checkpoints_in(paths.fold_folder(config.configuration, config.fold)))


def _check_weights(config: TrainingConfig, paths: nnunet_paths.NnunetPaths, plans: Plans) -> None:
    """Check that the initial weights fit, before an existing training is renamed."""
    from droneseg.nnunet.warm_start import check_weights  # imports torch

    with redirect_stdout_to_log():
        check_weights(Path(str(config.trainer.weights)), plans, config.configuration, _read_description(paths))


def _problems_of_files(config: TrainingConfig, *, resumes: bool) -> list[str]:
    choices = {
        "weights": "a checkpoint_*.pth file of a fold, a zip file of nnU-Net, or a bundle's model.onnx",
        "teacher": "a checkpoint_*.pth file of a fold",
    }
    files = {key: Path(file) for key in choices if (file := getattr(config.trainer, key))}
    return [
        f"{key}={file} {'is a folder' if file.is_dir() else 'does not exist'}. Choose {choices[key]}."
        for key, file in files.items()
        if not file.is_file() and not (resumes and key == "weights")
    ]


def _start_tracking(config: TrainingConfig, fold_folder: Path, wandb_key: str | None) -> None:
    """Choose the W&B run of a tracked training and save it in the fold folder."""
    tracking = config.tracking
    if not isinstance(tracking, WandbTracking):
        return
    mode = wandb_logger.choose_mode(tracking.mode, api_key=wandb_key)
    run = wandb_logger.choose_run(
        fold_folder, project=tracking.project, mode=mode, group=tracking.group, images=tracking.images
    )
    sync = f"; upload it with `wandb sync {fold_folder / 'wandb' / 'offline-run-*'}`" if mode == "offline" else ""
    logger.info("tracking in W&B run %s of project %s, %s%s", run.id, run.project, mode, sync)


def _export_environment(config: TrainingConfig, paths: nnunet_paths.NnunetPaths) -> None:
    cores = usable_cores()
    # leave one core to the network; nnU-Net's default of 12 workers would overload a small machine
    nnunet_paths.export_environment(
        paths, loaders=config.workers if config.workers is not None else min(12, max(1, cores - 1))
    )


def configure_plans(config: TrainingConfig, paths: nnunet_paths.NnunetPaths) -> Plans:
    """Add the configuration of this training to the plans of the dataset and return the plans."""
    plans = add_configuration(
        read_plans(paths),
        config.configuration,
        patch_size=config.patch_size,
        batch_size=config.batch_size,
        base_features=config.base_features,
        max_features=config.max_features,
        network=config.network,
        convs_per_stage=config.convs_per_stage,
        downscale=config.downscale,
        decoder_levels=config.decoder_levels,
        decoder_features=config.decoder_features,
        fine_classes=_fine_classes(config, paths),
    )
    planned = resolve_plan(plans, config.configuration).patch_size
    if config.patch_size and planned != config.patch_size:
        logger.info(
            "patch_size=%s rounded up to %s, a multiple of the network's strides",
            list(config.patch_size),
            list(planned),
        )
    _require_crop_fits(config, plans)
    write_plans(paths, plans)
    return plans


def _fine_classes(config: TrainingConfig, paths: nnunet_paths.NnunetPaths) -> list[int]:
    """Return the class id of each fine class that the network distinguishes.

    Without a loss for fine classes, a network keeps those of its initial weights, and with them the output layers.
    """
    if config.trainer.fine_weight:
        return read_fine_classes(paths)
    if _resumes(config, paths):
        return _recorded_fine_classes(config, paths)
    weights = config.trainer.weights
    if config.network in ("plain", "batchnorm") or not weights or weights.endswith(".onnx"):
        return []
    from droneseg.nnunet.warm_start import fine_classes_of  # imports torch

    return fine_classes_of(Path(weights), _read_description(paths))


def _recorded_fine_classes(config: TrainingConfig, paths: nnunet_paths.NnunetPaths) -> list[int]:
    """Return the fine classes of the training that is continued; its initial weights may be deleted."""
    file = paths.model_folder(config.configuration) / "plans.json"
    plans = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"configurations": {}}
    planned = plans["configurations"].get(config.configuration, {}).get("architecture", {})
    return list(planned.get("arch_kwargs", {}).get("fine_classes", ()))


def _read_description(paths: nnunet_paths.NnunetPaths) -> dict[str, Any]:
    """Return the dataset.json of the preprocessed dataset."""
    description: dict[str, Any] = read_json(
        paths.preprocessed_dataset / DESCRIPTION_NAME, expected="Run `droneseg preprocess` again."
    )
    return description


def _require_crop_fits(config: TrainingConfig, plans: Plans) -> None:
    """Raise ConfigurationError if the crop exceeds the patch or is not a multiple of the network's strides."""
    crop = config.trainer.crop_size
    if crop is None:
        return
    plan = resolve_plan(plans, config.configuration)
    sides = zip(crop, plan.patch_size, plan.divisor, strict=True)
    if any(side > maximum or side % step for side, maximum, step in sides):
        raise ConfigurationError(
            f"crop_size={list(crop)} does not fit the plan. Use multiples of {list(plan.divisor)} up to the patch "
            f"size {list(plan.patch_size)}."
        )


def write_trainer_settings(config: TrainingConfig, folder: Path) -> TrainerSettings:
    """Resolve the settings that depend on the machine and write the trainer's settings to a file in `folder`."""
    bf16 = nnunet_paths.cpu_has_bf16() if config.bf16 == "auto" else config.bf16
    settings = config.trainer.model_copy(update={"bf16": bf16, "tracked": config.tracking.name == "wandb"})
    write_settings_file(settings, folder)
    return settings


def _prepare_folder(config: TrainingConfig, plans: Plans, paths: nnunet_paths.NnunetPaths, fold_folder: Path) -> bool:
    """Create the fold's folder; return whether it has a checkpoint to resume from."""
    present = _checkpoints_in(fold_folder)
    if present and not (config.resume or config.overwrite):
        raise OutputExistsError(
            f"{fold_folder} already contains a training run ({', '.join(present)}). "
            "Use resume=true to continue it, or overwrite=true to rename it and start from scratch."
        )
    if present and config.overwrite:
        renamed = fold_folder.with_name(f"before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{fold_folder.name}")
        fold_folder.rename(renamed)
        logger.info("renamed the existing training run to %s", renamed)
        present = []
    if present:
        _require_same_plan(config, plans, paths)
    elif config.resume:
        logger.info("no checkpoint to resume in %s; starting from scratch", fold_folder)
    fold_folder.mkdir(parents=True, exist_ok=True)
    return bool(present)


def _checkpoints_in(fold_folder: Path) -> list[str]:
    return [name for name in _CHECKPOINTS if (fold_folder / name).is_file()]


def _require_same_plan(config: TrainingConfig, plans: Plans, paths: nnunet_paths.NnunetPaths) -> None:
    """Raise TrainingError if the plan has changed: the weights may no longer fit the network or the data."""
    recorded_file = paths.model_folder(config.configuration) / "plans.json"
    if not recorded_file.is_file():
        return
    recorded = json.loads(recorded_file.read_text(encoding="utf-8"))["configurations"].get(config.configuration, {})
    planned = json.loads(json.dumps(plans["configurations"][config.configuration]))
    different = [key for key in planned if planned[key] != recorded.get(key)]
    if different:
        raise TrainingError(
            f"The training run in {recorded_file.parent} has a different plan ({', '.join(different)}). "
            "Resume with its original values, or start a new run with configuration=2d_NAME."
        )


def _write_record(config: TrainingConfig, settings: TrainerSettings, device: str, fold_folder: Path) -> None:
    """Write configuration, package versions and machine of the training next to its checkpoints."""
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json", exclude={"trainer"}) | settings.model_dump(mode="json"),
        "device": device,
        "packages": package_versions(),
        "git_revision": git_revision(),
        "machine": describe_machine(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(fold_folder / nnunet_paths.RECORD_NAME, json.dumps(record, indent=2) + "\n")


def _run(config: TrainingConfig, paths: nnunet_paths.NnunetPaths, device: str, *, resuming: bool) -> None:
    import torch
    from nnunetv2.run.run_training import run_training

    if device == "cpu":
        torch.set_num_threads(usable_cores())
    try:
        run_training(
            paths.dataset,
            config.configuration,
            config.fold,
            trainer_class_name=nnunet_paths.TRAINER,
            plans_identifier=paths.plans,
            num_gpus=config.num_gpus,
            continue_training=resuming,
            device=torch.device(device),
        )
    except KeyboardInterrupt as error:
        if not _checkpoints_in(paths.fold_folder(config.configuration, config.fold)):
            raise TrainingError(
                "Training interrupted before its first checkpoint, so nothing was saved. Run the same command again."
            ) from error
        raise TrainingError("Training interrupted. Continue from the last checkpoint with resume=true.") from error


def _validation_dice(fold_folder: Path) -> float | None:
    summary = fold_folder / "validation" / "summary.json"
    if not summary.is_file():
        return None
    return float(json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"]["Dice"])
