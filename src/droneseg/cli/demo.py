"""`droneseg demo`: the whole flow on generated data."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from droneseg.cli import environment, output


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    json: Annotated[bool, typer.Option("--json", help="Write report.json to stdout at the end.")] = False,
) -> None:
    """Run the whole flow on generated scenes.

    Generates scenes, trains a small nnU-Net on them, predicts held-out ones and says how good it is.
    """
    from droneseg.flows.demo import STAGES, run_demo

    with _stages(STAGES) as report:
        result = run_demo(out, report, max_pixels=environment.settings().max_pixels)
    if json:
        output.out().file.write(result.report.read_text(encoding="utf-8"))
        return
    scores = result.scores
    rows = [[name, output.figure(value)] for name, value in scores.per_class_iou.items()]
    rows += [["mIoU", output.figure(scores.miou)]]
    rows += [["  of the best constant answer", output.figure(result.baseline_miou)]]
    rows += [["  of colour alone", output.figure(result.colour_classifier_miou)]]
    rows += [["unsafe landing rate", output.percent(scores.unsafe_landing_rate)]]
    rows += [["landing recall", output.percent(scores.landing_recall)]]
    output.out().print(output.table(f"{scores.images} held-out scenes", ["IoU", ""], rows))
    output.out().print(f"{sum(result.seconds.values()):.0f} s; report {result.report}; picture {result.overlay}")


@contextmanager
def _stages(stages: tuple[str, ...]) -> Iterator[Callable[[str, float], None]]:
    """Show one line per stage: bars on a terminal, plain lines elsewhere."""
    # the display stands for the log here; warnings still come through
    for handler in logging.getLogger("droneseg").handlers:
        handler.setLevel(logging.WARNING)
    if not output.err().is_terminal:
        yield _plain_stages()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=output.err()) as bars:
        tasks = {stage: bars.add_task(stage, total=1.0, start=False) for stage in stages}

        def update(stage: str, share: float) -> None:
            if share == 0.0:
                bars.start_task(tasks[stage])
            bars.update(tasks[stage], completed=share)
            if share >= 1.0:
                bars.stop_task(tasks[stage])

        yield update


def _plain_stages() -> Callable[[str, float], None]:
    shown: dict[str, int] = {}

    def update(stage: str, share: float) -> None:
        quarter = int(4 * share)
        if quarter > shown.get(stage, -1):
            shown[stage] = quarter
            output.err().print(f"{stage}: {25 * quarter} %")

    return update
