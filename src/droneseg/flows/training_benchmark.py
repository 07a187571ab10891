"""Training benchmark; benchmark plots."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droneseg.core.errors import MissingDependencyError
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.system import describe_machine
from droneseg.data.convert import convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import write_samples
from droneseg.nnunet.paths import TRAINER, NnunetPaths
from droneseg.training.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCENES, _VAL_SCENES = 60, 12
_SIZE = (480, 368)

Report = Callable[[str], None]


def benchmark_training(
    config: TrainingConfig,
    pretrained: TrainingConfig,
    paths: NnunetPaths,
    *,
    iterations: int,
    minutes: float,
    our_minutes: float | None = None,
    report: Report,
) -> dict[str, Any]:
    """Measure three trainings on the same data and seed, with patches and batches of the same size, one after another.

    Args:
        config: Plan and settings of the first two; nnU-Net's own trainer takes the plan only.
        pretrained: The third; patches, batches and epochs are made those of `config`, so that Dice means the same.
        paths: nnU-Net's folders. Generated scenes are used if no dataset is preprocessed there.
        iterations: Measured by part, for each trainer.
        minutes: Trained by each for the Dice; 0 leaves that out.
        our_minutes: Trained by the second and the third, if they are to end sooner: a schedule that ends early gets
            further in that time than the beginning of a long one.
        report: Told what happens next.

    Returns:
        `machine`, `data`, `configuration` and `trainers`: for each its name, `iteration_s` (median), `parts_s` (medians
        by part), `dice` (`seconds` since the start and `dice` after each epoch), `reached_s`, when it stood where
        nnU-Net's own trainer stands at the end (`target_dice`), and `times_sooner`.
    """
    from droneseg.training import timing

    pretrained = _alike(config, pretrained)
    rows = [(timing.STOCK_TRAINER, timing.STOCK_TRAINER, config), (TRAINER, TRAINER, config)]
    rows.append((f"{TRAINER}, {pretrained.network}", TRAINER, pretrained))
    with tempfile.TemporaryDirectory() as temporary:
        data, paths = _data(paths, Path(temporary), report)
        trainers: list[dict[str, Any]] = []
        times = []
        for name, trainer, settings in rows:
            report(f"{name}: {iterations} iterations by part")
            times.append(timing.time_iterations(settings, paths, trainer, iterations))
            trainers.append({"name": name, "iteration_s": times[-1].total, "parts_s": times[-1].parts, "dice": []})
        curves = []
        for row, measured, (name, trainer, settings) in zip(trainers if minutes else (), times, rows, strict=False):
            budget = minutes if trainer == timing.STOCK_TRAINER else our_minutes or minutes
            report(f"{name}: training for {budget:g} minutes")
            curves.append(timing.dice_over_time(settings, paths, trainer, minutes=budget, measured=measured))
            row["dice"] = [asdict(epoch) for epoch in curves[-1]]
            report(f"{name}: Dice after each epoch " + " ".join(f"{epoch.dice:.3f}" for epoch in curves[-1]))
        target = timing.smoothed_end(curves[0]) if curves else None
        for row, curve in zip(trainers, curves, strict=False):
            reached = timing.time_to_reach(target, curve) if target is not None else None
            row["reached_s"] = reached
            row["times_sooner"] = curves[0][-1].seconds / reached if reached else None
    return {
        "machine": describe_machine(),
        "data": data,
        "configuration": config.configuration,
        "target_dice": target,
        "trainers": trainers,
    }


def _alike(config: TrainingConfig, pretrained: TrainingConfig) -> TrainingConfig:
    """Return the second with patches, batches and epochs of the first."""
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


def _data(paths: NnunetPaths, temporary: Path, report: Report) -> tuple[str, NnunetPaths]:
    """Return what the data is and where; models go to the temporary folder in any case."""
    if paths.plans_file.is_file():
        return str(paths.preprocessed_dataset), replace(paths, results=temporary / "results")
    report("no preprocessed dataset here: generating scenes")
    paths = NnunetPaths(temporary / "raw", temporary / "preprocessed", temporary / "results")
    stems = [f"{index:03d}" for index in range(_SCENES)]
    write_samples(temporary / "data", count=_SCENES, size=_SIZE, seed=0)
    split = Split(tuple(stems[:-_VAL_SCENES]), tuple(stems[-_VAL_SCENES:]))
    write_split(split, temporary / "split.json")
    convert_dataset(temporary / "data", paths.raw, split_file=temporary / "split.json", max_pixels=DEFAULT_MAX_PIXELS)
    from droneseg.nnunet.preprocess import preprocess

    preprocess(paths, show_progress=False)
    return "generated scenes, {}x{}".format(*_SIZE), paths


_OURS, _STOCK, _PRETRAINED = "#0e87cc", "#6b7280", "#c2410c"
_PART_TINTS = ("#94a3b8", "#c084fc", "#0e87cc", "#1e5f8a", "#f59e0b", "#d1d5db")


def plot_benchmark(found: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory of each row of `run_benchmark` into `path` (PNG, SVG or PDF).

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    rows = found["rows"]
    names = [row["name"] for row in rows]
    tints = [_STOCK if name.startswith("stock") else _OURS for name in names]
    figure = _figure(0.45 * len(rows) + 1.4)
    seconds, memory = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    bars = seconds.barh(names, [row["seconds_median"] for row in rows], color=tints)
    labels = [f"{row['seconds_median']:.2f} s   {row['ratio_to_stock_tta']:.1f}x" for row in rows]
    seconds.bar_label(bars, labels, padding=4)
    seconds.set(title="File to mask, log scale; factor against nnU-Net with mirroring", xlabel="seconds", xscale="log")
    seconds.margins(x=0.35)
    seconds.invert_yaxis()
    bars = memory.barh(names, [row["peak_mb"] for row in rows], color=tints)
    memory.bar_label(bars, [f"{row['peak_mb']:.0f}" for row in rows], padding=4)
    memory.set(title="Peak memory", xlabel="MB")
    memory.margins(x=0.25)
    _save(figure, path)


def plot_training_benchmark(found: dict[str, Any], path: Path) -> None:
    """Draw the parts of an iteration and Dice against time of `benchmark_training` into `path` (PNG, SVG or PDF).

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    trainers = found["trainers"]
    names = [row["name"] for row in trainers]
    figure = _figure(3.8)
    figure.suptitle(f"{found['configuration']}, {found['machine']['cores']} cores")
    parts, dice = figure.subplots(1, 2, width_ratios=(1, 1))
    left = [0.0] * len(trainers)
    for part, tint in zip(trainers[0]["parts_s"], _PART_TINTS, strict=False):
        widths = [row["parts_s"][part] for row in trainers]
        parts.barh(names, widths, left=left, color=tint, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    parts.set(title="One iteration", xlabel="seconds")
    parts.invert_yaxis()
    parts.margins(y=0.35)
    parts.legend(loc="lower center", ncols=3, frameon=False, fontsize="small", handlelength=1, columnspacing=0.8)
    for row, tint in zip(trainers, (_STOCK, _OURS, _PRETRAINED), strict=True):
        minutes = [epoch["seconds"] / 60 for epoch in row["dice"]]
        dice.plot(minutes, [epoch["dice"] for epoch in row["dice"]], "o-", markersize=3, color=tint, label=row["name"])
    if found["target_dice"] is not None:
        dice.axhline(found["target_dice"], color=_STOCK, linewidth=0.8, linestyle="--")
    dice.set(title="Patches of the validation part", xlabel="minutes", ylabel="pseudo Dice", ylim=(0, 1))
    dice.set_xlim(left=0)
    dice.legend(loc="lower right", frameon=False)
    _save(figure, path)


def _figure(height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train") from error
    return Figure(figsize=(11, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
