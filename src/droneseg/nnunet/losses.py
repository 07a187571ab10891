"""Losses beyond nnU-Net's own."""

from typing import Any

import torch
from torch import nn


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
