"""Losses, weight averaging, learning-rate schedule and stopping rules of the trainer."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from droneseg.nnunet.trainer_settings import TrainerSettings

RATE_SHARE = "share"
"""Key of a parameter group: the group's learning rate relative to the schedule's, 1 by default."""

_WARM_UP_UPDATES = 10


def adapt_loss(
    loss: nn.Module, class_weights: Sequence[float] | None, device: torch.device, *, float32: bool
) -> nn.Module:
    """Add class weights, targets at lower resolution and optional float32 computation to nnU-Net's loss.

    Args:
        loss: Loss that nnU-Net built, with or without deep supervision.
        class_weights: Cross-entropy weights by class id; None for equal weights.
        device: Device on which the loss is computed.
        float32: Whether to compute the loss in float32 under autocast.
    """
    if class_weights:
        set_class_weights(loss, class_weights, device)
    loss = CoarserLoss(loss)
    return Float32Loss(loss) if float32 else loss


def set_class_weights(loss: nn.Module, weights: Sequence[float], device: torch.device) -> None:
    """Set the class weights of the cross entropy in nnU-Net's compound loss; the Dice loss does not change.

    Args:
        loss: Loss that nnU-Net built, with or without deep supervision.
        weights: Weights by class id; pixels whose true class has weight 0 are ignored.
        device: Device on which the loss is computed.
    """
    compound: Any = getattr(loss, "loss", loss)
    compound.ce.weight = torch.tensor(weights, dtype=torch.float32, device=device)


class Float32Loss(nn.Module):
    """Loss computed on float32 copies of the outputs, because sums over pixels are too inaccurate in bfloat16.

    Args:
        loss: Loss of one output and target, or of lists with one of each per resolution.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Compute the loss of one output, or of one output per resolution."""
        full = [o.float() for o in output] if isinstance(output, list | tuple) else output.float()
        with torch.autocast("cpu", enabled=False):
            value: torch.Tensor = self.loss(full, target)
        return value


class CoarserLoss(nn.Module):
    """Loss for networks whose output has a lower resolution than the target during training.

    Each output pixel covers a square of target pixels. The loss compares it with one of them, at a position that is the
    same in all squares and drawn at random for each call.

    Args:
        loss: Loss of an output and a target of equal height and width. Lists of both are passed to it unchanged.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Compute the loss of outputs, shape (N, C, h, w), and targets, shape (N, 1, H, W)."""
        if isinstance(output, torch.Tensor) and output.shape[2:] != target.shape[2:]:
            step = target.shape[-1] // output.shape[-1]
            first, second = torch.randint(step, (2,)).tolist()
            target = target[:, :, first::step, second::step]
        value: torch.Tensor = self.loss(output, target)
        return value


class ExponentialMovingAverage:
    """Exponential moving average of a network's parameters and buffers (Polyak and Juditsky 1992).

    The decay warms up: after n updates it is at most (1 + n) / (10 + n), so that the average soon forgets the initial
    weights.

    Args:
        network: Network whose weights are averaged.
        decay: Fraction of the average that is kept at each update.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._average = AveragedModel(network, multi_avg_fn=partial(_average_with_warm_up, decay), use_buffers=True)
        self.restart()

    def restart(self) -> None:
        """Reset the average to the network's current weights."""
        self._average.n_averaged.zero_()
        self.update()  # the first update copies

    def update(self) -> None:
        """Include the network's current weights in the average."""
        self._average.update_parameters(self._network)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the network's weights by their average inside a `with` block."""
        weights = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._network.load_state_dict(self._average.module.state_dict())
        try:
            yield
        finally:
            self._network.load_state_dict(weights)


def _average_with_warm_up(
    decay: float, averages: Sequence[Tensor], values: Sequence[Tensor], previous_updates: Tensor | int
) -> None:
    """Update averages in place, with a warm-up of the decay; the `multi_avg_fn` of `AveragedModel`."""
    updates = int(previous_updates)
    if averages[0].is_floating_point():
        warmed_up = min(decay, (1 + updates) / (_WARM_UP_UPDATES + updates))
        get_ema_multi_avg_fn(warmed_up)(averages, values, updates)  # type: ignore[no-untyped-call]  # torch has no types here
        return
    # torch would average counters such as num_batches_tracked and truncate the results
    for average, value in zip(averages, values, strict=True):
        average.copy_(value)


_WORTH_AN_EPOCH = 0.25  # of the longest epoch; less time is not used
_VALIDATION_STEP = 0.5  # time of a validation step relative to a training step, until it is measured
_RECENT_STEPS = 20


class Progress:
    """Progress of a training in steps and time, and its stopping rules.

    With a time budget, the last epoch is shortened, so that its validation ends within the budget.

    Args:
        settings: Settings with epochs, iterations, time budget and patience.
        read: Function that returns a series of nnU-Net's logger by name, with one value per epoch.
        now: Clock in seconds, the same as that of nnU-Net's logger.
    """

    def __init__(
        self, settings: TrainerSettings, read: Callable[[str], list[Any]], now: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._read = read
        self._now = now
        self._begin: float | None = None  # of the current epoch
        self._step_end = math.nan
        self._steps = 0
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._tail_s: float | None = None  # validation and saving at the end of the previous epoch

    def epoch_times_s(self) -> list[float]:
        """Return the duration of each finished epoch in seconds."""
        starts, ends = (self._read(f"epoch_{edge}_timestamps") for edge in ("start", "end"))
        return [end - start for start, end in zip(starts, ends, strict=False)]

    def elapsed_s(self) -> float:
        """Return the total training time in seconds, including earlier sessions and the current epoch."""
        current = self._now() - self._begin if self._begin is not None else 0.0
        return float(sum(self.epoch_times_s())) + current

    def epoch_started(self, begin: float) -> None:
        """Note the start of an epoch, by the clock."""
        self._begin, self._steps = begin, 0
        self._step_end = math.nan

    def step_ended(self) -> None:
        """Note the end of a training step."""
        now = self._now()
        if not math.isnan(self._step_end):  # the first step of an epoch may wait for the data
            self._recent.append(now - self._step_end)
        self._step_end = now
        self._steps += 1

    def epoch_ended(self) -> None:
        """Note the end of an epoch, after its validation and its checkpoint."""
        self._tail_s = self._now() - self._step_end
        self._begin, self._steps = None, 0

    @property
    def steps(self) -> int:
        """Training steps of the current epoch."""
        return self._steps

    def step_s(self) -> float | None:
        """Return the median duration of recent steps in seconds, or None before two steps."""
        return statistics.median(self._recent) if self._recent else None

    def tail_s(self) -> float:
        """Return the expected duration of validation and saving at the end of an epoch in seconds."""
        if self._tail_s is not None:
            return self._tail_s
        return self._settings.val_iterations * _VALIDATION_STEP * (self.step_s() or 0.0)

    def share_done(self, epoch: int) -> float:
        """Return the completed fraction of the training, 0 to 1.

        With a time budget, this is the larger of the fractions of steps and of time.

        Args:
            epoch: Number of finished epochs.
        """
        by_steps = (epoch + self._steps / self._settings.iterations) / self._settings.epochs
        end = self._last_step_s()
        return min(1.0, max(by_steps, self.elapsed_s() / max(end, 1e-9) if end is not None else 0.0))

    def _last_step_s(self) -> float | None:
        """Return the training time at which the last step ends, or None without a time budget."""
        if not self._settings.max_minutes:
            return None
        budget = 60 * self._settings.max_minutes
        times = self.epoch_times_s()
        if times and self._begin is not None:
            after = sum(times) + max(times)
            if after < budget < after + _WORTH_AN_EPOCH * max(times):
                budget = after  # no further epoch follows
        return budget - self.tail_s()

    def epoch_is_over(self) -> bool:
        """Return whether the time budget ends the current epoch after this step."""
        end = self._last_step_s()
        return end is not None and self._steps > 0 and self.elapsed_s() + 0.5 * (self.step_s() or 0.0) >= end

    def remaining_s(self, epoch: int) -> float | None:
        """Return the expected time until the end of the training in seconds, or None before two steps.

        Args:
            epoch: Number of finished epochs.
        """
        step_s = self.step_s()
        if step_s is None:
            return None
        epochs = self._settings.epochs - epoch
        planned = (epochs * self._settings.iterations - self._steps) * step_s + epochs * self.tail_s()
        if not self._settings.max_minutes:
            return planned
        return max(0.0, min(planned, 60 * self._settings.max_minutes - self.elapsed_s()))

    def reason_to_stop(self) -> str | None:
        """Return the reason to end the training before another epoch, or None to continue."""
        times = self.epoch_times_s()
        budget = 60 * self._settings.max_minutes if self._settings.max_minutes else math.inf
        if times and budget - sum(times) < _WORTH_AN_EPOCH * max(times):
            return f"time budget of {self._settings.max_minutes:g} minutes used up"
        smoothed = self._read("ema_fg_dice")
        if self._settings.patience and smoothed:
            stale_epochs = len(smoothed) - 1 - int(np.argmax(smoothed))
            if stale_epochs >= self._settings.patience:
                return f"no better smoothed Dice for {stale_epochs} epochs"
        return None


class RateLimited:
    """Callable that runs an action on a folder at most once per interval.

    It limits plotting, which takes seconds, as long as a short epoch.

    Args:
        action: Function to call with the folder.
        interval_s: Minimum time between two calls, in seconds.
    """

    def __init__(self, action: Callable[[str], None], interval_s: float) -> None:
        self.call_now = action
        self._interval_s = interval_s
        self._last_s = -math.inf

    def __call__(self, folder: str) -> None:
        """Call the action if the interval has passed since its last call."""
        if time.monotonic() - self._last_s > self._interval_s:
            self.call_now(folder)
            self._last_s = time.monotonic()


class BudgetPolyLR:
    """nnU-Net's polynomial learning-rate schedule over the steps or the time budget, whichever ends first."""

    EXPONENT = 0.9  # as in nnU-Net's PolyLRScheduler

    def __init__(self, optimizer: Optimizer, initial_rate: float, progress: Progress) -> None:
        self._optimizer = optimizer
        self._initial_rate = initial_rate
        self._progress = progress

    def step(self, epoch: int) -> None:
        """Set the learning rate for the start of an epoch."""
        self.set_share(self._progress.share_done(epoch))

    def set_share(self, share_done: float) -> None:
        """Set the learning rate for a completed fraction of the training, 0 to 1."""
        rate = self._initial_rate * (1 - min(share_done, 0.999)) ** self.EXPONENT
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get(RATE_SHARE, 1.0)


def parameter_groups(network: nn.Module, encoder_rate: float) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimiser; a pretrained encoder gets its own learning rate.

    Args:
        network: Network; the names of encoder parameters start with `encoder.`.
        encoder_rate: Learning rate of the encoder relative to the rest.
    """
    encoder = [value for name, value in network.named_parameters() if name.startswith("encoder.")]
    rest = [value for name, value in network.named_parameters() if not name.startswith("encoder.")]
    if encoder_rate == 1:
        return [{"params": [*encoder, *rest]}]
    return [{"params": encoder, RATE_SHARE: encoder_rate}, {"params": rest}]
