"""Exponential moving average of the weights."""

import pytest
import torch
from torch import nn

from droneseg.nnunet.optimization import ExponentialMovingAverage


def test_average_follows_the_decay_and_weights_are_restored() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(network[0].weight, 0.0)
    average = ExponentialMovingAverage(network, decay=0.2)
    expected = 0.0
    for count in range(1, 60):
        nn.init.constant_(network[0].weight, float(count))
        average.update()
        decay = min(0.2, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * count
    with average.applied():
        assert network[0].weight.item() == pytest.approx(expected, rel=1e-5)
    assert network[0].weight.item() == 59


def test_warm_up_forgets_the_initial_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1000.0)
    average = ExponentialMovingAverage(network, decay=0.999)
    nn.init.constant_(network.weight, 0.0)
    for _ in range(40):
        average.update()
    with average.applied():
        assert abs(network.weight.item()) < 1  # without warm-up it would still be 961


def test_weights_are_restored_after_an_error_and_counters_are_copied() -> None:
    network = nn.BatchNorm1d(1)
    average = ExponentialMovingAverage(network, decay=0.9)
    network(torch.rand(4, 1))
    average.update()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), average.applied():
        assert network.num_batches_tracked == 1
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_restart_resets_the_average_to_the_current_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = ExponentialMovingAverage(network, decay=0.9)
    nn.init.constant_(network.weight, 7.0)
    average.restart()
    with average.applied():
        assert network.weight.item() == 7
