"""Start, resume and finish a training."""

import json
import logging
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from droneseg.core.errors import ConfigurationError, OutputExistsError, TrainingError
from droneseg.core.files import write_text
from droneseg.core.logs import log_file
from droneseg.core.system import describe_machine, usable_cores
from droneseg.nnunet import wandb_logger
from droneseg.nnunet.paths import (
    BEST_CHECKPOINT,
    DATASET,
    FINAL_CHECKPOINT,
    LATEST_CHECKPOINT,
    PLANS,
    RECORD_NAME,
    TRAINER,
    NnunetPaths,
    export_environment,
)
from droneseg.nnunet.plans import Plans, add_configuration, divisor, read_plans, resolve_plan, write_plans
from droneseg.nnunet.preprocess import redirect_stdout_to_log
from droneseg.nnunet.trainer_settings import TrainerSettings, write_settings_file
from droneseg.training.config import TrainingConfig, WandbTracking

_PACKAGES = ("droneseg", "nnunetv2", "torch", "numpy", "batchgeneratorsv2", "dynamic-network-architectures")


def package_versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the installed version of each package, "not installed" without one."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """Return the commit of the checkout this code runs from, with "-dirty" after changes; None outside one."""
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
    # an installed copy may lie inside somebody else's repository
    return described.stdout.strip() if tracked.returncode == 0 else None


logger = logging.getLogger(__name__)

_SETTINGS_NAME = "trainer_settings.json"
_LOG_NAME = "droneseg.log"
_CHECKPOINTS = (FINAL_CHECKPOINT, LATEST_CHECKPOINT, BEST_CHECKPOINT)


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        model_folder: What `export --from` takes: plans, dataset.json and a folder for each fold.
        fold_folder: Checkpoints, logs, plots and validation of this fold.
        mean_validation_dice: Of nnU-Net's final validation, or None if it was left out.
    """

    model_folder: Path
    fold_folder: Path
    mean_validation_dice: float | None


def train(config: TrainingConfig, layout: NnunetPaths, *, wandb_key: str | None = None) -> TrainingResult:
    """Train one fold.

    Args:
        config: The training.
        layout: nnU-Net's folders.
        wandb_key: Key of Weights & Biases, if any.

    Raises:
        ConfigurationError: If the data is not preprocessed or the device is not there.
        OutputExistsError: If a training of this name is there and neither resume nor overwrite is set.
        TrainingError: If it cannot be resumed, was interrupted, or the loss became useless.
    """
    _announce(config, layout)
    from droneseg.nnunet.paths import choose_device

    try:
        device = choose_device(config.device)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if config.num_gpus > 1 and device.type != "cuda":
        raise ConfigurationError(f"num_gpus={config.num_gpus} needs device=cuda; this machine offers {device.type}.")
    plans = configure_plans(config, layout)
    fold_folder = layout.fold_folder(config.configuration, config.fold)
    resuming = _prepare_folder(config, plans, layout, fold_folder)
    _keep_tracking(config, fold_folder, wandb_key)
    settings = write_trainer_settings(config, fold_folder)
    _write_record(config, settings, device.type, fold_folder)
    with log_file(fold_folder / _LOG_NAME), redirect_stdout_to_log():
        precision = ", bf16" if settings.bf16 else ""
        logger.info("training %s fold %d on %s%s", config.configuration, config.fold, device.type, precision)
        _run(config, device.type, resuming)
    return TrainingResult(layout.model_folder(config.configuration), fold_folder, _validation_dice(fold_folder))


def _keep_tracking(config: TrainingConfig, fold_folder: Path, wandb_key: str | None) -> None:
    """Write down which run of W&B this training is, if it is tracked."""
    wanted = config.tracking
    if not isinstance(wanted, WandbTracking):
        return
    mode = wandb_logger.choose_mode(wanted.mode, api_key=wandb_key)
    run = wandb_logger.keep_run(
        fold_folder, project=wanted.project, mode=mode, group=wanted.group, images=wanted.images
    )
    sync = f"; send it with `wandb sync {fold_folder / 'wandb' / 'offline-run-*'}`" if mode == "offline" else ""
    logger.info("tracking as run %s of W&B's project %s, %s%s", run.id, run.project, mode, sync)


def _announce(config: TrainingConfig, layout: NnunetPaths) -> None:
    cores = usable_cores()
    # one core loads, the others compute; nnU-Net's own default of 12 would starve a small machine
    export_environment(layout, loaders=config.workers if config.workers is not None else min(12, max(1, cores - 1)))


def configure_plans(config: TrainingConfig, layout: NnunetPaths) -> Plans:
    """Add the configuration of this training to the dataset's plans, and return them."""
    plans = add_configuration(
        read_plans(layout),
        config.configuration,
        patch_size=config.patch_size,
        batch_size=config.batch_size,
        base_features=config.base_features,
        max_features=config.max_features,
        network=config.network,
        convs_per_stage=config.convs_per_stage,
        downscale=config.downscale,
        decoder_levels=config.decoder_levels,
    )
    planned = tuple(resolve_plan(plans, config.configuration)["patch_size"])
    if config.patch_size and planned != config.patch_size:
        logger.info("patch_size=%s becomes %s, which the network can halve", list(config.patch_size), list(planned))
    _require_crop_fits(config, plans)
    write_plans(layout, plans)
    return plans


def _require_crop_fits(config: TrainingConfig, plans: Plans) -> None:
    crop = config.trainer.crop_size
    if crop is None:
        return
    plan = resolve_plan(plans, config.configuration)
    patch, unit = plan["patch_size"], divisor(plan)
    if any(side > whole or side % step for side, whole, step in zip(crop, patch, unit, strict=True)):
        raise ConfigurationError(
            f"crop_size={list(crop)} does not fit: at most the plan's patch, {patch}, in multiples of {list(unit)}."
        )


def write_trainer_settings(config: TrainingConfig, folder: Path) -> TrainerSettings:
    """Settle what depends on the machine, write the trainer's settings into `folder`, and point the trainer to them."""
    from droneseg.nnunet.paths import cpu_has_bf16

    bf16 = cpu_has_bf16() if config.bf16 == "auto" else config.bf16
    settings = config.trainer.model_copy(update={"bf16": bf16, "tracked": config.tracking.name == "wandb"})
    write_text(folder / _SETTINGS_NAME, settings.model_dump_json(indent=2) + "\n")
    write_settings_file(folder / _SETTINGS_NAME)
    return settings


def _prepare_folder(config: TrainingConfig, plans: Plans, layout: NnunetPaths, fold_folder: Path) -> bool:
    """Make the fold's folder ready; return whether there is a checkpoint to go on from."""
    present = [name for name in _CHECKPOINTS if (fold_folder / name).is_file()]
    if present and not (config.resume or config.overwrite):
        raise OutputExistsError(
            f"{fold_folder} holds a training ({', '.join(present)}) and was left untouched. "
            "resume=true goes on with it, overwrite=true sets it aside and starts anew."
        )
    if present and config.overwrite:
        aside = fold_folder.with_name(f"before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{fold_folder.name}")
        fold_folder.rename(aside)
        logger.info("the earlier training is now %s", aside)
        present = []
    if present:
        _require_same_plan(config, plans, layout)
    elif config.resume:
        logger.info("nothing to resume in %s; starting from the beginning", fold_folder)
    fold_folder.mkdir(parents=True, exist_ok=True)
    return bool(present)


def _require_same_plan(config: TrainingConfig, plans: Plans, layout: NnunetPaths) -> None:
    """Refuse to go on with another network: the weights would not fit, or worse, would."""
    recorded_file = layout.model_folder(config.configuration) / "plans.json"
    if not recorded_file.is_file():
        return
    recorded = json.loads(recorded_file.read_text(encoding="utf-8"))["configurations"].get(config.configuration, {})
    planned = json.loads(json.dumps(plans["configurations"][config.configuration]))
    different = [key for key in planned if planned[key] != recorded.get(key)]
    if different:
        raise TrainingError(
            f"The training in {recorded_file.parent} has another plan ({', '.join(different)} differ). Resume with its "
            "own settings, or name a new one with configuration=2d_NAME."
        )


def _write_record(config: TrainingConfig, settings: TrainerSettings, device: str, fold_folder: Path) -> None:
    """Write what this training is made of beside its checkpoints."""
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json", exclude={"trainer"}) | settings.model_dump(mode="json"),
        "device": device,
        "packages": package_versions(),
        "git_revision": git_revision(),
        "machine": describe_machine(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(fold_folder / RECORD_NAME, json.dumps(record, indent=2) + "\n")


def _run(config: TrainingConfig, device: str, resuming: bool) -> None:
    import torch
    from nnunetv2.run.run_training import run_training

    if device == "cpu":
        torch.set_num_threads(usable_cores())
    try:
        run_training(
            DATASET,
            config.configuration,
            config.fold,
            trainer_class_name=TRAINER,
            plans_identifier=PLANS,
            num_gpus=config.num_gpus,
            continue_training=resuming,
            device=torch.device(device),
        )
    except KeyboardInterrupt as error:
        raise TrainingError("Interrupted. Go on from the last checkpoint with resume=true.") from error


def _validation_dice(fold_folder: Path) -> float | None:
    summary = fold_folder / "validation" / "summary.json"
    if not summary.is_file():
        return None
    return float(json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"]["Dice"])
