"""Progress, stopping rules and learning-rate schedule of a training."""

from typing import Any

import pytest
import torch
from torch import nn

from droneseg.nnunet.optimization import BudgetPolyLR, Progress, RateLimited, parameter_groups
from droneseg.nnunet.trainer_settings import TrainerSettings


def progress(*, lasted: list[float], dice: list[float] | None = None, **settings: Any) -> Progress:
    starts = [1000.0 * number for number in range(len(lasted))]
    series = {
        "epoch_start_timestamps": starts,
        "epoch_end_timestamps": [start + seconds for start, seconds in zip(starts, lasted, strict=True)],
        "ema_fg_dice": dice or [],
    }
    return Progress(TrainerSettings(**settings), series.__getitem__)


def test_share_done_is_the_larger_of_epochs_and_time() -> None:
    assert progress(lasted=[60, 60], epochs=10).share_done(2) == pytest.approx(0.2)
    assert progress(lasted=[60, 60], epochs=10, max_minutes=4).share_done(2) == pytest.approx(0.5)
    assert progress(lasted=[60] * 9, epochs=10, max_minutes=5).share_done(9) == 1


def test_epoch_runs_if_its_middle_is_within_the_budget() -> None:
    assert progress(lasted=[], max_minutes=1).reason_to_stop() is None
    assert progress(lasted=[40], max_minutes=1).reason_to_stop() is None
    assert "budget of 1 minutes" in str(progress(lasted=[41], max_minutes=1).reason_to_stop())


def test_patience_counts_epochs_since_the_best_dice() -> None:
    assert progress(lasted=[1] * 4, dice=[0.1, 0.4, 0.3, 0.2], patience=3).reason_to_stop() is None
    assert "3 epochs" in str(progress(lasted=[1] * 5, dice=[0.1, 0.4, 0.3, 0.2, 0.4], patience=3).reason_to_stop())


def test_encoder_rate_scales_the_learning_rate_of_the_encoder() -> None:
    network = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.25), lr=1.0)
    BudgetPolyLR(optimizer, 0.01, progress(lasted=[60], epochs=10)).step(5)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    # (1 - 0.5)^0.9, nnU-Net's polynomial
    assert rates[id(network["decoder"].weight)] == pytest.approx(0.01 * 0.5**0.9)
    assert rates[id(network["encoder"].weight)] == pytest.approx(0.0025 * 0.5**0.9)
    assert len(rates) == 4


def test_rate_limited_action_runs_once_per_interval_or_on_demand() -> None:
    done: list[str] = []
    action = RateLimited(done.append, interval_s=3600)
    action("a")
    action("b")
    action.call_now("c")
    assert done == ["a", "c"]
