"""Training speed: time per part of an iteration, and Dice over time."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from droneseg.core.system import usable_cores
from droneseg.nnunet.paths import TRAINER, NnunetPaths, choose_device, export_environment
from droneseg.nnunet.preprocess import redirect_stdout_to_log
from droneseg.training.config import TrainingConfig
from droneseg.training.run import configure_plans, write_trainer_settings

STOCK_TRAINER = "nnUNetTrainer"
PARTS = ("loading", "augmentation", "forward", "backward", "optimiser")
_SMOOTHED_EPOCHS = 3
_WARM_UP = 3


@dataclass(frozen=True)
class IterationTimes:
    """Time per iteration in seconds, with data loading in the training process.

    Attributes:
        total: Median over the iterations.
        parts: Median of each of `PARTS`; forward includes the loss, backward includes gradient clipping.
    """

    total: float
    parts: dict[str, float]


@dataclass(frozen=True)
class EpochDice:
    """Dice at the end of an epoch.

    Attributes:
        seconds: Seconds since the start of the training.
        dice: nnU-Net's pseudo Dice: mean over the classes, on random patches of the validation part.
    """

    seconds: float
    dice: float


def time_to_reach(dice: float, epochs: Sequence[EpochDice]) -> float | None:
    """Return the seconds until the Dice, smoothed as in `smoothed_end`, reaches a value; None if it never does."""
    for last in range(min(_SMOOTHED_EPOCHS, len(epochs)), len(epochs) + 1):
        if smoothed_end(epochs[:last]) >= dice:
            return epochs[last - 1].seconds
    return None


def smoothed_end(epochs: Sequence[EpochDice]) -> float:
    """Return the mean Dice of the last three epochs; the Dice of a single epoch is noisy because patches are random."""
    return statistics.fmean(epoch.dice for epoch in epochs[-_SMOOTHED_EPOCHS:])


class _PartClock:
    """Measures the duration of each part of an iteration in seconds, with torch's hooks."""

    def __init__(self, trainer: Any, device: str) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device = device
        self._begin = 0.0
        loader = trainer.dataloader_train.data_loader
        augment = loader.transforms

        def timed_augment(**sample: Any) -> Any:
            begin = time.perf_counter()
            augmented = augment(**sample)
            self.seconds["augmentation"] += time.perf_counter() - begin
            return augmented

        loader.transforms = timed_augment
        trainer.network.register_forward_pre_hook(lambda *_: self._start())
        trainer.loss.register_forward_hook(lambda *_: self._end("forward"))
        trainer.optimizer.register_step_pre_hook(lambda *_: self._end("backward"))
        trainer.optimizer.register_step_post_hook(lambda *_: self._end("optimiser"))

    def now(self) -> float:
        """Return the time after all work on the device has finished."""
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self) -> None:
        self._begin = self.now()

    def _end(self, part: str) -> None:
        end = self.now()
        self.seconds[part] += end - self._begin
        self._begin = end


def time_iterations(config: TrainingConfig, paths: NnunetPaths, trainer: str, count: int) -> IterationTimes:
    """Train for some iterations and measure the time of each part.

    Args:
        config: Configuration of the training; nnU-Net's own trainer uses only the plan, the fold and the seed.
        paths: nnU-Net's folders with the preprocessed dataset.
        trainer: Class name of nnU-Net's trainer or of droneseg's.
        count: Number of measured iterations, after a few for warm-up.
    """
    with _open_trainer(config, paths, trainer, loaders=0) as (instance, device):
        instance.on_train_start()
        instance.on_train_epoch_start()
        clock = _PartClock(instance, device)
        rows: list[dict[str, float]] = []
        for number in range(_WARM_UP + count):
            clock.seconds = dict.fromkeys(PARTS, 0.0)
            begin = clock.now()
            batch = next(instance.dataloader_train)
            loaded = clock.now()
            clock.seconds["loading"] = loaded - begin - clock.seconds["augmentation"]
            instance.train_step(batch)
            if number >= _WARM_UP:
                rows.append(clock.seconds | {"total": clock.now() - begin})
    return IterationTimes(
        statistics.median(row["total"] for row in rows),
        {part: statistics.median(row[part] for row in rows) for part in PARTS},
    )


def dice_over_time(
    config: TrainingConfig, paths: NnunetPaths, trainer: str, *, minutes: float, measured: IterationTimes
) -> list[EpochDice]:
    """Train for some minutes and return the Dice after each epoch.

    droneseg's trainer has a time budget. nnU-Net's has none, so it trains for as many epochs as fit into the time, and
    its learning rate decays over them.

    Args:
        config: Configuration of the training; both trainers use its numbers of iterations per epoch.
        paths: nnU-Net's folders with the preprocessed dataset.
        trainer: Class name of nnU-Net's trainer or of droneseg's.
        minutes: Approximate training time.
        measured: Time per iteration of this trainer, from which the number of epochs is estimated.
    """
    settings = config.trainer.model_copy(update={"max_minutes": minutes, "validation": "none", "patience": None})
    config = config.model_copy(update={"trainer": settings})
    with _open_trainer(config, paths, trainer, loaders=config.workers) as (instance, _device):
        if trainer != TRAINER:
            instance.num_iterations_per_epoch = settings.iterations
            instance.num_val_iterations_per_epoch = settings.val_iterations
            epoch_s = measured.total * settings.iterations + measured.parts["forward"] * settings.val_iterations
            instance.num_epochs = max(1, round(60 * minutes / epoch_s))
        instance.run_training()
    starts = instance.logger.get_value("epoch_start_timestamps", step=None)
    ends = instance.logger.get_value("epoch_end_timestamps", step=None)
    dice = instance.logger.get_value("mean_fg_dice", step=None)
    return [EpochDice(end - starts[0], float(value)) for end, value in zip(ends, dice, strict=True)]


@contextmanager
def _open_trainer(
    config: TrainingConfig, paths: NnunetPaths, name: str, *, loaders: int | None
) -> Iterator[tuple[Any, str]]:
    """Build a trainer as nnU-Net's own command does; yield the trainer and its device type."""
    export_environment(paths, loaders=loaders if loaders is not None else max(1, usable_cores() - 1))
    import matplotlib as mpl
    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    device = choose_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(usable_cores())
    configure_plans(config, paths)
    write_trainer_settings(config, paths.fold_folder(config.configuration, config.fold))
    torch.manual_seed(config.trainer.seed)
    np.random.seed(config.trainer.seed)  # noqa: NPY002  # nnU-Net's loaders use the global state
    # nnU-Net's logger changes the style of all later plots
    with redirect_stdout_to_log(), mpl.rc_context():
        trainer = get_trainer_from_args(
            paths.dataset, config.configuration, config.fold, name, paths.plans, device=device
        )
        yield trainer, device.type
