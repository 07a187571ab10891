"""The `droneseg benchmark` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Overrides, Plot

if TYPE_CHECKING:
    from rich.table import Table

    from droneseg.flows.inference_benchmark import BenchmarkRow, InferenceBenchmark
    from droneseg.flows.training_benchmark import EpochResult, TrainingBenchmark


def benchmark(
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="Bundle to measure as well, such as your own model.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image to predict; default: a generated one, 960x736.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of predictions per configuration.")] = 5,
    training: Annotated[bool, typer.Option("--training", help="Compare the trainers instead.")] = False,
    iterations: Annotated[int, typer.Option(min=1, help="With --training: number of iterations to time.")] = 20,
    minutes: Annotated[float, typer.Option(min=0, help="With --training: minutes of training; 0 to skip.")] = 3,
    our_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="With --training: minutes for droneseg's trainer, if they differ.",
            show_default=False,
        ),
    ] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Measure speed and memory of prediction or training.

    Without --training: every runtime and profile is compared with nnU-Net's own predictor, on the same image and the
    same untrained weights. Each configuration runs in its own process; the processes take turns. The first run exports
    the network, which takes a few minutes.

    With --training: droneseg's trainer is compared with nnU-Net's own trainer, with the same plan, data and seed, on
    the preprocessed dataset or, without one, on generated scenes.
    """
    console.check_plot_suffix(plot)
    if overrides and not training:
        raise typer.BadParameter(f"{overrides[0]} can only be used with --training", param_hint="KEY=VALUE")
    if training and (model or image):
        raise typer.BadParameter("--model and --image cannot be used with --training", param_hint="--training")
    console.require_nnunet()
    if training:
        _benchmark_training(overrides or [], iterations, minutes, our_minutes, plot, json=json)
    else:
        _benchmark_prediction(model, image, rounds, plot, json=json)


def _benchmark_prediction(
    model: Path | None, image: Path | None, rounds: int, plot: Path | None, *, json: bool
) -> None:
    from droneseg.flows.inference_benchmark import load_baseline_model, run_benchmark
    from droneseg.flows.training_benchmark import plot_benchmark

    cache = console.settings().cache_dir.expanduser()
    baseline = load_baseline_model(cache, console.show_step)
    result = run_benchmark(
        baseline, model=model, image=image, cache=cache / "openvino", rounds=rounds, on_step=console.show_step
    )
    if plot:
        plot_benchmark(result, plot)
    if json:
        console.show_json(result.model_dump())
    else:
        _show_prediction(result)


def _show_prediction(result: InferenceBenchmark) -> None:
    columns = [
        "configuration",
        "seconds",
        "speedup over stock-tta",
        "speedup over stock",
        "agreement",
        "network share",
        "peak MB",
        "start (s)",
    ]
    title = f"{result.image}, {result.machine['cores']} cores"
    console.out().print(console.table(title, columns, [_prediction_cells(row) for row in result.rows]))
    console.out().print("stock: nnU-Net's own predictor without mirroring; stock-tta: with mirroring")
    console.out().print(_stage_table(result.rows))
    network = result.network
    matmul = network.bf16_matmul_gflops
    console.out().print(
        f"profile fast computes the {network.gflop:.0f} GFLOP of the network at {network.fast_gflops:.0f} GFLOPS"
        + (f"; a bfloat16 product of 4096x4096 matrices reaches {matmul:.0f} GFLOPS" if matmul else "")
    )


def _prediction_cells(row: BenchmarkRow) -> list[str]:
    stages = row.parts_s_median
    network_share = stages["network"] / row.seconds_median if stages else None
    return [
        row.name,
        console.number(row.seconds_median),
        f"{row.ratio_to_stock_tta:.1f}",
        f"{row.ratio_to_stock:.1f}",
        console.percent(row.agreement, 3),
        console.percent(network_share),
        f"{row.peak_mb:.0f}",
        f"{row.start_s:.1f}",
    ]


def _stage_table(rows: list[BenchmarkRow]) -> Table:
    timed = [row for row in rows if row.parts_s_median]
    stages = list(timed[0].parts_s_median)
    cells = [[row.name, *(f"{1000 * row.parts_s_median[stage]:.1f}" for stage in stages)] for row in timed]
    return console.table("milliseconds per stage", ["configuration", *stages], cells)


def _benchmark_training(
    overrides: list[str],
    iterations: int,
    minutes: float,
    our_minutes: float | None,
    plot: Path | None,
    *,
    json: bool,
) -> None:
    from droneseg.flows.training_benchmark import benchmark_training, plot_benchmark
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.config import load_config

    result = benchmark_training(
        load_config(overrides),
        load_config(["preset=pretrained"]),
        NnunetPaths.from_settings(console.settings()),
        iterations=iterations,
        minutes=minutes,
        our_minutes=our_minutes,
        on_step=console.show_step,
    )
    if plot:
        plot_benchmark(result, plot)
    if json:
        console.show_json(result.model_dump(exclude_unset=True))  # no reached_s without training
    else:
        _show_training(result)


def _show_training(result: TrainingBenchmark) -> None:
    stages = list(result.trainers[0].parts_s)
    rows = [
        [
            trainer.name,
            console.number(trainer.iteration_s),
            *(console.number(trainer.parts_s[stage]) for stage in stages),
        ]
        for trainer in result.trainers
    ]
    title = f"seconds per iteration, {result.configuration}, {result.data}, {result.machine['cores']} cores"
    console.out().print(console.table(title, ["trainer", "total", *stages], rows))
    if result.target_dice is not None:
        console.out().print(_dice_table(result))


def _dice_table(result: TrainingBenchmark) -> Table:
    rows = []
    for trainer in result.trainers:
        speedup = trainer.times_sooner
        rows.append(
            [
                trainer.name,
                str(len(trainer.dice)),
                *(console.number(value) for value in _dice_by_thirds(trainer.dice)),
                "not reached" if trainer.reached_s is None else f"{trainer.reached_s / 60:.1f}",
                "" if speedup is None else f"{speedup:.1f}x",
            ]
        )
    columns = ["trainer", "epochs", "1/3", "2/3", "end", f"minutes to {result.target_dice:.3f}", "speedup"]
    return console.table("pseudo Dice on validation patches", columns, rows)


def _dice_by_thirds(epochs: list[EpochResult]) -> list[float | None]:
    """Return the Dice of the last epoch within one third, two thirds and the whole of the time."""
    values: list[float | None] = []
    for third in (1, 2, 3):
        end_s = epochs[-1].seconds * third / 3
        dice = [epoch.dice for epoch in epochs if epoch.seconds <= end_s]
        values.append(dice[-1] if dice else None)
    return values
