"""Losses, weight averaging, learning-rate schedule and stopping rules of the trainer."""

import math
import time
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


class Progress:
    """Progress of a training and its stopping rules.

    Args:
        settings: Settings with epochs, time budget and patience.
        read: Function that returns a series of nnU-Net's logger by name, with one value per epoch.
    """

    def __init__(self, settings: TrainerSettings, read: Callable[[str], list[Any]]) -> None:
        self._settings = settings
        self._read = read

    def epoch_times_s(self) -> list[float]:
        """Return the duration of each epoch in seconds."""
        starts, ends = (self._read(f"epoch_{edge}_timestamps") for edge in ("start", "end"))
        return [end - start for start, end in zip(starts, ends, strict=False)]

    def elapsed_s(self) -> float:
        """Return the total training time in seconds, including earlier sessions."""
        return float(sum(self.epoch_times_s()))

    def share_done(self, epoch: int) -> float:
        """Return the completed fraction of the training at the start of an epoch, 0 to 1.

        With a time budget, this is the larger of the fractions of epochs and of time.
        """
        by_time = self.elapsed_s() / (60 * self._settings.max_minutes) if self._settings.max_minutes else 0.0
        return min(1.0, max(epoch / self._settings.epochs, by_time))

    def reason_to_stop(self) -> str | None:
        """Return the reason to end the training now, or None to continue."""
        times = self.epoch_times_s()
        # an epoch runs if its middle is within the budget
        middle = sum(times) + 0.5 * sum(times) / len(times) if times else 0.0
        if self._settings.max_minutes and middle > 60 * self._settings.max_minutes:
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
    """nnU-Net's polynomial learning-rate schedule over the epochs or the time budget, whichever ends first."""

    EXPONENT = 0.9  # as in nnU-Net's PolyLRScheduler

    def __init__(self, optimizer: Optimizer, initial_rate: float, progress: Progress) -> None:
        self._optimizer = optimizer
        self._initial_rate = initial_rate
        self._progress = progress

    def step(self, epoch: int) -> None:
        """Set the learning rate for an epoch."""
        rate = self._initial_rate * (1 - min(self._progress.share_done(epoch), 0.999)) ** self.EXPONENT
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
