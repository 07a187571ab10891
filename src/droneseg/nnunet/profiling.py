"""Where the time of an iteration goes: PyTorch's profiler over a few of them, as a trace and a short table."""

import logging
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from droneseg.core.files import write_text

logger = logging.getLogger("droneseg.nnunet.trainer")

PROFILE_FOLDER = "profile"
TRACE_NAME = "trace.json"
TABLE_NAME = "table.txt"

_SKIPPED = 2  # the first iterations allocate and compile
_PROFILED = 5
_ROWS = 12
_FORWARD, _STEP, _OPTIMISER = "forward", "iteration", "Optimizer.step"


class Profiler:
    """Watches up to five iterations of one epoch of a training, once; its validation is left out.

    On a GPU each part waits for what it launched, or the parts would say how long launching takes.

    Args:
        folder: Of the fold; trace and table go into `profile/` in it.
        network: Whose forward pass is told apart.
    """

    def __init__(self, folder: Path, network: Any) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells of every GPU that is not there
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
        """Run one iteration; nothing is measured before and after the few that are."""
        if self._profile is None:
            yield
            return
        if self._seen == _SKIPPED:
            self._profile.start()
        elif self._ended_s is not None:
            self._waits_s.append(time.perf_counter() - self._ended_s)
        self._inside = True
        with self._record(_STEP):
            yield
            settle()
        self._inside = False
        self._seen += 1
        self._ended_s = time.perf_counter() if self._seen > _SKIPPED else None
        if self._seen == _SKIPPED + _PROFILED:
            self.close()

    def close(self) -> None:
        """Write what was measured, if anything was, and measure no more."""
        if self._profile is None:
            return
        if self._seen > _SKIPPED:
            self._profile.stop()
            self._write()
        for hook in self._hooks:
            hook.remove()
        self._profile = None

    def _label_forward(self, network: Any) -> list[Any]:
        """Make the forward pass of an iteration a labelled part of the trace."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        labels: list[Any] = []

        def begin(*_: Any) -> None:
            if self._inside:
                settle()
                labels.append(self._record(_FORWARD))
                labels[-1].__enter__()
            elif self._seen > _SKIPPED:
                self.close()  # the validation begins

        def end(*_: Any) -> None:
            if labels:
                settle()
                labels.pop().__exit__(None, None, None)

        return [
            network.register_forward_pre_hook(begin),
            network.register_forward_hook(end),
            register_optimizer_step_post_hook(lambda *_: settle()),
        ]

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._folder / TRACE_NAME))
        averages = self._profile.key_averages()
        count = self._seen - _SKIPPED
        # one wait fewer than iterations
        parts = _parts(averages, count * statistics.fmean(self._waits_s) if self._waits_s else 0.0)
        whole = sum(parts.values())
        lines = [f"{count} iterations, {whole / count:.3f} s each", ""]
        lines += [f"{name:<24}{value / count:9.3f} s  {value / whole:6.1%}" for name, value in parts.items()]
        lines += ["", "The operations that compute longest:", averages.table(sort_by=_own_time(), row_limit=_ROWS)]
        write_text(self._folder / TABLE_NAME, "\n".join(lines) + "\n")
        logger.info("profile: %s, and %s for chrome://tracing", self._folder / TABLE_NAME, TRACE_NAME)
        for line in filter(None, lines[: 2 + len(parts)]):
            logger.info("%s", line)


def settle() -> None:
    """Wait for what a GPU still computes; does nothing without one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parts(averages: Any, waited_s: float) -> dict[str, float]:
    """Return the seconds of each part of the iterations that were measured."""
    seconds = {event.key: event.cpu_time_total / 1e6 for event in averages}
    forward, step = seconds.get(_FORWARD, 0.0), seconds[_STEP]
    optimiser = sum(value for key, value in seconds.items() if key.startswith(_OPTIMISER))
    return {
        "waiting for data": waited_s,
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
