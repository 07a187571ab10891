"""Work queue bounded in seconds of work."""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from droneseg.core.errors import NotReadyError, QueueFullError, TooLateError

logger = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")

_MEMORY = 0.9  # of what was measured before, kept at each new measurement
_LARGEST_STEP = 4  # times the rate so far, at most, counts of one measurement: a first compilation is no rate


@dataclass(eq=False)
class _Job(Generic[Input, Output]):
    """One piece of work, and where its result goes."""

    work: Input
    size: float
    admitted: float
    deadline: float
    future: "Future[Output]" = field(default_factory=Future)


class _ThroughputEstimate:
    """Seconds of the clock that a unit of work takes, while there is any: a mean that forgets."""

    def __init__(self, seconds_per_unit: float) -> None:
        self._seconds, self._units = seconds_per_unit, 1.0

    def update(self, seconds: float, units: float) -> None:
        """Take in that so much was done in so much time."""
        seconds = min(seconds, _LARGEST_STEP * units * self.seconds_per_unit)
        # what is large counts for more, so sums are kept and not quotients
        self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * seconds
        self._units = _MEMORY * self._units + (1 - _MEMORY) * units

    @property
    def seconds_per_unit(self) -> float:
        """Seconds for a unit."""
        return self._seconds / self._units


class WorkQueue(Generic[Input, Output]):
    """Threads that work through what is admitted, in order.

    Args:
        process: Does one piece of work, given also the seconds it waited; called from several threads.
        limit_s: Work that may wait, in seconds. Without any waiting, one request of any size is admitted.
        timeout_s: Work that would be done later than this after its admission is refused instead.
        workers: Threads. Two overlap what the network does not do, such as decoding, with the network.
        seconds_per_unit: The rate to begin with.
        clock: Of time, in seconds.
    """

    def __init__(
        self,
        process: Callable[[Input, float], Output],
        *,
        limit_s: float,
        timeout_s: float,
        workers: int = 2,
        seconds_per_unit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process, self._clock = process, clock
        self._limit_s, self._timeout_s = limit_s, timeout_s
        self._rate = _ThroughputEstimate(seconds_per_unit)
        self._jobs: deque[_Job[Input, Output]] = deque()
        self._running: list[_Job[Input, Output]] = []
        self._since = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many pieces of work were admitted and are not begun."""
        return len(self._jobs)

    @property
    def seconds(self) -> float:
        """How long the admitted work will take."""
        with self._changed:
            return self._size() * self._rate.seconds_per_unit

    def reset_rate(self, seconds_per_unit: float) -> None:
        """Forget the rate that was measured: what processes has changed."""
        with self._changed:
            self._rate = _ThroughputEstimate(seconds_per_unit)

    def check_capacity(self) -> None:
        """Refuse if not even the smallest piece of work would be admitted now: asked before a request is read.

        Raises:
            QueueFullError: If the queue is full.
            NotReadyError: If it is closed.
        """
        with self._changed:
            self._require_room(0.0)

    def submit(self, works: Sequence[tuple[Input, float]]) -> "list[Future[Output]]":
        """Take work in, all of it or nothing.

        Args:
            works: Pieces of work with their sizes, in units.

        Returns:
            For each its future result. A future that is cancelled is taken out of the queue.

        Raises:
            QueueFullError: If more work than the limit would wait.
            NotReadyError: If the queue is closed.
        """
        now = self._clock()
        jobs = [_Job[Input, Output](work, size, now, now + self._timeout_s) for work, size in works]
        with self._changed:
            self._require_room(sum(job.size for job in jobs))
            if not self._jobs and not self._running:
                self._since = now
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))
        for job in jobs:
            job.future.add_done_callback(self._drop_cancelled)
        return [job.future for job in jobs]

    def stop_accepting(self) -> None:
        """Take nothing more in; what was admitted is still done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Take nothing more in, and wait for what was admitted; what is not done in time is refused."""
        end = self._clock() + timeout_s
        self.stop_accepting()
        for thread in self._threads:
            thread.join(max(0.0, end - self._clock()))
        with self._changed:
            left = [*self._jobs, *self._running]
            self._jobs.clear()
        for job in left:
            with suppress(InvalidStateError):
                job.future.set_exception(NotReadyError("The service stopped before this was done. Send it again."))

    def _size(self) -> float:
        """Return all that is admitted and not done, in units; summed anew, as running sums of floats leave crumbs."""
        return sum(job.size for job in self._jobs) + sum(job.size for job in self._running)

    def _require_room(self, size: float) -> None:
        if self._closed:
            raise NotReadyError("The service is stopping. Send it again, to another instance.")
        if not self._jobs and not self._running:
            return
        seconds = self.seconds + size * self._rate.seconds_per_unit
        if seconds > self._limit_s:
            raise QueueFullError(
                f"There are {self.seconds:.1f} s of work waiting; the limit is {self._limit_s:g} s. Try later.",
                retry_after_s=max(1.0, seconds - self._limit_s),
            )

    def _drop_cancelled(self, future: "Future[Output]") -> None:
        if future.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job.future is not future)

    def _work(self) -> None:
        # a frame of its own for each, so that a worker that waits holds nothing of the last
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        job = self._next()
        if job is None:
            return False
        try:
            self._do(job)
        except BaseException:
            logger.exception("a worker failed outside its work")
            raise
        finally:
            self._finish(job)
        return True

    def _next(self) -> _Job[Input, Output] | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            job = self._jobs.popleft()
            self._running.append(job)
            return job

    def _do(self, job: _Job[Input, Output]) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        now = self._clock()
        needs_s = job.size * self._rate.seconds_per_unit
        if now + needs_s > job.deadline:
            job.future.set_exception(
                TooLateError(
                    f"It waited {now - job.admitted:.1f} s and needs about {needs_s:.1f} s, which is more than "
                    f"{self._timeout_s:g} s. Send it later or in parts, or raise DRONESEG_TIMEOUT_SECONDS."
                )
            )
            return
        error = self._try(job, now - job.admitted)
        if error is not None:
            traceback.clear_frames(error.__traceback__)  # they hold the photograph
            with suppress(InvalidStateError):
                job.future.set_exception(error)

    def _try(self, job: _Job[Input, Output], waited_s: float) -> Exception | None:
        """Do it, or return why not; a frame of its own, as one that still runs cannot be cleared."""
        try:
            result = self._process(job.work, waited_s)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer to this request
            return error
        with suppress(InvalidStateError):
            job.future.set_result(result)
        return None

    def _finish(self, job: _Job[Input, Output]) -> None:
        with self._changed:
            now = self._clock()
            self._running.remove(job)
            del job.work  # the traceback of a failure still holds the job
            if not job.future.cancelled() and job.future.exception() is None:
                self._rate.update(now - self._since, job.size)
            self._since = now
