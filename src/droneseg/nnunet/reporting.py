"""Tells of a training's epochs: a line for people, a file for programs, and W&B if it is asked to."""

import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from droneseg.core.classes import FOREGROUND
from droneseg.core.files import write_text
from droneseg.core.images import Image, read_image
from droneseg.core.masks import read_mask
from droneseg.core.overlay import blend
from droneseg.nnunet.layout import RECORD_NAME
from droneseg.nnunet.profiling import Profiler
from droneseg.nnunet.tracking import Run, read_config

logger = logging.getLogger("droneseg.nnunet.trainer")

EPOCHS_NAME = "epochs.json"
"""Beside the checkpoints: the figures of all epochs so far, rewritten after each."""
_IMAGES = 4


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch gave.

    Attributes:
        epoch: Its number, from 1.
        train_loss: Mean over its iterations.
        validation_loss: The same on patches of the validation part.
        dice: nnU-Net's pseudo Dice: mean over the classes, on random patches of the validation part.
        smoothed_dice: Its running average, by which nnU-Net chooses the best checkpoint.
        class_dice: Pseudo Dice by class; None for a class that was on none of the patches.
        learning_rate: At its beginning.
        seconds: That it took.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    dice: float
    smoothed_dice: float
    class_dice: dict[str, float | None]
    learning_rate: float
    seconds: float


def figures_of(read: Callable[[str], list[Any]]) -> list[EpochFigures]:
    """Return the figures of all epochs from nnU-Net's logger, which reads a series by its name."""
    names = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "lrs")
    begins, ends = read("epoch_start_timestamps"), read("epoch_end_timestamps")
    return [
        EpochFigures(
            number,
            float(train),
            float(validation),
            float(dice),
            float(smoothed),
            {entry.name: _finite(value) for entry, value in zip(FOREGROUND, by_class, strict=True)},
            float(rate),
            round(end - begin, 3),
        )
        for number, (train, validation, dice, smoothed, by_class, rate, begin, end) in enumerate(
            zip(*(read(name) for name in names), begins, ends, strict=False), start=1
        )
    ]


class Reporter:
    """Tells of one training.

    Args:
        folder: Of the fold: checkpoints lie there.
        images: Folder of the raw photographs of training and validation.
    """

    def __init__(self, folder: Path, images: Path) -> None:
        self._folder = folder
        self._images = images
        self._epoch = 0
        self._run: Run | None = None
        self._profiler: Profiler | None = None

    def begin(self, network: Any, *, tracked: bool, profile: bool) -> None:
        """Open the run of W&B, if the training is tracked, and the profile of the network, if one is wanted."""
        self._profiler = Profiler(self._folder, network) if profile else None
        if tracked:
            name = f"{self._folder.parent.name.rsplit('__', 1)[-1]}, {self._folder.name.replace('_', ' ')}"
            self._run = Run(self._folder, name=name, config=read_config(self._folder / RECORD_NAME))

    def iteration(self) -> AbstractContextManager[None]:
        """Return what an iteration runs in."""
        return self._profiler.iteration() if self._profiler else nullcontext()

    def epoch_ended(self, figures: list[EpochFigures], epochs: int, share_done: float) -> None:
        """Tell of the last of these epochs.

        Args:
            figures: Of all epochs so far.
            epochs: How many there shall be.
            share_done: Of the training, 0 to 1.
        """
        last = figures[-1]
        self._epoch = last.epoch
        write_text(self._folder / EPOCHS_NAME, json.dumps([asdict(each) for each in figures], indent=1) + "\n")
        logger.info(
            "epoch %d/%d  loss %.3f  validation loss %.3f  Dice %.3f  %.1f s  %.1f min in all",
            last.epoch,
            epochs,
            last.train_loss,
            last.validation_loss,
            last.dice,
            last.seconds,
            sum(each.seconds for each in figures) / 60,
            extra={"share_done": share_done},
        )
        if self._run:
            self._run.log(last.epoch, _flat(last))

    def end(self, *, failed: bool) -> None:
        """Send overlays of the validation, if they are wanted, and close the run and the profile."""
        if self._profiler:
            self._profiler.close()
        if self._run is None:
            return
        if self._run.wants_images and not failed and (overlays := self._overlays()):
            self._run.log_images(self._epoch, overlays)
        self._run.finish(failed=failed)
        self._run = None

    def _overlays(self) -> dict[str, Image]:
        """Return a few photographs of the validation with what was predicted on them, by name."""
        drawn = {}
        for file in sorted(self._folder.glob("validation/*.png"))[:_IMAGES]:
            drawn[file.stem] = blend(read_image(self._images / f"{file.stem}_0000.png"), read_mask(file, "ids"))
        return drawn


def _flat(figures: EpochFigures) -> dict[str, float]:
    """Return the figures of an epoch under the names they have in W&B."""
    by_class = {f"dice/{name}": value for name, value in figures.class_dice.items() if value is not None}
    return {
        "loss/train": figures.train_loss,
        "loss/validation": figures.validation_loss,
        "dice/mean": figures.dice,
        "dice/smoothed": figures.smoothed_dice,
        "learning_rate": figures.learning_rate,
        "seconds_per_epoch": figures.seconds,
        **by_class,
    }


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
