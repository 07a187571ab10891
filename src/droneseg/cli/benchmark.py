"""The `droneseg benchmark` command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from droneseg.cli import console


def benchmark(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="With --training: as `droneseg train` takes.", show_default=False),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="A bundle of your own to set beside the stock network.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photograph; default: a generated one of 960x736.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Predictions per row, taking turns.")] = 5,
    training: Annotated[bool, typer.Option("--training", help="Time nnU-Net's own trainer beside ours.")] = False,
    iterations: Annotated[int, typer.Option(min=1, help="With --training: iterations timed by part.")] = 20,
    minutes: Annotated[float, typer.Option(min=0, help="With --training: minutes of training for the Dice.")] = 3,
    our_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="With --training: minutes of ours, if fewer.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Time every runtime and profile beside nnU-Net's own predictor; with --training, our trainer beside its own.

    Predicting: same photograph, same untrained weights of the stock plan, one process per row, taking turns. The first
    run exports that network, which takes some minutes. Training: same plan, data and seed; the dataset is the
    preprocessed one, or generated scenes.
    """
    console.require_plot_suffix(plot)
    if overrides and not training:
        raise typer.BadParameter(f"{overrides[0]} is for --training only", param_hint="KEY=VALUE")
    if training and (model or image):
        raise typer.BadParameter("--model and --image do not go with --training", param_hint="--training")
    console.require_nnunet()
    if training:
        _show_training(_training(overrides or [], iterations, minutes, our_minutes), plot, json)
    else:
        _prediction(model, image, rounds, plot, json)


def _report(step: str) -> None:
    console.err().print(f"{step} ...", markup=False)


def _prediction(model: Path | None, image: Path | None, rounds: int, plot: Path | None, json: bool) -> None:
    from droneseg.flows.inference_benchmark import load_baseline_model, run_benchmark
    from droneseg.flows.training_benchmark import plot_benchmark

    cache = console.settings().cache_dir.expanduser()
    stock = load_baseline_model(cache, _report)
    found = run_benchmark(stock, model=model, image=image, cache=cache / "openvino", rounds=rounds, report=_report)
    if plot:
        plot_benchmark(found, plot)
    if json:
        console.show_json(found)
        return
    columns = ["row", "seconds", "x stock-tta", "x stock", "agreement", "network", "peak MB", "start s"]
    title = f"{found['image']}, {found['machine']['cores']} cores"
    console.out().print(console.table(title, columns, [_cells(row) for row in found["rows"]]))
    console.out().print(_parts_table(found["rows"]))
    network = found["network"]
    matmul = network["bf16_matmul_gflops"]
    console.out().print(
        f"fast runs the network's {network['gflop']:.0f} GFLOP at {network['fast_gflops']:.0f} GFLOPS"
        + (f"; a bf16 matrix product of 4096 reaches {matmul:.0f}" if matmul else "")
    )


def _cells(row: dict[str, Any]) -> list[str]:
    parts = row["parts_s_median"]
    share = parts["network"] / row["seconds_median"] if parts else None
    return [
        row["name"],
        console.figure(row["seconds_median"]),
        f"{row['ratio_to_stock_tta']:.1f}",
        f"{row['ratio_to_stock']:.1f}",
        console.percent(row["agreement"], 3),
        console.percent(share),
        f"{row['peak_mb']:.0f}",
        f"{row['start_s']:.1f}",
    ]


def _parts_table(rows: list[dict[str, Any]]) -> Any:
    known = [row for row in rows if row["parts_s_median"]]
    parts = list(known[0]["parts_s_median"])
    cells = [[row["name"], *(f"{1000 * row['parts_s_median'][part]:.1f}" for part in parts)] for row in known]
    return console.table("where the milliseconds go", ["row", *parts], cells)


def _training(overrides: list[str], iterations: int, minutes: float, our_minutes: float | None) -> dict[str, Any]:
    from droneseg.flows.training_benchmark import benchmark_training
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.config import load_config

    return benchmark_training(
        load_config(overrides),
        load_config(["preset=pretrained"]),
        NnunetPaths.from_settings(console.settings()),
        iterations=iterations,
        minutes=minutes,
        our_minutes=our_minutes,
        report=_report,
    )


def _show_training(found: dict[str, Any], plot: Path | None, json: bool) -> None:
    from droneseg.flows.training_benchmark import plot_training_benchmark

    if plot:
        plot_training_benchmark(found, plot)
    if json:
        console.show_json(found)
        return
    parts = list(found["trainers"][0]["parts_s"])
    rows = [
        [row["name"], console.figure(row["iteration_s"]), *(console.figure(row["parts_s"][part]) for part in parts)]
        for row in found["trainers"]
    ]
    title = f"seconds per iteration, {found['configuration']}, {found['data']}, {found['machine']['cores']} cores"
    console.out().print(console.table(title, ["trainer", "in all", *parts], rows))
    if found["target_dice"] is not None:
        console.out().print(_dice_table(found))


def _dice_table(found: dict[str, Any]) -> Any:
    rows = []
    for row in found["trainers"]:
        sooner = row["times_sooner"]
        rows.append(
            [
                row["name"],
                str(len(row["dice"])),
                *(console.figure(value) for value in _dice_by_thirds(row["dice"])),
                "never" if row["reached_s"] is None else f"{row['reached_s'] / 60:.1f}",
                "" if sooner is None else f"{sooner:.1f}x",
            ]
        )
    columns = ["trainer", "epochs", "1/3", "2/3", "end", f"minutes to {found['target_dice']:.3f}", "sooner"]
    return console.table("pseudo Dice on validation patches", columns, rows)


def _dice_by_thirds(epochs: list[dict[str, float]]) -> list[float | None]:
    """Return the Dice of the last epoch that ended within one third, two thirds and all of the time."""
    found: list[float | None] = []
    for third in (1, 2, 3):
        done = [epoch["dice"] for epoch in epochs if epoch["seconds"] <= epochs[-1]["seconds"] * third / 3]
        found.append(done[-1] if done else None)
    return found
