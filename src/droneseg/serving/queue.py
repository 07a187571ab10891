"""Work queue limited by estimated processing time. Cancelled jobs are removed."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from droneseg.core.errors import NotReadyError, QueueFullError, TooLateError

logger = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")

_DECAY = 0.9  # weight of the earlier measurements when a new one is added
_MAX_SLOWDOWN = 4  # limits the measured time relative to the estimate, because it may include a compilation


@dataclass(eq=False)
class _Job(Generic[Input, Output]):
    """Input of one job, its size and the future of its result."""

    work: Input
    size: float
    admitted_at: float
    deadline: float
    future: Future[Output] = field(default_factory=Future)
    started: bool = False


class _ThroughputEstimate:
    """Exponentially weighted mean of the seconds per unit of work."""

    def __init__(self, seconds_per_unit: float) -> None:
        self._seconds, self._units = seconds_per_unit, 1.0

    def update(self, seconds: float, units: float) -> None:
        """Add a measurement: the time one job took and its size."""
        seconds = min(seconds, _MAX_SLOWDOWN * units * self.seconds_per_unit)
        # a ratio of sums, so that large jobs weigh more than small ones
        self._seconds = _DECAY * self._seconds + (1 - _DECAY) * seconds
        self._units = _DECAY * self._units + (1 - _DECAY) * units

    @property
    def seconds_per_unit(self) -> float:
        """Estimated seconds per unit of work."""
        return self._seconds / self._units


class AdmissionController(Generic[Input, Output]):
    """Limits the unfinished jobs by their estimated processing time. Thread-safe.

    Args:
        limit_s: Largest estimated time of all unfinished jobs. A request of any size is admitted when there are none.
        seconds_per_unit: Initial estimate of the seconds per unit of work.
        clock: Function that returns the current time in seconds.
    """

    def __init__(self, *, limit_s: float, seconds_per_unit: float, clock: Callable[[], float]) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._throughput = _ThroughputEstimate(seconds_per_unit)
        self._jobs: dict[_Job[Input, Output], None] = {}  # as an ordered set
        self._busy_since = 0.0
        self._closed = False
        self._lock = threading.RLock()

    @property
    def waiting(self) -> int:
        """Number of admitted jobs that have not started."""
        with self._lock:
            return sum(not job.started for job in self._jobs)

    @property
    def seconds(self) -> float:
        """Estimated processing time of all unfinished jobs."""
        with self._lock:
            # summed on every call: a running sum of floats accumulates rounding errors
            return self.estimate_s(sum(job.size for job in self._jobs))

    def estimate_s(self, size: float) -> float:
        """Return the estimated processing time of work of this size."""
        return size * self._throughput.seconds_per_unit

    def reset_rate(self, seconds_per_unit: float) -> None:
        """Replace the measured rate, for example because the model changed."""
        with self._lock:
            self._throughput = _ThroughputEstimate(seconds_per_unit)

    def check_capacity(self, size: float = 0.0) -> None:
        """Raise if work of this size cannot be admitted now.

        Raises:
            QueueFullError: If the estimated processing time would exceed the limit.
            NotReadyError: If the controller is closed.
        """
        with self._lock:
            if self._closed:
                raise NotReadyError("The service is shutting down. Retry with another instance.")
            if not self._jobs:
                return
            queued_s = self.seconds
            total_s = queued_s + self.estimate_s(size)
            if total_s > self._limit_s:
                raise QueueFullError(
                    f"The queue holds {queued_s:.1f} s of work; the limit is {self._limit_s:g} s. Retry later.",
                    retry_after_s=max(1.0, total_s - self._limit_s),
                )

    def admit(self, jobs: Sequence[_Job[Input, Output]]) -> None:
        """Admit all jobs or none; see `check_capacity` for the errors."""
        with self._lock:
            self.check_capacity(sum(job.size for job in jobs))
            if not self._jobs:
                self._busy_since = self._clock()
            self._jobs.update(dict.fromkeys(jobs))

    def start(self, job: _Job[Input, Output]) -> bool:
        """Mark a job as running. Return False if it was cancelled or removed."""
        with self._lock:
            job.started = job in self._jobs and job.future.set_running_or_notify_cancel()
            return job.started

    def finish(self, job: _Job[Input, Output], *, successful: bool) -> None:
        """Remove a job and update the rate if it was successful."""
        with self._lock:
            now = self._clock()
            self.remove(job)
            if successful:
                self._throughput.update(now - self._busy_since, job.size)
            self._busy_since = now

    def remove(self, job: _Job[Input, Output]) -> None:
        """Remove a job, if it has not been removed already."""
        with self._lock:
            self._jobs.pop(job, None)

    def close(self) -> None:
        """Reject further jobs."""
        with self._lock:
            self._closed = True

    def unfinished(self) -> list[_Job[Input, Output]]:
        """Return the admitted jobs that have not finished, in order of admission."""
        with self._lock:
            return list(self._jobs)


class WorkQueue(Generic[Input, Output]):
    """Threads that process the admitted jobs in order.

    Args:
        process: Function of an input and the seconds it waited that returns the result; called from several threads.
        limit_s: Largest estimated time of all unfinished jobs. A request of any size is admitted when there are none.
        timeout_s: Time after admission by which a job must be finished; a job that would finish later is not started.
        workers: Number of threads. With two, one image is decoded while the network processes another.
        seconds_per_unit: Initial estimate of the seconds per unit of work.
        clock: Function that returns the current time in seconds.
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
        self._process, self._timeout_s, self._clock = process, timeout_s, clock
        self._admission = AdmissionController[Input, Output](
            limit_s=limit_s, seconds_per_unit=seconds_per_unit, clock=clock
        )
        self._pool = ThreadPoolExecutor(workers, "worker")

    @property
    def waiting(self) -> int:
        """Number of admitted jobs that have not started."""
        return self._admission.waiting

    @property
    def seconds(self) -> float:
        """Estimated processing time of all unfinished jobs."""
        return self._admission.seconds

    def reset_rate(self, seconds_per_unit: float) -> None:
        """Replace the measured rate, for example because the model changed."""
        self._admission.reset_rate(seconds_per_unit)

    def check_capacity(self) -> None:
        """Raise if not even the smallest job can be admitted; called before a request body is read.

        Raises:
            QueueFullError: If the queue is full.
            NotReadyError: If the queue is closed.
        """
        self._admission.check_capacity()

    def submit(self, inputs: Sequence[tuple[Input, float]]) -> list[Future[Output]]:
        """Admit all inputs or none.

        Args:
            inputs: Inputs with their sizes in units of work.

        Returns:
            One future per input. Cancelling a future that has not started removes its job from the queue.

        Raises:
            QueueFullError: If the estimated processing time would exceed the limit.
            NotReadyError: If the queue is closed.
        """
        now = self._clock()
        jobs = [_Job[Input, Output](work, size, now, now + self._timeout_s) for work, size in inputs]
        self._admission.admit(jobs)
        for job in jobs:
            job.future.add_done_callback(partial(self._remove_cancelled, job))
            self._pool.submit(self._run, job)
        return [job.future for job in jobs]

    def stop_accepting(self) -> None:
        """Reject further jobs; admitted jobs are still processed."""
        self._admission.close()

    def close(self, timeout_s: float) -> None:
        """Reject further jobs and wait for the admitted ones; those unfinished after `timeout_s` fail."""
        self.stop_accepting()
        concurrent.futures.wait([job.future for job in self._admission.unfinished()], timeout_s)
        unfinished = self._admission.unfinished()
        for job in unfinished:
            self._admission.remove(job)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for job in unfinished:
            with suppress(InvalidStateError):
                job.future.set_exception(NotReadyError("The service shut down before the request finished. Retry."))

    def _remove_cancelled(self, job: _Job[Input, Output], future: Future[Output]) -> None:
        if future.cancelled():
            self._admission.remove(job)
            del job.work  # the pool keeps the job until a thread is free

    def _run(self, job: _Job[Input, Output]) -> None:
        if not self._admission.start(job):
            return
        error: Exception | None = None
        try:
            error = self._deadline_error(job) or self._try_process(job)
            if error is not None:
                traceback.clear_frames(error.__traceback__)  # its frames reference the image
                with suppress(InvalidStateError):
                    job.future.set_exception(error)
        except BaseException:
            logger.exception("a worker thread failed outside its job")
            raise
        finally:
            del job.work  # the traceback of a failed job still references the job
            self._admission.finish(job, successful=error is None)

    def _deadline_error(self, job: _Job[Input, Output]) -> TooLateError | None:
        """Return an error if the job would not finish before its deadline."""
        now = self._clock()
        estimate_s = self._admission.estimate_s(job.size)
        if now + estimate_s <= job.deadline:
            return None
        return TooLateError(
            f"The request waited {now - job.admitted_at:.1f} s and needs about {estimate_s:.1f} s; the limit is "
            f"{self._timeout_s:g} s. Retry later, send smaller images, or raise DRONESEG_TIMEOUT_SECONDS."
        )

    def _try_process(self, job: _Job[Input, Output]) -> Exception | None:
        """Process a job and return its error, or None.

        This is a function of its own, so that its frame has ended when the caller clears the frames of the traceback.
        """
        try:
            result = self._process(job.work, self._clock() - job.admitted_at)
        except Exception as error:  # noqa: BLE001  # any error is the result of this job
            return error
        with suppress(InvalidStateError):
            job.future.set_result(result)
        return None
