"""Losses for outputs at lower resolution, and class weights."""

import pytest
import torch
from torch import nn

from droneseg.nnunet.optimization import CoarserLoss, set_class_weights


class Recorded(nn.Module):
    """Loss that records its targets."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[torch.Tensor] = []

    def forward(self, output: object, target: torch.Tensor) -> torch.Tensor:
        self.targets.append(target)
        return torch.zeros(())


def test_coarser_loss_samples_each_position_of_the_square() -> None:
    target = torch.arange(16).reshape(1, 1, 4, 4)
    recorded = Recorded()
    loss = CoarserLoss(recorded)
    torch.manual_seed(0)
    for _ in range(60):
        loss(torch.zeros(1, 3, 2, 2), target)
    possible = {tuple(target[0, 0, row::2, column::2].flatten().tolist()) for row in (0, 1) for column in (0, 1)}
    assert {tuple(sampled.flatten().tolist()) for sampled in recorded.targets} == possible


def test_coarser_loss_passes_matching_targets_and_lists_on() -> None:
    recorded = Recorded()
    target = torch.zeros(1, 1, 4, 4)
    CoarserLoss(recorded)(torch.zeros(1, 3, 4, 4), target)
    several = [target]
    CoarserLoss(recorded)([torch.zeros(1, 3, 2, 2)], several)
    assert recorded.targets[0] is target
    assert recorded.targets[1] is several


@pytest.mark.parametrize("supervised", [False, True])
def test_class_weights_apply_to_the_true_class(supervised: bool) -> None:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

    compound = DC_and_CE_loss({}, {}, weight_dice=0)
    loss = DeepSupervisionWrapper(compound, [1.0]) if supervised else compound
    set_class_weights(loss, [0.0, 3.0, 1.0], torch.device("cpu"))
    logits = torch.randn(1, 3, 1, 3)
    target = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    value = loss([logits], [target]) if supervised else loss(logits, target)
    cross_entropy = -logits.log_softmax(1)[0, :, 0]
    expected = (3 * cross_entropy[1, 1] + cross_entropy[2, 2]) / 4
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
