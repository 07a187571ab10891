"""Losses beyond nnU-Net's own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def adapt_loss(
    loss: nn.Module, class_weights: Sequence[float] | None, device: torch.device, *, float32: bool
) -> nn.Module:
    """Return nnU-Net's loss with class weights, for outputs coarser than their targets, in float32 if asked."""
    if class_weights:
        weigh_classes(loss, class_weights, device)
    loss = CoarserLoss(loss)
    return Float32Loss(loss) if float32 else loss


def weigh_classes(loss: nn.Module, weights: Sequence[float], device: torch.device) -> None:
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
