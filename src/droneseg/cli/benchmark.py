"""`droneseg benchmark`: how fast, how much memory, how equal, beside nnU-Net's own predictor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from droneseg.cli import environment, output


def benchmark(
    model: Annotated[Path | None, typer.Option(help="A bundle of your own to set beside the stock network.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photograph; default: a generated one of 960x736.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Predictions per row, taking turns.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Draw the rows into this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Time every runtime and profile beside nnU-Net's own predictor.

    Same photograph, same untrained weights of the stock plan, one process per row, taking turns. The first run exports
    that network, which takes some minutes.
    """
    environment.require_nnunet()
    if plot and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{plot} must end with .png, .svg or .pdf", param_hint="--plot")
    from droneseg.flows.benchmark import run_benchmark
    from droneseg.flows.benchmark_plot import plot_benchmark
    from droneseg.flows.stock import stock_model

    cache = environment.settings().cache_dir.expanduser()

    def report(step: str) -> None:
        output.err().print(f"{step} ...", markup=False)

    found = run_benchmark(
        stock_model(cache, report), model=model, image=image, cache=cache / "openvino", rounds=rounds, report=report
    )
    if plot:
        plot_benchmark(found, plot)
    if json:
        output.show_json(found)
        return
    columns = ["row", "seconds", "x stock-tta", "x stock", "agreement", "network", "peak MB", "start s"]
    title = f"{found['image']}, {found['machine']['cores']} cores"
    output.out().print(output.table(title, columns, [_cells(row) for row in found["rows"]]))
    network = found["network"]
    matmul = network["bf16_matmul_gflops"]
    output.out().print(
        f"fast runs the network's {network['gflop']:.0f} GFLOP at {network['fast_gflops']:.0f} GFLOPS"
        + (f"; a bf16 matrix product of 4096 reaches {matmul:.0f}" if matmul else "")
    )


def _cells(row: dict[str, Any]) -> list[str]:
    share = None if row["network_s_median"] is None else row["network_s_median"] / row["seconds_median"]
    return [
        row["name"],
        output.figure(row["seconds_median"]),
        f"{row['ratio_to_stock_tta']:.1f}",
        f"{row['ratio_to_stock']:.1f}",
        output.percent(row["agreement"], 3),
        output.percent(share),
        f"{row['peak_mb']:.0f}",
        f"{row['start_s']:.1f}",
    ]
