"""`droneseg sweep`: which configuration learns best in a short time?"""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output

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
    environment.require_nnunet()
    from droneseg.nnunet.paths import Layout
    from droneseg.training.sweep import Trial, run_sweep
    from droneseg.training.sweep_plot import plot_sweep

    def tell(trial: Trial, done: int) -> None:
        what = f"Dice {output.figure(trial.dice)}" if trial.error is None else trial.error
        output.err().print(f"{done}/{trials}  trial {trial.number} {trial.state}: {what}", markup=False)

    out = out or Path("runs/sweeps") / name
    layout = Layout.from_settings(environment.settings())
    result = run_sweep(search, layout, out, name=name, trials=trials, storage=storage, seed=seed, on_trial=tell)
    plot_sweep(result, out / "sweep.png")
    if json:
        output.show_json(result)
        return
    _show(result, search.space, out)


def _write_for_wandb(search: "SweepConfig", file: Path) -> None:
    import yaml

    from droneseg.core.files import write_text
    from droneseg.training.search_space import wandb_sweep

    write_text(file, yaml.safe_dump(wandb_sweep(search), sort_keys=False))
    output.out().print(f"{file}: `wandb sweep {file}`, then `wandb agent ID` on each machine")


def _show(result: "SweepResult", keys: Iterable[str], out: Path) -> None:
    rows = [
        [
            f"{trial.number}{' (preset)' if trial.preset else ''}",
            trial.state,
            output.figure(trial.dice),
            str(len(trial.dices)),
            f"{trial.seconds:.0f}",
            ", ".join(f"{key}={_short(trial.values.get(key))}" for key in keys),
        ]
        for trial in result.trials
    ]
    shown = output.table(f"{result.name}, the best first", ["trial", "", "Dice", "epochs", "s", "values"], rows)
    shown.columns[5].justify = "left"
    output.out().print(shown)
    output.out().print(f"plots: {out / 'sweep.png'}", markup=False)
    if result.command:
        output.out().print(f"best: droneseg train {shlex.join(result.command)}", markup=False)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
