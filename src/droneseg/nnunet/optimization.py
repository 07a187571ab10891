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
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from droneseg.nnunet.networks import fine_class_counts, fine_outputs, sum_fine_classes
from droneseg.nnunet.trainer_settings import TrainerSettings

RATE_SHARE = "share"
"""Key of a parameter group: the group's learning rate relative to the schedule's, 1 by default."""

_WARM_UP_UPDATES = 10


def adapt_loss(
    loss: nn.Module, class_weights: Sequence[float] | None, device: torch.device, *, float32: bool
) -> nn.Module:
    """Add class weights, targets at lower resolution and optional float32 computation to nnU-Net's loss.

    Args:
        loss: Loss that nnU-Net built, with or without deep supervision, or the result of `with_pixel_targets`.
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
    compound: Any = loss
    while hasattr(compound, "loss"):
        compound = compound.loss
    compound.ce.weight = torch.tensor(weights, dtype=torch.float32, device=device)


def with_pixel_targets(
    loss: nn.Module, classes: int, device: torch.device, *, fine_classes: Sequence[int] = (), fine_weight: float = 0.0
) -> nn.Module:
    """Return nnU-Net's loss for targets with fine classes and pixel weights; see `PixelLoss`."""
    if hasattr(loss, "weight_factors"):  # deep supervision: the inner loss is that of one resolution
        inner: Any = loss.loss
        loss.loss = PixelLoss(inner, classes, device, fine_classes=fine_classes, fine_weight=fine_weight)
        return loss
    return PixelLoss(loss, classes, device, fine_classes=fine_classes, fine_weight=fine_weight)


class PixelLoss(nn.Module):
    """nnU-Net's Dice loss and cross entropy, with a weight for each pixel, and a cross entropy of the fine classes.

    Pixels with the ignore label or weight 0 have no loss. The cross entropy of the fine classes leaves out pixels whose
    fine class is unknown or belongs to another class than their label.

    Args:
        loss: nnU-Net's compound loss; its class weights also apply to the cross entropy of the fine classes.
        classes: Number of classes.
        device: Device on which the loss is computed.
        fine_classes: Class id of each fine class; empty if the network has none.
        fine_weight: Weight of the cross entropy of the fine classes.
    """

    def __init__(
        self,
        loss: nn.Module,
        classes: int,
        device: torch.device,
        *,
        fine_classes: Sequence[int] = (),
        fine_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.loss = loss
        self._fine_weight = fine_weight
        outputs = fine_outputs(fine_classes, classes)
        self._sizes = fine_class_counts(fine_classes, classes)
        # by fine class id; 0 and ids beyond the list are unknown
        self._output_of_fine = torch.zeros(256, dtype=torch.long, device=device)
        self._class_of_fine = torch.full((256,), -1, dtype=torch.long, device=device)
        for index, (class_id, fine_id) in enumerate(outputs):
            if fine_id:
                self._output_of_fine[fine_id], self._class_of_fine[fine_id] = index, class_id

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            output: Logits of the classes, shape (N, C, h, w), or of the fine classes, ordered by class.
            target: Class id, shape (N, 1, h, w); or class id, fine class id and weight in hundredths, shape
                (N, 3, h, w).
        """
        compound: Any = self.loss
        has_fine = output.shape[1] == sum(self._sizes) > len(self._sizes)
        logits = sum_fine_classes(output, self._sizes) if has_fine else output
        labels, weights = self._labels_and_weights(target)
        masked = target.shape[1] > 2 or compound.ignore_label is not None
        dice = compound.dc(logits, labels[:, None], loss_mask=(weights > 0)[:, None] if masked else None)
        if compound.ce.weight is not None:
            weights = weights * compound.ce.weight[labels]
        total = compound.weight_dice * dice + compound.weight_ce * _weighted_cross_entropy(logits, labels, weights)
        if has_fine and self._fine_weight and target.shape[1] > 1:
            fine = target[:, 1].long()
            known = self._class_of_fine[fine] == labels
            fine_entropy = _weighted_cross_entropy(output, self._output_of_fine[fine], weights * known)
            total = total + self._fine_weight * fine_entropy
        result: Tensor = total
        return result

    def _labels_and_weights(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return class ids, shape (N, h, w), and pixel weights; ignored pixels have class 0 and weight 0."""
        labels = target[:, 0].long()
        weights = target[:, 2] / 100 if target.shape[1] > 2 else torch.ones_like(labels, dtype=torch.float32)
        ignore: int | None = self.loss.ignore_label  # type: ignore[assignment]  # nnU-Net's loss has no types
        if ignore is None:
            return labels, weights
        valid = labels != ignore
        return torch.where(valid, labels, 0), weights * valid


def _weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the cross entropy; 0 if all weights are 0."""
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    return (entropy * weights).sum() / weights.sum().clamp_min(1e-8)


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


class DistillationLoss(nn.Module):
    """Loss of the labels plus the cross entropy with the probabilities of a teacher (Hinton et al. 2015).

    Args:
        loss: Loss of an output and a target.
        sizes: Number of outputs of each class; above 1 for a class with fine classes.
        weight: Weight of the teacher's probabilities.

    Attributes:
        probabilities: Class probabilities that the teacher predicts for the next batch, shape (N, C, H, W). If None,
            the loss is only that of the labels.
    """

    def __init__(self, loss: nn.Module, sizes: Sequence[int], weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.probabilities: Tensor | None = None
        self._sizes = list(sizes)
        self._weight = weight

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            output: Logits, shape (N, outputs, h, w); their resolution may be lower than that of the teacher.
            target: Target of the loss of the labels.
        """
        value: Tensor = self.loss(output, target)
        if self.probabilities is None:
            return value
        logits = output.float()
        if logits.shape[1] > len(self._sizes):
            logits = sum_fine_classes(logits, self._sizes)
        expected = functional.adaptive_avg_pool2d(self.probabilities.float(), (logits.shape[2], logits.shape[3]))
        with torch.autocast("cpu", enabled=False):
            return value + self._weight * functional.cross_entropy(logits, expected)


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


_WORTH_AN_EPOCH = 0.25  # fraction of the longest epoch; with less time left, no further epoch starts
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
        """Note the start of an epoch.

        Args:
            begin: Time of the start, by the clock `now`, in seconds.
        """
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
        """Number of finished training steps of the current epoch."""
        return self._steps

    def step_s(self) -> float | None:
        """Return the median duration of recent steps in seconds; None before the second step."""
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
        """Return the training time at which the last step must end, in seconds; None without a time budget."""
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
        """Return the expected time until the end of the training in seconds; None before the second step.

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
