"""The `droneseg preprocess`, `train`, `sweep`, `export` and `demo` commands."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Overrides
from droneseg.core.errors import DronesegError, ModelError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from droneseg.flows.demo import DemoResult
    from droneseg.model.bundle import Bundle
    from droneseg.nnunet.paths import FoldName, NnunetPaths
    from droneseg.training.search_space import SweepConfig
    from droneseg.training.sweep import SweepResult, Trial


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all output of the demo.")] = Path("demo"),
    json: Annotated[bool, typer.Option("--json", help="Write report.json to stdout at the end.")] = False,
) -> None:
    """Run the whole workflow on generated scenes.

    Generates scenes, trains a small nnU-Net on them, predicts held-out scenes and evaluates the masks. Needs no data.
    """
    from droneseg.flows.demo import STAGES, run_demo

    # the progress bars replace the log; warnings are still shown
    for handler in logging.getLogger("droneseg").handlers:
        handler.setLevel(logging.WARNING)
    with console.progress_bars(*STAGES) as progress:
        result = run_demo(out, progress, max_pixels=console.settings().max_pixels)
    if json:
        console.out().file.write(result.report.read_text(encoding="utf-8"))
    else:
        _show_demo(result)


def _show_demo(result: DemoResult) -> None:
    scores = result.scores
    rows = [[f"IoU {name}", console.number(value)] for name, value in scores.per_class_iou.items()]
    rows += [
        ["mIoU", console.number(scores.miou)],
        ["mIoU of the best constant mask", console.number(result.baseline_miou)],
        ["mIoU of a colour classifier", console.number(result.colour_classifier_miou)],
        ["unsafe landing rate", console.percent(scores.unsafe_landing_rate)],
        ["landing recall", console.percent(scores.landing_recall)],
    ]
    console.out().print(console.table(f"{scores.images} held-out scenes", ["metric", "value"], rows))
    seconds = sum(result.seconds.values())
    console.out().print(f"{seconds:.0f} s; report: {result.report}; overlay: {result.overlay}", markup=False)


def preprocess(
    dataset: Annotated[
        str | None, typer.Option(help="Number or name of the dataset in nnUNet_raw; default: Dataset101_DroneSeg.")
    ] = None,
    planner: Annotated[
        str | None, typer.Option(help="Planner of nnU-Net, such as nnUNetPlannerResEncM; default: ExperimentPlanner.")
    ] = None,
    plans: Annotated[
        str | None,
        typer.Option(
            help="Name of the plans. With --planner, the planner writes them; without it, they exist and are used as "
            "they are. Default: the planner's own name."
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core, at most 8.")] = None,
) -> None:
    """Plan and preprocess a dataset with nnU-Net.

    Train with the same dataset and plans: `droneseg train dataset=205 plans=nnUNetResEncUNetMPlans`.
    """
    console.require_nnunet()
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.nnunet.preprocess import DEFAULT_PLANNER, preprocess

    result = preprocess(
        NnunetPaths.from_settings(console.settings()).select(dataset),
        planner=planner or (None if plans else DEFAULT_PLANNER),
        plans=plans,
        processes=processes,
        show_progress=console.err().is_terminal,
    )
    console.out().print(f"preprocessed: {result.folder}, plans {result.plans}", markup=False)


def train(
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--show", help="Show the resolved configuration and exit.")] = False,
) -> None:
    """Train a model with nnU-Net.

    After a few steps, the log shows how long the training will take; within an epoch, it has a line every 30 seconds.
    If training is interrupted, run the same command with resume=true; at most one epoch is lost.
    """
    from droneseg.training.config import load_config

    config = load_config(overrides or [])
    if show:
        shown = config.model_dump(mode="json", exclude={"trainer"})
        console.show_json(shown | config.trainer.model_dump(mode="json", exclude={"bf16", "tracked"}))
        return
    console.require_nnunet()
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.run import train

    settings = console.settings()
    key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key else None
    with _step_bar():
        result = train(config, NnunetPaths.from_settings(settings), wandb_key=key)
    mean_dice = result.mean_validation_dice
    dice = f", mean validation Dice {mean_dice:.3f}" if mean_dice is not None else ""
    console.out().print(f"trained: {result.model_folder}{dice}", markup=False)
    console.show_next("export", "--from", result.model_folder)


@contextmanager
def _step_bar() -> Iterator[None]:
    """Show a progress bar with the steps of an epoch on a terminal; log lines appear above it."""
    if not console.err().is_terminal:
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from droneseg.nnunet.callbacks import step_logger

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console.err(), transient=True) as progress, _logs_above_bar():
        handler = _StepBar(progress)
        before = step_logger.level, step_logger.propagate
        step_logger.addHandler(handler)
        step_logger.setLevel(logging.INFO)
        step_logger.propagate = False
        try:
            yield
        finally:
            step_logger.removeHandler(handler)
            step_logger.setLevel(before[0])
            step_logger.propagate = before[1]


class _StepBar(logging.Handler):
    """Log handler that updates a progress bar with the attribute `bar` of the trainer's records."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._task: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show the step of a record."""
        from droneseg.nnunet.callbacks import duration

        bar = record.bar  # type: ignore[attr-defined]  # set by the trainer
        if self._task is None:
            self._task = self._progress.add_task("", left="")
        left = "" if bar["remaining_s"] is None else f"about {duration(bar['remaining_s'])} left"
        description = f"epoch {bar['epoch']}/{bar['epochs']}"
        self._progress.update(self._task, completed=bar["step"], total=bar["steps"], description=description, left=left)


@contextmanager
def _logs_above_bar() -> Iterator[None]:
    """Redirect droneseg's log to rich's replacement of stderr, and leave out the lines within an epoch."""
    handlers = [h for h in logging.getLogger("droneseg").handlers if type(h) is logging.StreamHandler]
    before = [handler.stream for handler in handlers]

    def outside_epoch(record: logging.LogRecord) -> bool:
        return not hasattr(record, "bar")

    for handler in handlers:
        handler.setStream(sys.stderr)
        handler.addFilter(outside_epoch)
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)
            handler.removeFilter(outside_epoch)


def sweep(
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials to finish, including earlier runs.")] = 20,
    config: Annotated[Path | None, typer.Option(help="Search space; default: configs/sweep.yaml.")] = None,
    name: Annotated[str, typer.Option(help="Name of the study; the name of an earlier study resumes it.")] = "sweep",
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database shared by several machines, such as postgresql://..."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: runs/sweeps/NAME.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the search.")] = 0,
    wandb_file: Annotated[
        Path | None,
        typer.Option(help="Write the search space as a W&B sweep file and exit."),
    ] = None,
    json: Json = False,
) -> None:
    """Search for better training settings with Optuna.

    The first trial uses the preset unchanged. Unpromising trials are stopped early. If the sweep is interrupted, run
    the same command again; at most one epoch is lost.
    """
    from droneseg.training.search_space import load_sweep

    search = load_sweep(config, overrides or [])
    if wandb_file:
        _write_wandb_sweep(search, wandb_file)
        return
    console.require_nnunet()
    from droneseg.nnunet.paths import NnunetPaths
    from droneseg.training.sweep import run_sweep
    from droneseg.training.sweep_plot import plot_sweep

    def show_trial(trial: Trial, finished: int) -> None:
        outcome = f"Dice {console.number(trial.dice)}" if trial.error is None else trial.error
        console.err().print(f"{finished}/{trials}  trial {trial.number} {trial.state}: {outcome}", markup=False)

    out = out or Path("runs/sweeps") / name
    paths = NnunetPaths.from_settings(console.settings())
    result = run_sweep(search, paths, out, name=name, trials=trials, storage=storage, seed=seed, on_trial=show_trial)
    plot_sweep(result, out / "sweep.png")
    if json:
        console.show_json(result)
    else:
        _show_sweep(result, search.space, out)


def _write_wandb_sweep(search: SweepConfig, file: Path) -> None:
    import yaml

    from droneseg.core.files import write_text
    from droneseg.training.search_space import wandb_sweep

    write_text(file, yaml.safe_dump(wandb_sweep(search), sort_keys=False))
    console.out().print(
        f"{file}: run `{shlex.join(['wandb', 'sweep', str(file)])}`, then `wandb agent ID` on each machine",
        markup=False,
    )


def _show_sweep(result: SweepResult, keys: Iterable[str], out: Path) -> None:
    rows = [
        [
            f"{trial.number}{' (preset)' if trial.preset else ''}",
            trial.state,
            console.number(trial.dice),
            str(len(trial.dices)),
            f"{trial.seconds:.0f}",
            ", ".join(f"{key}={_format_value(trial.values.get(key))}" for key in keys),
        ]
        for trial in result.trials
    ]
    columns = ["trial", "state", "Dice", "epochs", "seconds", "values"]
    table = console.table(f"{result.name}, best trial first", columns, rows)
    table.columns[-1].justify = "left"
    console.out().print(table)
    console.out().print(f"plot: {out / 'sweep.png'}", markup=False)
    if result.command:
        console.out().print(f"best: droneseg train {shlex.join(result.command)}", markup=False)


def _format_value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def export(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="nnU-Net's model folder; default: the only one in nnUNet_results."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; default: $DRONESEG_MODEL.")] = None,
    checkpoint: Annotated[str, typer.Option(help="File name of the checkpoint in each fold.")] = "checkpoint_final.pth",
    fold: Annotated[
        list[str] | None,
        typer.Option(
            help="Fold to export, a number or `all`, repeatable; default: the average of all numbered folds, or else "
            "fold_all."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Add a profile with a calibrated INT8 network.")] = False,
    default_profile: Annotated[str, typer.Option(help="Default profile of the bundle.")] = "fast",
    licence: Annotated[
        str, typer.Option("--license", help="Licence of the weights.")
    ] = "the terms of the data it was trained on",
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Class table of the bundle (CSV: id,name,r,g,b,role), with the names and ids of the model's "
            "dataset.json; with --map, the table with the classes to map to."
        ),
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FROM=TO,...",
            help="Rename classes of the model, and merge classes of the same new name inside the graph; repeatable. "
            "Others keep their name. The new names are those of --classes; default: Kaggle's five classes.",
        ),
    ] = None,
    train_gsd: console.TrainGsd = None,
    train_gsd_range: console.TrainGsdRange = None,
    train_gsd_source: console.TrainGsdSource = None,
    best_scales: console.BestScales = None,
    twin: console.Twin = None,
    images: Annotated[int, typer.Option(min=4, help="Maximum number of images to measure the profiles on.")] = 8,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    no_postprocessing: Annotated[
        bool, typer.Option("--no-postprocessing", help="Export without the postprocessing that nnU-Net found useful.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a checkpoint that can run code. Use only if you trust its source.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False,
) -> None:
    """Export a trained model to a bundle for inference.

    The bundle needs neither torch nor nnU-Net. Its masks are compared with those of nnU-Net's own predictor, and every
    profile is measured on the validation images; --gsd, --height and --plain apply to them. With --train-gsd, images
    are resampled to the ground resolution of the training images.

    nnU-Net stores neither colours nor roles of classes; --classes adds them. With
    `--map road=landing-zones,car=moving-objects`, a model of other classes predicts Kaggle's. The probability of a
    merged class is the sum of those of its classes; the profile exact keeps nnU-Net's own choice, with the new names.
    """
    from droneseg.core.files import check_writable
    from droneseg.model.bundle import MANIFEST_NAME

    ground = console.training_ground(train_gsd, train_gsd_range, train_gsd_source)
    further = console.profile_options(best_scales, twin)
    view = console.view_options(gsd, height, plain=plain)
    pairs = _name_pairs(class_map or [])
    colours = console.mask_colours(classes)
    settings = console.settings()
    target = out or settings.model
    check_writable(target, marker=MANIFEST_NAME, replace=force)
    console.require_nnunet()
    from droneseg.flows.profiles import choose_profiles
    from droneseg.nnunet.paths import NnunetPaths, fold_files

    choose_profiles(default_profile, int8=int8)
    paths = NnunetPaths.from_settings(settings)
    model_folder = source or _only_trained_model(paths)
    folds = _fold_names(fold)
    files = fold_files(model_folder, checkpoint, folds)
    if not folds and (model_folder / "fold_all" / checkpoint).is_file() and files[0].parent.name != "fold_all":
        console.err().print("note: fold_all is left out; export it with --fold all", markup=False)
    from droneseg.flows.export import export_model  # imports torch, which takes seconds

    with console.step_progress() as (on_step, progress):
        bundle = export_model(
            model_folder,
            paths,
            target,
            checkpoint=checkpoint,
            folds=folds,
            trust=trust,
            apply_postprocessing=not no_postprocessing,
            int8=int8,
            default_profile=default_profile,
            classes=colours.classes if colours else None,
            mapping=pairs,
            licence=licence,
            ground=ground,
            further=further,
            view=view,
            images=images,
            on_step=on_step,
            progress=progress,
        )
    _upload_bundle(bundle, model_folder)
    if json:
        console.show_json(bundle.manifest.model_dump(mode="json"))
    else:
        _show_bundle(bundle)


def _name_pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of names in values such as `road=landing-zones,car=moving-objects`.

    Raises:
        typer.BadParameter: If a part is not a pair of names.
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    pairs = [(before.strip(), after.strip()) for before, _, after in (part.partition("=") for part in parts)]
    if wrong := [part for part, names in zip(parts, pairs, strict=True) if not all(names) or part.count("=") > 1]:
        raise typer.BadParameter(f"{', '.join(map(repr, wrong))} is not of the form FROM=TO", param_hint="--map")
    return pairs


def _fold_names(names: list[str] | None) -> tuple[FoldName, ...] | None:
    """Return the folds that are named.

    Raises:
        typer.BadParameter: If a name is neither a number nor `all`.
    """
    if wrong := [name for name in names or () if name != "all" and not name.isdecimal()]:
        raise typer.BadParameter(f"{wrong[0]!r} is not a fold; use a number or all", param_hint="--fold")
    return tuple("all" if name == "all" else int(name) for name in names) if names else None


def _only_trained_model(paths: NnunetPaths) -> Path:
    """Return the folder of the only trained model.

    Raises:
        ModelError: If there are none or several.
    """
    from droneseg.nnunet.paths import trained_folders

    folders = trained_folders(paths.results)
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise ModelError(f"No trained model in {paths.results}. Train one with `droneseg train`.")
    names = "".join(f"\n  - {folder}" for folder in folders)
    raise ModelError(f"Several trained models in {paths.results}. Choose one with --from:{names}")


def _upload_bundle(bundle: Bundle, model_folder: Path) -> None:
    """Upload the bundle to W&B if the training was tracked; a failed upload is only reported."""
    from droneseg.model.bundle import MANIFEST_NAME
    from droneseg.nnunet.wandb_logger import choose_mode, send_bundle

    key = console.settings().wandb_api_key
    choose_mode("auto", api_key=key.get_secret_value() if key else None)
    provenance = bundle.manifest.provenance
    try:
        run = send_bundle(
            model_folder / f"fold_{provenance.folds[0]}",
            bundle.folder,
            [MANIFEST_NAME, *bundle.manifest.files],
            bundle.manifest.model_dump(mode="json"),
            name=f"bundle-{provenance.configuration}",
        )
    except DronesegError as error:
        console.err().print(f"note: the bundle was not uploaded to W&B: {error}", markup=False)
        return
    if run:
        console.err().print(f"note: the bundle was uploaded to W&B as an artifact of run {run}", markup=False)


def _show_bundle(bundle: Bundle) -> None:
    from droneseg.model.bundle import NOT_MEASURED

    manifest = bundle.manifest
    rows = [
        [
            f"{name}{' (default)' if name == manifest.default_profile else ''}",
            console.percent(profile.figures["agreement_with_exact"], 2),
            console.number(profile.figures.get("miou")),
        ]
        for name, profile in manifest.profiles.items()
    ]
    quality = manifest.quality or {}
    title = f"measured on: {quality['data']}" if "miou" in quality else NOT_MEASURED
    console.out().print(console.table(title, ["profile", "agreement with exact", "mIoU"], rows))
    console.out().print(f"{bundle.folder}: model {bundle.model_id}, {manifest.description}", markup=False)
