"""Progress and time of a flow that goes through stages."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

StageReport = Callable[[str, float], None]
"""Called with a stage and the share of it that is done, 0 to 1."""


@dataclass
class StageClock:
    """Tells a stage's progress and keeps its time."""

    report: StageReport
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time a stage; yields a function that takes (done, total)."""
        begin = time.perf_counter()
        self.report(name, 0.0)
        yield lambda done, total: self.report(name, done / total)
        self.seconds[name] = round(time.perf_counter() - begin, 2)
        self.report(name, 1.0)


class TrainingProgress(logging.Handler):
    """Passes on the share of the training that its log records carry."""

    def __init__(self, update: Callable[[int, int], None]) -> None:
        super().__init__(logging.INFO)
        self._update = update

    def emit(self, record: logging.LogRecord) -> None:
        """Read the share, if the record has one."""
        share = getattr(record, "share_done", None)
        if share is not None:
            self._update(round(1000 * share), 1000)
