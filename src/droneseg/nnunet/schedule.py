"""The learning rate of a training that ends by epochs or by time."""

from typing import Protocol

from torch.optim import Optimizer


class Progressing(Protocol):
    """A training that knows how far it is.

    Attributes:
        initial_lr: Learning rate at the start.
        optimizer: Whose learning rate is set.
    """

    initial_lr: float
    optimizer: Optimizer

    def share_done(self) -> float:
        """Return how much of the training is done, 0 to 1."""
        ...


class BudgetPolyLR:
    """nnU-Net's polynomial schedule over whichever runs out first, epochs or time."""

    EXPONENT = 0.9  # of nnU-Net's PolyLRScheduler

    def __init__(self, training: Progressing) -> None:
        self._training = training

    def step(self, _epoch: int) -> None:
        """Set the learning rate for the epoch that begins."""
        rate = self._training.initial_lr * (1 - min(self._training.share_done(), 0.999)) ** self.EXPONENT
        for group in self._training.optimizer.param_groups:
            group["lr"] = rate
