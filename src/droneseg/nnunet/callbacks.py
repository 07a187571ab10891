"""Training callbacks: reports of steps and epochs to the log, a JSON file and W&B, and the profiler."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droneseg.core.classes import ClassTable
from droneseg.core.files import write_text
from droneseg.core.image_files import CASE_SUFFIXES, list_cases
from droneseg.core.images import Image
from droneseg.core.masks import read_mask
from droneseg.core.overlay import blend
from droneseg.nnunet.paths import RECORD_NAME
from droneseg.nnunet.trainer_settings import TrainerSettings
from droneseg.nnunet.wandb_logger import Run, read_config

if TYPE_CHECKING:
    from droneseg.nnunet.optimization import Progress  # imports torch

logger = logging.getLogger("droneseg.nnunet.trainer")

step_logger = logging.getLogger("droneseg-steps")
"""Logger for progress bars, not part of droneseg's log: one record per training step, with the attribute `bar`."""

EPOCHS_NAME = "epochs.json"
"""File next to the checkpoints with the metrics of all epochs, rewritten after each epoch."""
PROFILE_FOLDER = "profile"
TRACE_NAME = "trace.json"
TABLE_NAME = "table.txt"

_LINE_INTERVAL_S = 30
_ESTIMATE_AFTER = 5  # steps; the first ones are slower
_IMAGES = 4
_SKIPPED_ITERATIONS = 2  # the first iterations allocate memory and compile
_PROFILED_ITERATIONS = 5
_TABLE_ROWS = 12
_FORWARD, _STEP, _OPTIMISER = "forward", "iteration", "Optimizer.step"


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        train_loss: Mean loss over the iterations.
        validation_loss: Mean loss on random patches of the validation part.
        dice: nnU-Net's pseudo Dice: mean over the classes, on random patches of the validation part.
        smoothed_dice: Running average of `dice`, by which nnU-Net selects the best checkpoint.
        class_dice: Pseudo Dice by class name; None for a class that occurs in none of the patches.
        learning_rate: Learning rate at the start of the epoch.
        seconds: Duration of the epoch.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    dice: float
    smoothed_dice: float
    class_dice: dict[str, float | None]
    learning_rate: float
    seconds: float


def read_epochs(classes: ClassTable, read: Callable[[str], list[Any]]) -> list[EpochMetrics]:
    """Return the metrics of all epochs from nnU-Net's logger.

    Args:
        classes: Class table of the dataset.
        read: Function that returns a series of nnU-Net's logger by name, with one value per epoch.
    """
    names = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "lrs")
    begins, ends = read("epoch_start_timestamps"), read("epoch_end_timestamps")
    return [
        EpochMetrics(
            number,
            float(train),
            float(validation),
            float(dice),
            float(smoothed),
            {entry.name: _finite(value) for entry, value in zip(classes.foreground, by_class, strict=True)},
            float(rate),
            round(end - begin, 3),
        )
        for number, (train, validation, dice, smoothed, by_class, rate, begin, end) in enumerate(
            zip(*(read(name) for name in names), begins, ends, strict=False), start=1
        )
    ]


class Reporter:
    """Reports one training to the log, a JSON file and W&B.

    Args:
        folder: Folder of the fold, which contains the checkpoints.
        images: Folder of the raw training images.
        classes: Class table of the dataset.
        settings: Settings with epochs, iterations and time budget.
    """

    def __init__(self, folder: Path, images: Path, classes: ClassTable, settings: TrainerSettings) -> None:
        self._folder = folder
        self._classes = classes
        self._images = images
        self._settings = settings
        self._steps = 0  # in this session
        self._last_line_s = time.monotonic()
        self._epoch = 0
        self._run: Run | None = None
        self._profiler: Profiler | None = None

    def begin(self, network: Any, *, tracked: bool, profile: bool) -> None:
        """Start the report of the training, with a W&B run and the profiler if requested.

        Args:
            network: Network to profile.
            tracked: Whether to log to W&B.
            profile: Whether to profile a few iterations.
        """
        self._profiler = Profiler(self._folder, network) if profile else None
        if tracked:
            name = f"{self._folder.parent.name.rsplit('__', 1)[-1]}, {self._folder.name.replace('_', ' ')}"
            self._run = Run(self._folder, name=name, config=read_config(self._folder / RECORD_NAME))

    def iteration(self) -> AbstractContextManager[None]:
        """Return the context manager in which to run an iteration."""
        return self._profiler.iteration() if self._profiler else nullcontext()

    def step_ended(self, progress: Progress, epoch: int, loss: float) -> None:
        """Report a training step to progress bars, and every 30 seconds to the log.

        Args:
            progress: Progress of the training.
            epoch: Number of finished epochs.
            loss: Loss of the step.
        """
        self._steps += 1
        remaining_s = progress.remaining_s(epoch)
        bar = {
            "epoch": epoch + 1,
            "epochs": self._settings.epochs,
            "step": progress.steps,
            "steps": self._settings.iterations,
            "remaining_s": remaining_s,
        }
        step_logger.info("", extra={"bar": bar})
        if remaining_s is None:
            return
        if self._steps == _ESTIMATE_AFTER:
            self._announce(progress, epoch, remaining_s)
        elif time.monotonic() - self._last_line_s >= _LINE_INTERVAL_S:
            logger.info(
                "epoch %d/%d  step %d/%d  loss %.3f  %.2f s per step  about %s left",
                *(bar[name] for name in ("epoch", "epochs", "step", "steps")),
                loss,
                progress.step_s(),
                duration(remaining_s),
                extra={"share_done": progress.share_done(epoch), "bar": bar},
            )
            self._last_line_s = time.monotonic()

    def _announce(self, progress: Progress, epoch: int, remaining_s: float) -> None:
        """Log the expected duration of the rest of the training, and of an epoch."""
        epoch_s = (progress.step_s() or 0.0) * self._settings.iterations + progress.tail_s()
        epochs, minutes = self._settings.epochs - epoch, self._settings.max_minutes
        limited = minutes and epochs * epoch_s > progress.elapsed_s() + remaining_s
        limit = f"in a time budget of {minutes:g} minutes" if limited else f"for {epochs} epochs"
        logger.info(
            "about %s %s, %s for an epoch; Ctrl-C keeps the last finished epoch",
            duration(remaining_s),
            limit,
            duration(epoch_s),
        )
        self._last_line_s = time.monotonic()

    def epoch_ended(self, epochs: list[EpochMetrics], share_done: float) -> None:
        """Report the last epoch.

        Args:
            epochs: Metrics of all epochs so far.
            share_done: Completed fraction of the training, 0 to 1.
        """
        self._last_line_s = time.monotonic()
        last = epochs[-1]
        self._epoch = last.epoch
        write_text(self._folder / EPOCHS_NAME, json.dumps([asdict(epoch) for epoch in epochs], indent=1) + "\n")
        logger.info(
            "epoch %d/%d  loss %.3f  validation loss %.3f  Dice %.3f  %.1f s  %.1f min in total",
            last.epoch,
            self._settings.epochs,
            last.train_loss,
            last.validation_loss,
            last.dice,
            last.seconds,
            sum(epoch.seconds for epoch in epochs) / 60,
            extra={"share_done": share_done},
        )
        if self._run:
            self._run.log(last.epoch, _wandb_metrics(last))

    def end(self, *, failed: bool) -> None:
        """Finish the report: upload validation overlays if requested, and close the run and the profile."""
        if self._profiler:
            self._profiler.close()
        if self._run is None:
            return
        if self._run.wants_images and not failed and (overlays := self._overlays()):
            self._run.log_images(self._epoch, overlays)
        self._run.finish(failed=failed)
        self._run = None

    def _overlays(self) -> dict[str, Image]:
        """Return overlays of a few predicted validation images, by name."""
        overlays = {}
        masks = sorted(file for file in self._folder.glob("validation/*") if file.suffix.lower() in CASE_SUFFIXES)
        images = {image.stem: image for image in list_cases(self._images)} if masks else {}
        for file in masks[:_IMAGES]:
            if file.stem not in images:
                logger.warning("no overlay of %s: its image is not in %s", file.stem, self._images)
                continue
            image, mask = images[file.stem].decode(), read_mask(file, "ids", self._classes)
            overlays[file.stem] = blend(image, mask, self._classes)
        return overlays


def duration(seconds: float) -> str:
    """Return a duration in words of at most two units: `45 s`, `12 min`, `2 h 50 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _wandb_metrics(epoch: EpochMetrics) -> dict[str, float]:
    """Return the metrics of an epoch by their names in W&B."""
    by_class = {f"dice/{name}": value for name, value in epoch.class_dice.items() if value is not None}
    return {
        "loss/train": epoch.train_loss,
        "loss/validation": epoch.validation_loss,
        "dice/mean": epoch.dice,
        "dice/smoothed": epoch.smoothed_dice,
        "learning_rate": epoch.learning_rate,
        "seconds_per_epoch": epoch.seconds,
        **by_class,
    }


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


class Profiler:
    """Profiles up to five training iterations of one epoch with PyTorch's profiler, excluding validation.

    On a GPU, the profiler synchronises after each part; otherwise, it would measure only the kernel launches.

    Args:
        folder: Folder of the fold; the trace and a table are written to its subfolder `profile`.
        network: Network whose forward pass is measured separately.
    """

    def __init__(self, folder: Path, network: Any) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hides warnings about missing GPUs
        from torch.profiler import ProfilerActivity, profile, record_function

        self._folder = folder / PROFILE_FOLDER
        self._seen = 0
        self._waits_s: list[float] = []
        self._ended_s: float | None = None
        self._inside = False
        self._record = record_function
        self._profile: Any = profile(activities=[ProfilerActivity.CPU, *_cuda(ProfilerActivity)], record_shapes=True)
        self._hooks = self._label_forward(network)

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Run one iteration; only the third to the seventh are profiled."""
        if self._profile is None:
            yield
            return
        if self._seen == _SKIPPED_ITERATIONS:
            self._profile.start()
        elif self._ended_s is not None:
            self._waits_s.append(time.perf_counter() - self._ended_s)
        self._inside = True
        with self._record(_STEP):
            yield
            synchronise_gpu()
        self._inside = False
        self._seen += 1
        self._ended_s = time.perf_counter() if self._seen > _SKIPPED_ITERATIONS else None
        if self._seen == _SKIPPED_ITERATIONS + _PROFILED_ITERATIONS:
            self.close()

    def close(self) -> None:
        """Stop profiling and write the results, if there are any."""
        if self._profile is None:
            return
        if self._seen > _SKIPPED_ITERATIONS:
            self._profile.stop()
            self._write()
        for hook in self._hooks:
            hook.remove()
        self._profile = None

    def _label_forward(self, network: Any) -> list[Any]:
        """Label the forward passes of training iterations in the trace; return the hooks."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        labels: list[Any] = []

        def begin(*_: Any) -> None:
            if self._inside:
                synchronise_gpu()
                labels.append(self._record(_FORWARD))
                labels[-1].__enter__()
            elif self._seen > _SKIPPED_ITERATIONS:
                self.close()  # the validation starts

        def end(*_: Any) -> None:
            if labels:
                synchronise_gpu()
                labels.pop().__exit__(None, None, None)

        return [
            network.register_forward_pre_hook(begin),
            network.register_forward_hook(end),
            register_optimizer_step_post_hook(lambda *_: synchronise_gpu()),
        ]

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._folder / TRACE_NAME))
        averages = self._profile.key_averages()
        count = self._seen - _SKIPPED_ITERATIONS
        # there is one wait less than there are iterations
        parts = _parts(averages, count * statistics.fmean(self._waits_s) if self._waits_s else 0.0)
        total = sum(parts.values())
        lines = [f"{count} iterations, {total / count:.3f} s each", ""]
        lines += [f"{name:<24}{value / count:9.3f} s  {value / total:6.1%}" for name, value in parts.items()]
        lines += ["", "The slowest operations:", averages.table(sort_by=_own_time(), row_limit=_TABLE_ROWS)]
        write_text(self._folder / TABLE_NAME, "\n".join(lines) + "\n")
        logger.info("profile: %s and %s, which opens in chrome://tracing", self._folder / TABLE_NAME, TRACE_NAME)
        for line in filter(None, lines[: 2 + len(parts)]):
            logger.info("%s", line)


def synchronise_gpu() -> None:
    """Wait until the GPU has finished, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parts(averages: Any, wait_s: float) -> dict[str, float]:
    """Return the time of each part of the profiled iterations in seconds."""
    seconds = {event.key: event.cpu_time_total / 1e6 for event in averages}
    forward, step = seconds.get(_FORWARD, 0.0), seconds[_STEP]
    optimiser = sum(value for key, value in seconds.items() if key.startswith(_OPTIMISER))
    return {
        "waiting for data": wait_s,
        "forward": forward,
        "loss and backward": max(0.0, step - forward - optimiser),
        "optimiser": optimiser,
    }


def _cuda(activity: Any) -> list[Any]:
    import torch

    return [activity.CUDA] if torch.cuda.is_available() else []


def _own_time() -> str:
    import torch

    return "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
