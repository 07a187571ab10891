"""The `droneseg preprocess`, `train`, `sweep` and `demo` commands."""

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console

if TYPE_CHECKING:
    from droneseg.training.search_space import SweepConfig
    from droneseg.training.sweep import SweepResult


def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="What all trials have in common, as for `droneseg train`.", show_default=False
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many shall have ended, those of earlier runs included.")] = 20,
    config: Annotated[Path | None, typer.Option(help="What to try; default: configs/sweep.yaml.")] = None,
    name: Annotated[str, typer.Option(help="Of the study; the same name goes on with it.")] = "sweep",
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several machines share, such as postgresql://...")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: runs/sweeps/NAME.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    wandb_file: Annotated[
        Path | None, typer.Option(help="Write the same search as a sweep file of W&B, and stop.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Search for a better configuration with Optuna; weak trials are ended early.

    The first trial is the preset itself. Ctrl-C and kill -9 lose nothing but the last epoch: the same command goes on.
    """
    from droneseg.training.search_space import load_sweep

    search = load_sweep(config, overrides or [])
    if wandb_file:
        _write_for_wandb(search, wandb_file)
        return
    console.require_nnunet()
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.sweep import Trial, run_sweep
    from droneseg.training.sweep_plot import plot_sweep

    def tell(trial: Trial, done: int) -> None:
        what = f"Dice {console.figure(trial.dice)}" if trial.error is None else trial.error
        console.err().print(f"{done}/{trials}  trial {trial.number} {trial.state}: {what}", markup=False)

    out = out or Path("runs/sweeps") / name
    layout = NnunetPaths.from_settings(console.settings())
    result = run_sweep(search, layout, out, name=name, trials=trials, storage=storage, seed=seed, on_trial=tell)
    plot_sweep(result, out / "sweep.png")
    if json:
        console.show_json(result)
        return
    _show(result, search.space, out)


def _write_for_wandb(search: "SweepConfig", file: Path) -> None:
    import yaml

    from droneseg.core.files import write_text
    from droneseg.training.search_space import wandb_sweep

    write_text(file, yaml.safe_dump(wandb_sweep(search), sort_keys=False))
    console.out().print(f"{file}: `wandb sweep {file}`, then `wandb agent ID` on each machine")


def _show(result: "SweepResult", keys: Iterable[str], out: Path) -> None:
    rows = [
        [
            f"{trial.number}{' (preset)' if trial.preset else ''}",
            trial.state,
            console.figure(trial.dice),
            str(len(trial.dices)),
            f"{trial.seconds:.0f}",
            ", ".join(f"{key}={_short(trial.values.get(key))}" for key in keys),
        ]
        for trial in result.trials
    ]
    shown = console.table(f"{result.name}, the best first", ["trial", "", "Dice", "epochs", "s", "values"], rows)
    shown.columns[5].justify = "left"
    console.out().print(shown)
    console.out().print(f"plots: {out / 'sweep.png'}", markup=False)
    if result.command:
        console.out().print(f"best: droneseg train {shlex.join(result.command)}", markup=False)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    json: Annotated[bool, typer.Option("--json", help="Write report.json to stdout at the end.")] = False,
) -> None:
    """Run the whole flow on generated scenes.

    Generates scenes, trains a small nnU-Net on them, predicts held-out ones and says how good it is.
    """
    from droneseg.flows.demo import STAGES, run_demo

    with _stages(STAGES) as report:
        result = run_demo(out, report, max_pixels=console.settings().max_pixels)
    if json:
        console.out().file.write(result.report.read_text(encoding="utf-8"))
        return
    scores = result.scores
    rows = [[name, console.figure(value)] for name, value in scores.per_class_iou.items()]
    rows += [["mIoU", console.figure(scores.miou)]]
    rows += [["  of the best constant answer", console.figure(result.baseline_miou)]]
    rows += [["  of colour alone", console.figure(result.colour_classifier_miou)]]
    rows += [["unsafe landing rate", console.percent(scores.unsafe_landing_rate)]]
    rows += [["landing recall", console.percent(scores.landing_recall)]]
    console.out().print(console.table(f"{scores.images} held-out scenes", ["IoU", ""], rows))
    console.out().print(f"{sum(result.seconds.values()):.0f} s; report {result.report}; picture {result.overlay}")


@contextmanager
def _stages(stages: tuple[str, ...]) -> Iterator[Callable[[str, float], None]]:
    """Show one line per stage: bars on a terminal, plain lines elsewhere."""
    # the display stands for the log here; warnings still come through
    for handler in logging.getLogger("droneseg").handlers:
        handler.setLevel(logging.WARNING)
    if not console.err().is_terminal:
        yield _plain_stages()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console.err()) as bars:
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
            console.err().print(f"{stage}: {25 * quarter} %")

    return update


def preprocess(
    processes: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core, at most 8.")] = None,
) -> None:
    """Let nnU-Net plan and preprocess the converted dataset."""
    console.require_nnunet()
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.nnunet.preprocess import preprocess as run

    layout = NnunetPaths.from_settings(console.settings())
    done = run(layout, processes=processes, show_progress=console.err().is_terminal)
    height, width = done.patch_size
    console.out().print(f"{done.folder}: nnU-Net plans patches of {width}x{height}, batches of {done.batch_size}")


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="preset=smoke|cpu|pretrained|gpu, max_minutes=30, resume=true, ... See --show for all keys.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the resolved configuration and stop.")] = False,
) -> None:
    """Train one fold with nnU-Net's own loop.

    Ctrl-C and a crash cost the last epoch at most: the same command with resume=true goes on.
    """
    from droneseg.training.config import load_config

    config = load_config(overrides or [])
    if show:
        shown = config.model_dump(mode="json", exclude={"trainer"})
        console.show_json(shown | config.trainer.model_dump(mode="json", exclude={"bf16", "tracked"}))
        return
    console.require_nnunet()
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.run import train as run

    settings = console.settings()
    key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key else None
    done = run(config, NnunetPaths.from_settings(settings), wandb_key=key)
    dice = f", mean validation Dice {done.mean_validation_dice:.3f}" if done.mean_validation_dice is not None else ""
    console.out().print(f"trained: {done.model_folder}{dice}")
    console.out().print(f"next: droneseg export --from {done.model_folder}")
