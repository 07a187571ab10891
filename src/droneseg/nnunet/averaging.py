"""An average of a network's weights over the last iterations, which predicts better than the weights of any one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_WARM_UP = 10


class AveragedWeights:
    """An exponential moving average of weights and statistics (Polyak and Juditsky 1992).

    At first it follows faster: after n iterations it keeps at most (1 + n) / (10 + n), so that it does not remember how
    the network began.

    Args:
        network: Whose weights are averaged.
        keep: Share that the average keeps at each iteration.
    """

    def __init__(self, network: nn.Module, keep: float) -> None:
        self._network = network
        self._keep = keep
        self.restart()

    def restart(self) -> None:
        """Begin with the weights the network has now."""
        self._count = 0
        self._mean = self._weights()

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self._count += 1
        keep = min(self._keep, (1 + self._count) / (_WARM_UP + self._count))
        floats: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for name, value in self._network.state_dict().items():
            (floats if value.is_floating_point() else others).append((self._mean[name], value))
        torch._foreach_lerp_([mean for mean, _ in floats], [value for _, value in floats], 1 - keep)
        for mean, value in others:
            mean.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network its averaged weights while the block runs."""
        now = self._weights()
        self._load(self._mean)
        try:
            yield
        finally:
            self._load(now)

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._network.state_dict().items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, value in self._network.state_dict().items():
            value.copy_(weights[name])
