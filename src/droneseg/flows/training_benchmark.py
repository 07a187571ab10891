"""Training benchmark: droneseg's trainer compared with nnU-Net's own; plots of both benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from droneseg.core.errors import optional_import
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.system import describe_machine
from droneseg.data.convert import ConversionOptions, convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import write_samples
from droneseg.flows.export import StepCallback
from droneseg.flows.inference_benchmark import InferenceBenchmark
from droneseg.nnunet.paths import TRAINER, NnunetPaths
from droneseg.training.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from droneseg.training.timing import EpochDice, IterationTimes

_SCENES, _VAL_SCENES = 60, 12
_SIZE = (480, 368)
_OURS, _STOCK, _PRETRAINED = "#0e87cc", "#6b7280", "#c2410c"
_STAGE_COLOURS = ("#94a3b8", "#c084fc", "#0e87cc", "#1e5f8a", "#f59e0b", "#d1d5db")


class EpochResult(BaseModel):
    """Dice after one epoch.

    Attributes:
        seconds: Seconds since the start of the training.
        dice: nnU-Net's pseudo Dice on validation patches.
    """

    seconds: float
    dice: float


class TrainerResult(BaseModel):
    """Measurements of one trainer.

    Attributes:
        name: Name of the trainer, with its network if it is pretrained.
        iteration_s: Median duration of an iteration.
        parts_s: Median duration of each part of an iteration.
        dice: Dice after each epoch; empty if only iterations were timed.
        reached_s: Seconds until the Dice reached the final Dice of nnU-Net's trainer; None if it did not.
        times_sooner: Speedup over nnU-Net's trainer in reaching its final Dice; None if it was not reached.
    """

    name: str
    iteration_s: float
    parts_s: dict[str, float]
    dice: list[EpochResult]
    reached_s: float | None = None
    times_sooner: float | None = None


class TrainingBenchmark(BaseModel):
    """Result of the training benchmark.

    Attributes:
        machine: Description of the machine.
        data: Preprocessed dataset, or "generated scenes" with their size.
        configuration: Name of the configuration of the first two trainers.
        target_dice: Final Dice of nnU-Net's own trainer, averaged over the last epochs; None without training.
        trainers: Measurements of nnU-Net's trainer, droneseg's trainer, and the latter with a pretrained network.
    """

    machine: dict[str, str | int]
    data: str
    configuration: str
    target_dice: float | None
    trainers: list[TrainerResult]


def benchmark_training(
    config: TrainingConfig,
    pretrained: TrainingConfig,
    paths: NnunetPaths,
    *,
    iterations: int,
    minutes: float,
    our_minutes: float | None = None,
    on_step: StepCallback,
) -> TrainingBenchmark:
    """Measure three trainings one after the other, with the same data, seed, patch size and batch size.

    Args:
        config: Configuration of nnU-Net's trainer, which uses only its plan, and of droneseg's trainer.
        pretrained: Configuration of droneseg's trainer with a pretrained network. Its patch size, batch size and epochs
            are replaced by those of `config`, so that the Dice is comparable.
        paths: nnU-Net's folders. If no dataset is preprocessed there, generated scenes are used.
        iterations: Number of iterations to time with each trainer.
        minutes: Minutes of training with each trainer; 0 skips training.
        our_minutes: Minutes of training with droneseg's trainer, if they differ. A short learning-rate schedule
            reaches a higher Dice than the first part of a long one.
        on_step: Callback, called when a step begins.
    """
    from droneseg.training import timing

    pretrained = _comparable(config, pretrained)
    runs = [
        (timing.STOCK_TRAINER, timing.STOCK_TRAINER, config),
        (TRAINER, TRAINER, config),
        (f"{TRAINER}, {pretrained.network}", TRAINER, pretrained),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        data, paths = _prepare_data(paths.select(config.dataset, config.plans), Path(temporary), on_step)
        times = []
        for name, trainer, settings in runs:
            on_step(f"{name}: timing {iterations} iterations")
            times.append(timing.time_iterations(settings, paths, trainer, iterations))
        curves = []
        for measured, (name, trainer, settings) in zip(times, runs if minutes else (), strict=False):
            budget = minutes if trainer == timing.STOCK_TRAINER else our_minutes or minutes
            on_step(f"{name}: training for {budget:g} minutes")
            curves.append(timing.dice_over_time(settings, paths, trainer, minutes=budget, measured=measured))
            on_step(f"{name}: Dice after each epoch: {' '.join(f'{epoch.dice:.3f}' for epoch in curves[-1])}")
    target = timing.smoothed_end(curves[0]) if curves else None
    return TrainingBenchmark(
        machine=describe_machine(),
        data=data,
        configuration=config.configuration,
        target_dice=target,
        trainers=_trainer_results([name for name, *_ in runs], times, curves, target),
    )


def _trainer_results(
    names: Sequence[str],
    times: Sequence[IterationTimes],
    curves: Sequence[Sequence[EpochDice]],
    target: float | None,
) -> list[TrainerResult]:
    """Return the measurements of each trainer; without curves, only the times of iterations."""
    from droneseg.training.timing import time_to_reach

    results = [
        TrainerResult(name=name, iteration_s=measured.total, parts_s=measured.parts, dice=[])
        for name, measured in zip(names, times, strict=True)
    ]
    for result, curve in zip(results, curves, strict=False):
        result.dice = [EpochResult(**asdict(epoch)) for epoch in curve]
        result.reached_s = time_to_reach(target, curve) if target is not None else None
        result.times_sooner = curves[0][-1].seconds / result.reached_s if result.reached_s else None
    return results


def _comparable(config: TrainingConfig, pretrained: TrainingConfig) -> TrainingConfig:
    """Return `pretrained` with the patches, batches and epochs of `config`."""
    trainer = config.trainer
    same = {name: getattr(trainer, name) for name in ("iterations", "val_iterations", "oversample", "seed")}
    settings = pretrained.trainer.model_copy(update=same | {"crop_size": None})
    return pretrained.model_copy(
        update={
            "configuration": "2d_benchmark_pretrained",
            "patch_size": config.patch_size,
            "batch_size": config.batch_size,
            "fold": config.fold,
            "workers": config.workers,
            "trainer": settings,
        }
    )


def _prepare_data(paths: NnunetPaths, temporary: Path, on_step: StepCallback) -> tuple[str, NnunetPaths]:
    """Return a description of the data and nnU-Net's folders; models are always written to the temporary folder."""
    if paths.plans_file.is_file():
        return str(paths.preprocessed_dataset), replace(paths, results=temporary / "results")
    on_step("no preprocessed dataset found: generating scenes")
    paths = NnunetPaths(temporary / "raw", temporary / "preprocessed", temporary / "results")
    stems = [f"{index:03d}" for index in range(_SCENES)]
    write_samples(temporary / "data", count=_SCENES, size=_SIZE, seed=0)
    split = Split(tuple(stems[:-_VAL_SCENES]), tuple(stems[-_VAL_SCENES:]))
    write_split(split, temporary / "split.json")
    convert_dataset(
        temporary / "data",
        paths.raw,
        ConversionOptions(split_file=temporary / "split.json"),
        max_pixels=DEFAULT_MAX_PIXELS,
    )
    from droneseg.nnunet.preprocess import preprocess

    preprocess(paths, show_progress=False)
    return "generated scenes, {}x{}".format(*_SIZE), paths


def plot_benchmark(benchmark: InferenceBenchmark | TrainingBenchmark, path: Path) -> None:
    """Plot time and memory of each predictor, or the parts of an iteration and the Dice over time of each trainer.

    Args:
        benchmark: Result of a benchmark.
        path: File to write, PNG, SVG or PDF.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    drawn = _draw_training(benchmark) if isinstance(benchmark, TrainingBenchmark) else _draw_inference(benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)


def _draw_inference(benchmark: InferenceBenchmark) -> Figure:
    rows = benchmark.rows
    names = [row.name for row in rows]
    colours = [_STOCK if name.startswith("stock") else _OURS for name in names]
    figure = _figure(0.45 * len(rows) + 1.4)
    seconds, memory = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    bars = seconds.barh(names, [row.seconds_median for row in rows], color=colours)
    labels = [f"{row.seconds_median:.2f} s   {row.ratio_to_stock_tta:.1f}x" for row in rows]
    seconds.bar_label(bars, labels, padding=4)
    seconds.set(title="Image to mask, and speedup over nnU-Net with mirroring", xlabel="seconds (log)", xscale="log")
    seconds.margins(x=0.35)
    seconds.invert_yaxis()
    bars = memory.barh(names, [row.peak_mb for row in rows], color=colours)
    memory.bar_label(bars, [f"{row.peak_mb:.0f}" for row in rows], padding=4)
    memory.set(title="Peak memory", xlabel="MB")
    memory.margins(x=0.25)
    return figure


def _draw_training(benchmark: TrainingBenchmark) -> Figure:
    figure = _figure(3.8)
    figure.suptitle(f"{benchmark.configuration}, {benchmark.machine['cores']} cores")
    stages, dice = figure.subplots(1, 2, width_ratios=(1, 1))
    _plot_stages(stages, benchmark.trainers)
    _plot_dice(dice, benchmark)
    return figure


def _plot_stages(axes: Axes, trainers: Sequence[TrainerResult]) -> None:
    names = [trainer.name for trainer in trainers]
    left = [0.0] * len(trainers)
    for stage, colour in zip(trainers[0].parts_s, _STAGE_COLOURS, strict=False):
        widths = [trainer.parts_s[stage] for trainer in trainers]
        axes.barh(names, widths, left=left, color=colour, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(title="One iteration", xlabel="seconds")
    axes.invert_yaxis()
    axes.margins(y=0.35)
    axes.legend(loc="lower center", ncols=3, frameon=False, fontsize="small", handlelength=1, columnspacing=0.8)


def _plot_dice(axes: Axes, benchmark: TrainingBenchmark) -> None:
    for trainer, colour in zip(benchmark.trainers, (_STOCK, _OURS, _PRETRAINED), strict=True):
        minutes = [epoch.seconds / 60 for epoch in trainer.dice]
        axes.plot(minutes, [epoch.dice for epoch in trainer.dice], "o-", markersize=3, color=colour, label=trainer.name)
    if benchmark.target_dice is not None:
        axes.axhline(benchmark.target_dice, color=_STOCK, linewidth=0.8, linestyle="--")
    axes.set(title="Validation patches", xlabel="minutes", ylabel="pseudo Dice", ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", frameon=False)


def _figure(height: float) -> Figure:
    with optional_import("matplotlib", "train"):
        from matplotlib.figure import Figure
    return Figure(figsize=(11, height), layout="constrained")
