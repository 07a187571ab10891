"""nnU-Net's own trainer beside ours: seconds per iteration by part, and Dice against time."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.machine import describe_machine
from droneseg.data.convert import convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic.scene import write_samples
from droneseg.nnunet.layout import Layout
from droneseg.training.presets import TrainingConfig

_SCENES, _VAL_SCENES = 60, 12
_SIZE = (480, 368)

Report = Callable[[str], None]


def benchmark_training(
    config: TrainingConfig, layout: Layout, *, iterations: int, minutes: float, report: Report
) -> dict[str, Any]:
    """Measure both trainers on the same plan, data and seed, one after the other.

    Args:
        config: Plan and settings; nnU-Net's own trainer takes the plan only.
        layout: nnU-Net's folders. Generated scenes are used if no dataset is preprocessed there.
        iterations: Measured by part, for each trainer.
        minutes: Trained by each for the Dice; 0 leaves that out.
        report: Told what happens next.

    Returns:
        `machine`, `data`, `configuration` and `trainers`: for each its name, `iteration_s` (median), `parts_s` (medians
        by part) and `dice` (`seconds` since the start and `dice` after each epoch).
    """
    from droneseg.training import timing

    with tempfile.TemporaryDirectory() as temporary:
        data, layout = _data(layout, Path(temporary), report)
        trainers: list[dict[str, Any]] = []
        for name in timing.TRAINERS:
            report(f"{name}: {iterations} iterations by part")
            times = timing.time_iterations(config, layout, name, iterations)
            trainers.append({"name": name, "iteration_s": times.total, "parts_s": times.parts, "dice": []})
        for row in trainers if minutes else ():
            report(f"{row['name']}: training for {minutes:g} minutes")
            epochs = timing.dice_over_time(config, layout, row["name"], minutes=minutes, iteration_s=row["iteration_s"])
            row["dice"] = [asdict(epoch) for epoch in epochs]
    return {
        "machine": describe_machine(),
        "data": data,
        "configuration": config.configuration,
        "trainers": trainers,
    }


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
