"""The loss sees targets as coarse as the answers, and no pixel is favoured."""

import torch
from torch import nn

from droneseg.nnunet.losses import CoarserLoss


class Recorded(nn.Module):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[torch.Tensor] = []

    def forward(self, output: object, target: torch.Tensor) -> torch.Tensor:
        self.targets.append(target)
        return torch.zeros(())


def test_one_pixel_of_each_square_is_compared_and_every_one_has_its_turn() -> None:
    target = torch.arange(16).reshape(1, 1, 4, 4)
    recorded = Recorded()
    loss = CoarserLoss(recorded)
    torch.manual_seed(0)
    for _ in range(60):
        loss(torch.zeros(1, 3, 2, 2), target)
    possible = {
        tuple(target[0, 0, row::2, column::2].flatten().tolist()) for row in (0, 1) for column in (0, 1)
    }  # fmt: skip
    assert {tuple(found.flatten().tolist()) for found in recorded.targets} == possible


def test_targets_that_fit_and_lists_are_passed_on() -> None:
    recorded = Recorded()
    target = torch.zeros(1, 1, 4, 4)
    CoarserLoss(recorded)(torch.zeros(1, 3, 4, 4), target)
    several = [target]
    CoarserLoss(recorded)([torch.zeros(1, 3, 2, 2)], several)
    assert recorded.targets[0] is target
    assert recorded.targets[1] is several
