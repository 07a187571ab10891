"""Losses, EMA of weights, learning-rate schedule, early stopping."""

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


def adapt_loss(
    loss: nn.Module, class_weights: Sequence[float] | None, device: torch.device, *, float32: bool
) -> nn.Module:
    """Return nnU-Net's loss with class weights, for outputs coarser than their targets, in float32 if asked."""
    if class_weights:
        set_class_weights(loss, class_weights, device)
    loss = CoarserLoss(loss)
    return Float32Loss(loss) if float32 else loss


def set_class_weights(loss: nn.Module, weights: Sequence[float], device: torch.device) -> None:
    """Weigh the pixels of each true class in the cross entropy of nnU-Net's compound loss; its Dice stays as it is.

    Args:
        loss: As nnU-Net builds it, with or without deep supervision.
        weights: By class id; pixels of a class with weight 0 do not count.
        device: Where the loss is computed.
    """
    compound: Any = getattr(loss, "loss", loss)
    compound.ce.weight = torch.tensor(weights, dtype=torch.float32, device=device)


class Float32Loss(nn.Module):
    """A loss on float32 copies of the outputs: sums over pixels lose too much in bfloat16.

    Args:
        loss: Takes one output and target, or a list of each, one per resolution.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Compute the loss of one output, or of one per resolution."""
        full = [o.float() for o in output] if isinstance(output, list | tuple) else output.float()
        with torch.autocast("cpu", enabled=False):
            value: torch.Tensor = self.loss(full, target)
        return value


class CoarserLoss(nn.Module):
    """A loss for a network that answers at a part of the patch's resolution while it trains.

    Of each square of target pixels that an answer covers, one is compared, the same in every square and another at each
    call, so that over many calls none is favoured.

    Args:
        loss: Takes output and target of the same height and width, or a list of each, which is passed on.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """Compute the loss."""
        if isinstance(output, torch.Tensor) and output.shape[2:] != target.shape[2:]:
            step = target.shape[-1] // output.shape[-1]
            first, second = torch.randint(step, (2,)).tolist()
            target = target[:, :, first::step, second::step]
        value: torch.Tensor = self.loss(output, target)
        return value


_WARM_UP = 10


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
    """Update tensors of one device and dtype, in place; the `multi_avg_fn` of `AveragedModel`."""
    updates = int(previous_updates)
    if averages[0].is_floating_point():
        warmed_up = min(decay, (1 + updates) / (_WARM_UP + updates))
        get_ema_multi_avg_fn(warmed_up)(averages, values, updates)  # type: ignore[no-untyped-call]  # torch has no types here
        return
    # torch would average counters such as num_batches_tracked and truncate the result
    for average, value in zip(averages, values, strict=True):
        average.copy_(value)


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


class RateLimited:
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
