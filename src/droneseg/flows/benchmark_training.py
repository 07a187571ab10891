"""nnU-Net's own trainer beside ours and the pretrained network: seconds per iteration by part, Dice against time."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.system import describe_machine
from droneseg.data.convert import convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import write_samples
from droneseg.nnunet.paths import TRAINER, Layout
from droneseg.training.config import TrainingConfig

_SCENES, _VAL_SCENES = 60, 12
_SIZE = (480, 368)

Report = Callable[[str], None]


def benchmark_training(
    config: TrainingConfig,
    pretrained: TrainingConfig,
    layout: Layout,
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
        layout: nnU-Net's folders. Generated scenes are used if no dataset is preprocessed there.
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
        data, layout = _data(layout, Path(temporary), report)
        trainers: list[dict[str, Any]] = []
        times = []
        for name, trainer, settings in rows:
            report(f"{name}: {iterations} iterations by part")
            times.append(timing.time_iterations(settings, layout, trainer, iterations))
            trainers.append({"name": name, "iteration_s": times[-1].total, "parts_s": times[-1].parts, "dice": []})
        curves = []
        for row, measured, (name, trainer, settings) in zip(trainers if minutes else (), times, rows, strict=False):
            budget = minutes if trainer == timing.STOCK_TRAINER else our_minutes or minutes
            report(f"{name}: training for {budget:g} minutes")
            curves.append(timing.dice_over_time(settings, layout, trainer, minutes=budget, measured=measured))
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


def _data(layout: Layout, temporary: Path, report: Report) -> tuple[str, Layout]:
    """Return what the data is and where; models go to the temporary folder in any case."""
    if layout.plans_file.is_file():
        return str(layout.preprocessed_dataset), replace(layout, results=temporary / "results")
    report("no preprocessed dataset here: generating scenes")
    layout = Layout(temporary / "raw", temporary / "preprocessed", temporary / "results")
    stems = [f"{index:03d}" for index in range(_SCENES)]
    write_samples(temporary / "data", count=_SCENES, size=_SIZE, seed=0)
    split = Split(tuple(stems[:-_VAL_SCENES]), tuple(stems[-_VAL_SCENES:]))
    write_split(split, temporary / "split.json")
    convert_dataset(temporary / "data", layout.raw, split_file=temporary / "split.json", max_pixels=DEFAULT_MAX_PIXELS)
    from droneseg.nnunet.preprocess import preprocess

    preprocess(layout, show_progress=False)
    return "generated scenes, {}x{}".format(*_SIZE), layout
