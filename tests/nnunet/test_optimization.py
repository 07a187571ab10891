"""Losses, average of the weights, and progress, stopping rules and learning rate of a training."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from droneseg.nnunet.optimization import (
    BudgetPolyLR,
    CoarserLoss,
    DistillationLoss,
    ExponentialMovingAverage,
    Progress,
    RateLimited,
    parameter_groups,
    set_class_weights,
    with_pixel_targets,
)
from droneseg.nnunet.trainer_settings import TrainerSettings


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


def compound(ignore: int | None = None) -> nn.Module:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    return DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("class_weights", [None, (0.5, 3.0, 1.0)])
def test_pixel_loss_with_equal_weights_is_nnunets(
    ignore: int | None, channels: int, class_weights: tuple[float, ...] | None
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 9)
    target = torch.randint(3 if ignore is None else 4, (2, 1, 8, 9)).to(torch.uint8)
    full = torch.cat([target, torch.zeros_like(target), torch.full_like(target, 100)], 1)[:, :channels]
    reference, own = compound(ignore), with_pixel_targets(compound(ignore), 3, torch.device("cpu"))
    if class_weights:
        for loss in (reference, own):
            set_class_weights(loss, class_weights, torch.device("cpu"))
    assert own(logits, full).item() == pytest.approx(reference(logits, target).item(), rel=1e-5)


def test_pixel_weights_scale_the_gradient_and_0_removes_it() -> None:
    loss = compound()
    loss.weight_dice = 0
    logits = torch.zeros(1, 3, 1, 3, requires_grad=True)
    target = torch.tensor([[[[0, 1, 2]], [[0, 0, 0]], [[100, 50, 0]]]], dtype=torch.uint8)
    with_pixel_targets(loss, 3, torch.device("cpu"))(logits, target).backward()
    assert logits.grad is not None
    # the gradient of the cross entropy at the true class is -2/3, times its share of the weights
    assert logits.grad[0, 0, 0, 0].item() == pytest.approx(-2 / 3 * 1 / 1.5)
    assert logits.grad[0, 1, 0, 1].item() == pytest.approx(-2 / 3 * 0.5 / 1.5)
    assert (logits.grad[..., 2] == 0).all()


def test_pixel_of_weight_0_has_no_dice_loss() -> None:
    loss = compound()
    loss.weight_ce = 0
    logits = torch.randn(1, 3, 1, 3, requires_grad=True)
    target = torch.tensor([[[[0, 1, 2]], [[0, 0, 0]], [[100, 50, 0]]]], dtype=torch.uint8)
    with_pixel_targets(loss, 3, torch.device("cpu"))(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 2] == 0).all()
    assert (logits.grad[..., :2] != 0).any()


def test_fine_classes_add_their_cross_entropy_where_they_are_known() -> None:
    # outputs: background; class 1 with fine classes 1 and 3; class 2 with fine class 2
    fine = [1, 2, 1]
    logits = torch.randn(1, 4, 1, 5)
    # unknown, known, known, of another class than the label, beyond the list
    target = torch.tensor([[[[1, 1, 2, 0, 1]], [[0, 3, 2, 1, 200]], [[100] * 5]]], dtype=torch.uint8)
    values = [
        with_pixel_targets(compound(), 3, torch.device("cpu"), fine_classes=fine, fine_weight=weight)(logits, target)
        for weight in (0.0, 0.5)
    ]
    entropy = -logits.log_softmax(1)[0, :, 0]
    assert (values[1] - values[0]).item() == pytest.approx(0.5 * (entropy[2, 1] + entropy[3, 2]).item() / 2, rel=1e-4)
    summed = torch.stack([logits[:, 0], logits[:, 1:3].logsumexp(1), logits[:, 3]], 1)
    plain = with_pixel_targets(compound(), 3, torch.device("cpu"))(summed, target)
    assert values[0].item() == pytest.approx(plain.item(), rel=1e-5)


def test_batch_without_labels_has_a_finite_loss() -> None:
    target = torch.full((1, 3, 4, 4), 3, dtype=torch.uint8)
    logits = torch.randn(1, 4, 4, 4, requires_grad=True)
    loss = with_pixel_targets(compound(3), 3, torch.device("cpu"), fine_classes=[1, 2, 1], fine_weight=1)(
        logits, target
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


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


class Clock:
    """Clock in seconds that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def progress(
    *, lasted: list[float], dice: list[float] | None = None, clock: Clock | None = None, **settings: Any
) -> Progress:
    starts = [1000.0 * number for number in range(len(lasted))]
    series = {
        "epoch_start_timestamps": starts,
        "epoch_end_timestamps": [start + seconds for start, seconds in zip(starts, lasted, strict=True)],
        "ema_fg_dice": dice or [],
    }
    return Progress(TrainerSettings(**settings), series.__getitem__, clock or Clock())


def take_steps(done: Progress, clock: Clock, count: int, seconds: float) -> None:
    for _ in range(count):
        clock.now += seconds
        done.step_ended()


def test_share_done_is_the_larger_of_epochs_and_time() -> None:
    assert progress(lasted=[60, 60], epochs=10).share_done(2) == pytest.approx(0.2)
    assert progress(lasted=[60, 60], epochs=10, max_minutes=4).share_done(2) == pytest.approx(0.5)
    assert progress(lasted=[60] * 9, epochs=10, max_minutes=5).share_done(9) == 1


def test_share_done_grows_within_an_epoch() -> None:
    clock = Clock()
    done = progress(lasted=[60], epochs=10, iterations=20, clock=clock)
    done.epoch_started(clock.now)
    take_steps(done, clock, 5, 1.0)
    assert done.share_done(1) == pytest.approx(0.125)
    timed = progress(lasted=[60], epochs=100, iterations=20, val_iterations=8, max_minutes=4, clock=clock)
    timed.epoch_started(clock.now)
    take_steps(timed, clock, 5, 10.0)
    # 110 s of 240 s, less 8 validation steps of half a training step
    assert timed.share_done(1) == pytest.approx(110 / 200)


def test_budget_ends_the_first_epoch_early_enough_for_its_validation() -> None:
    clock = Clock()
    done = progress(lasted=[], epochs=100, iterations=60, val_iterations=10, max_minutes=1, clock=clock)
    done.epoch_started(clock.now)
    steps = 0
    while not done.epoch_is_over():
        take_steps(done, clock, 1, 2.0)
        steps += 1
    # 60 s, less 10 validation steps of 1 s, in steps of 2 s
    assert steps == 25
    assert done.share_done(0) == pytest.approx(1, abs=0.03)


def test_epoch_has_a_step_even_after_the_budget() -> None:
    clock = Clock()
    done = progress(lasted=[], max_minutes=0.01, clock=clock)
    done.epoch_started(clock.now - 60)
    assert not done.epoch_is_over()
    take_steps(done, clock, 1, 2.0)
    assert done.epoch_is_over()


def test_epoch_runs_if_a_quarter_of_it_is_within_the_budget() -> None:
    assert progress(lasted=[], max_minutes=1).reason_to_stop() is None
    assert progress(lasted=[48], max_minutes=1).reason_to_stop() is None
    assert "budget of 1 minutes" in str(progress(lasted=[49], max_minutes=1).reason_to_stop())


def test_share_done_reaches_1_in_the_last_epoch_even_if_it_does_not_fill_the_budget() -> None:
    clock = Clock()
    done = progress(lasted=[100], epochs=100, iterations=90, val_iterations=2, max_minutes=3.5, clock=clock)
    done.epoch_started(clock.now)
    take_steps(done, clock, 89, 1.1)
    # 210 s leave 10 s after the second epoch, too few for a third
    assert done.share_done(1) == pytest.approx(1, abs=0.02)


def test_remaining_time_counts_steps_and_validations() -> None:
    clock = Clock()
    done = progress(lasted=[], epochs=3, iterations=10, val_iterations=4, clock=clock)
    done.epoch_started(clock.now)
    take_steps(done, clock, 1, 50.0)
    assert done.remaining_s(0) is None, "the first step waits for the data"
    take_steps(done, clock, 4, 2.0)
    # 25 steps of 2 s, 12 validation steps of 1 s
    assert done.remaining_s(0) == pytest.approx(62)
    clock.now += 10
    done.epoch_ended()
    assert done.remaining_s(1) == pytest.approx(2 * (20 + 10))
    limited = progress(lasted=[30], epochs=300, iterations=10, max_minutes=1, clock=clock)
    limited.epoch_started(clock.now)
    take_steps(limited, clock, 3, 2.0)
    assert limited.remaining_s(1) == pytest.approx(24)


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


def test_distillation_adds_the_cross_entropy_with_the_teachers_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    taught = torch.randn(2, 3, 8, 8).softmax(1)
    loss = DistillationLoss(Recorded(), [1, 1, 1], 0.5)
    target = torch.zeros(2, 1, 8, 8)
    assert loss(logits, target).item() == 0
    loss.probabilities = taught
    value = loss(logits, target)
    means = taught.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    entropy = -(means * logits.log_softmax(1)).sum(1).mean()
    assert value.item() == pytest.approx(0.5 * entropy.item(), rel=1e-5)
    value.backward()
    assert logits.grad is not None
    # the gradient vanishes where the network agrees with the teacher
    agreeing = means.log().requires_grad_()
    loss(agreeing, target).backward()
    assert agreeing.grad is not None
    assert agreeing.grad.abs().max() < 1e-6 < logits.grad.abs().max()


def test_distillation_sums_the_outputs_of_fine_classes() -> None:
    loss = DistillationLoss(Recorded(), [1, 2], 1.0)
    loss.probabilities = torch.tensor([0.25, 0.75]).reshape(1, 2, 1, 1)
    equal = torch.zeros(1, 3, 1, 1)  # a third for each output: 1/3 and 2/3
    expected = -(0.25 * np.log(1 / 3) + 0.75 * np.log(2 / 3))
    assert loss(equal, torch.zeros(1, 1, 1, 1)).item() == pytest.approx(expected, rel=1e-5)
