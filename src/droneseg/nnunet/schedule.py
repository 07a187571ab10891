"""How far a training is, when it ends, and what its learning rate is until then."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from droneseg.nnunet.trainer_settings import TrainerSettings

RATE_SHARE = "share"
"""Key of an optimiser's group: its learning rate as a share of the schedule's; 1 if it is missing."""


class Progress:
    """What nnU-Net's logger and the settings say of how far a training is.

    Args:
        settings: Epochs, minutes and patience.
        read: Reads a series of the logger by its name, over all epochs so far.
    """

    def __init__(self, settings: TrainerSettings, read: Callable[[str], list[Any]]) -> None:
        self._settings = settings
        self._read = read

    def epoch_times_s(self) -> list[float]:
        """Return the seconds each epoch took."""
        starts, ends = (self._read(f"epoch_{edge}_timestamps") for edge in ("start", "end"))
        return [end - start for start, end in zip(starts, ends, strict=False)]

    def elapsed_s(self) -> float:
        """Return the seconds trained so far, over all sessions: the epoch times are in the checkpoint."""
        return float(sum(self.epoch_times_s()))

    def share_done(self, epoch: int) -> float:
        """Return how much of the training is done when an epoch begins, 0 to 1: by epochs or time, the further one."""
        by_time = self.elapsed_s() / (60 * self._settings.max_minutes) if self._settings.max_minutes else 0.0
        return min(1.0, max(epoch / self._settings.epochs, by_time))

    def reason_to_stop(self) -> str | None:
        """Say why the training shall end now, if it shall."""
        times = self.epoch_times_s()
        # the epoch whose middle still lies within the budget runs
        middle = sum(times) + 0.5 * sum(times) / len(times) if times else 0.0
        if self._settings.max_minutes and middle > 60 * self._settings.max_minutes:
            return f"time budget of {self._settings.max_minutes:g} minutes spent"
        smoothed = self._read("ema_fg_dice")
        if self._settings.patience and smoothed:
            waited = len(smoothed) - 1 - int(np.argmax(smoothed))
            if waited >= self._settings.patience:
                return f"no better smoothed Dice for {waited} epochs"
        return None


class NowAndThen:
    """Does something on a folder at most once in an interval: a plot takes seconds, as long as a short epoch."""

    def __init__(self, action: Callable[[str], None], interval_s: float) -> None:
        self.now = action
        self._interval_s = interval_s
        self._last_s = -math.inf

    def __call__(self, folder: str) -> None:
        """Do it if the interval is over."""
        if time.monotonic() - self._last_s > self._interval_s:
            self.now(folder)
            self._last_s = time.monotonic()


class BudgetPolyLR:
    """nnU-Net's polynomial schedule over whichever runs out first, epochs or time."""

    EXPONENT = 0.9  # of nnU-Net's PolyLRScheduler

    def __init__(self, optimizer: Optimizer, initial_rate: float, progress: Progress) -> None:
        self._optimizer = optimizer
        self._initial_rate = initial_rate
        self._progress = progress

    def step(self, epoch: int) -> None:
        """Set the learning rate for the epoch that begins."""
        rate = self._initial_rate * (1 - min(self._progress.share_done(epoch), 0.999)) ** self.EXPONENT
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get(RATE_SHARE, 1.0)


def parameter_groups(network: nn.Module, encoder_rate: float) -> list[dict[str, Any]]:
    """Return the parameters for an optimiser: those of a pretrained encoder learn at a share of the rate."""
    encoder = [value for name, value in network.named_parameters() if name.startswith("encoder.")]
    rest = [value for name, value in network.named_parameters() if not name.startswith("encoder.")]
    if encoder_rate == 1:
        return [{"params": [*encoder, *rest]}]
    return [{"params": encoder, RATE_SHARE: encoder_rate}, {"params": rest}]
