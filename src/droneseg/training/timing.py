"""Time per iteration and Dice over time."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from droneseg.core.classes import DATASET_NAME
from droneseg.core.system import usable_cores
from droneseg.nnunet.paths import PLANS, TRAINER, NnunetPaths, export_environment
from droneseg.nnunet.preprocess import redirect_stdout_to_log
from droneseg.training.config import TrainingConfig
from droneseg.training.run import configure_plans, write_trainer_settings

STOCK_TRAINER = "nnUNetTrainer"
PARTS = ("loading", "augmentation", "forward", "backward", "optimiser")
_SMOOTHED_EPOCHS = 3
_WARM_UP = 3


@dataclass(frozen=True)
class IterationTimes:
    """Seconds per iteration, with loading in the training process so that each part is seen by itself.

    Attributes:
        total: Median over the iterations.
        parts: Median of each of `PARTS`; forward includes the loss, backward the clipping of gradients.
    """

    total: float
    parts: dict[str, float]


@dataclass(frozen=True)
class EpochDice:
    """Where a training stood at the end of an epoch.

    Attributes:
        seconds: Since the training began.
        dice: nnU-Net's pseudo Dice: mean over the classes, on random patches of the validation part.
    """

    seconds: float
    dice: float


def time_to_reach(dice: float, epochs: Sequence[EpochDice]) -> float | None:
    """Return the seconds until a training stood at a Dice, smoothed as in `smoothed_end`; None if it never did."""
    for last in range(min(_SMOOTHED_EPOCHS, len(epochs)), len(epochs) + 1):
        if smoothed_end(epochs[:last]) >= dice:
            return epochs[last - 1].seconds
    return None


def smoothed_end(epochs: Sequence[EpochDice]) -> float:
    """Return the mean Dice of the last few epochs: that of one swings, as its patches are drawn by chance."""
    return statistics.fmean(epoch.dice for epoch in epochs[-_SMOOTHED_EPOCHS:])


class _PartClock:
    """Adds up the seconds of each part of one iteration; hooks of torch tell it where one ends."""

    def __init__(self, trainer: Any, device: str) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device = device
        self._begin = 0.0
        loader = trainer.dataloader_train.data_loader
        augment = loader.transforms

        def timed_augment(**sample: Any) -> Any:
            begin = time.perf_counter()
            made = augment(**sample)
            self.seconds["augmentation"] += time.perf_counter() - begin
            return made

        loader.transforms = timed_augment
        trainer.network.register_forward_pre_hook(lambda *_: self._start())
        trainer.loss.register_forward_hook(lambda *_: self._end("forward"))
        trainer.optimizer.register_step_pre_hook(lambda *_: self._end("backward"))
        trainer.optimizer.register_step_post_hook(lambda *_: self._end("optimiser"))

    def now(self) -> float:
        """Return the time, when all that was begun on the device is done."""
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
    """Train for some iterations and measure each part.

    Args:
        config: Plan, data and settings; of nnU-Net's own trainer the plan, the fold and the seed only.
        paths: nnU-Net's folders; the dataset is preprocessed.
        trainer: Class name of nnU-Net's own or of ours.
        count: Iterations measured, after some to warm up.
    """
    with _trainer(config, paths, trainer, loaders=0) as (made, device):
        made.on_train_start()
        made.on_train_epoch_start()
        clock = _PartClock(made, device)
        rows: list[dict[str, float]] = []
        for number in range(_WARM_UP + count):
            clock.seconds = dict.fromkeys(PARTS, 0.0)
            begin = clock.now()
            batch = next(made.dataloader_train)
            loaded = clock.now()
            clock.seconds["loading"] = loaded - begin - clock.seconds["augmentation"]
            made.train_step(batch)
            if number >= _WARM_UP:
                rows.append(clock.seconds | {"total": clock.now() - begin})
    return IterationTimes(
        statistics.median(row["total"] for row in rows),
        {part: statistics.median(row[part] for row in rows) for part in PARTS},
    )


def dice_over_time(
    config: TrainingConfig, paths: NnunetPaths, trainer: str, *, minutes: float, measured: IterationTimes
) -> list[EpochDice]:
    """Train for some minutes and report the Dice after each epoch.

    Our trainer is given the minutes; nnU-Net's own has no such budget, so it is given as many epochs as fit into them,
    over which its learning rate falls.

    Args:
        config: See `time_iterations`; iterations and validation iterations per epoch are the same for both.
        paths: nnU-Net's folders; the dataset is preprocessed.
        trainer: Class name of nnU-Net's own or of ours.
        minutes: About how long.
        measured: Of this trainer, to tell how many epochs fit.
    """
    changed = config.trainer.model_copy(update={"max_minutes": minutes, "validation": "none", "patience": None})
    config = config.model_copy(update={"trainer": changed})
    with _trainer(config, paths, trainer, loaders=config.workers) as (made, _device):
        if trainer != TRAINER:
            made.num_iterations_per_epoch = changed.iterations
            made.num_val_iterations_per_epoch = changed.val_iterations
            epoch_s = measured.total * changed.iterations + measured.parts["forward"] * changed.val_iterations
            made.num_epochs = max(1, round(60 * minutes / epoch_s))
        made.run_training()
    starts = made.logger.get_value("epoch_start_timestamps", step=None)
    ends = made.logger.get_value("epoch_end_timestamps", step=None)
    dice = made.logger.get_value("mean_fg_dice", step=None)
    return [EpochDice(end - starts[0], float(value)) for end, value in zip(ends, dice, strict=True)]


@contextmanager
def _trainer(
    config: TrainingConfig, paths: NnunetPaths, name: str, *, loaders: int | None
) -> Iterator[tuple[Any, str]]:
    """Build a trainer of nnU-Net as its own command would; yields it and the kind of device."""
    export_environment(paths, loaders=loaders if loaders is not None else max(1, usable_cores() - 1))
    import matplotlib as mpl
    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    from droneseg.nnunet.paths import choose_device

    device = choose_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(usable_cores())
    configure_plans(config, paths)
    write_trainer_settings(config, paths.results)
    torch.manual_seed(config.trainer.seed)
    np.random.seed(config.trainer.seed)  # noqa: NPY002  # nnU-Net's loaders use the global state
    # nnU-Net's logger changes the style of every plot that follows
    with redirect_stdout_to_log(), mpl.rc_context():
        made = get_trainer_from_args(DATASET_NAME, config.configuration, config.fold, name, PLANS, device=device)
        yield made, device.type
