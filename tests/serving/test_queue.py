"""Work queue: order, admission, deadlines, cancellation, shutdown."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from droneseg.core.errors import NotReadyError, QueueFullError, TooLateError
from droneseg.serving.queue import WorkQueue
from support.waiting import HANG_S, wait_until


class BlockedProcess:
    """Processing function that waits until it is released."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.released = threading.Event()

    def __call__(self, work: str, _waited_s: float) -> str:
        self.started.append(work)
        assert self.released.wait(HANG_S)
        if work == "bad":
            raise ValueError("bad")
        return work.upper()


class Clock:
    """Clock that only moves when a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def process() -> BlockedProcess:
    return BlockedProcess()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(process: BlockedProcess, clock: Clock) -> Iterator[WorkQueue[str, str]]:
    queue = WorkQueue(process, limit_s=3, timeout_s=10, workers=1, seconds_per_unit=1, clock=clock)
    yield queue
    process.released.set()
    queue.close(HANG_S)


def test_jobs_run_in_order_and_return_their_own_results(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    process.released.set()
    futures = queue.submit([("a", 1), ("b", 1), ("c", 1)])
    assert [future.result(HANG_S) for future in futures] == ["A", "B", "C"]
    assert process.started == ["a", "b", "c"]


def test_error_affects_only_its_own_job(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    process.released.set()
    bad, good = queue.submit([("bad", 1), ("b", 1)])
    with pytest.raises(ValueError, match="bad"):
        bad.result(HANG_S)
    assert good.result(HANG_S) == "B"


def test_full_queue_rejects_with_retry_after(queue: WorkQueue[str, str]) -> None:
    queue.submit([("a", 1), ("b", 1), ("c", 1)])
    queue.check_capacity()  # 3 of 3 seconds: full, but not over
    with pytest.raises(QueueFullError) as caught:
        queue.submit([("d", 2)])
    assert caught.value.retry_after_s == pytest.approx(2)
    assert queue.seconds == pytest.approx(3)


def test_batch_is_admitted_completely_or_not_at_all(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    (first,) = queue.submit([("a", 1)])
    with pytest.raises(QueueFullError):
        queue.submit([("b", 1), ("c", 1), ("d", 1)])
    process.released.set()
    first.result(HANG_S)
    wait_until(lambda: queue.seconds == 0)
    assert process.started == ["a"]


def test_empty_queue_admits_request_of_any_size(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    process.released.set()
    assert [future.result(HANG_S) for future in queue.submit([("a", 4), ("b", 4)])] == ["A", "B"]


def test_finished_jobs_are_freed(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    class Work(str):
        __slots__ = ("__weakref__",)

    process.released.set()
    process.started = EmptyList()  # type: ignore[assignment]
    gc.disable()
    try:
        for text in ("a", "bad"):
            work = Work(text)
            reference = weakref.ref(work)
            (future,) = queue.submit([(work, 1)])
            wait_until(future.done)
            del work
            wait_until(lambda: reference() is None)  # noqa: B023  # called within the loop
    finally:
        gc.enable()


class EmptyList(list[str]):
    """List that keeps no reference to its items."""

    def append(self, work: str) -> None:
        pass


def test_single_slow_job_changes_rate_only_slightly(
    queue: WorkQueue[str, str], process: BlockedProcess, clock: Clock
) -> None:
    (future,) = queue.submit([("a", 1)])
    wait_until(lambda: process.started == ["a"])
    clock.now += 100
    process.released.set()
    future.result(HANG_S)
    wait_until(lambda: queue.seconds == 0)
    process.released.clear()
    queue.submit([("b", 1)])
    assert queue.seconds < 1.5


def test_cancelled_job_is_removed_and_frees_capacity(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    first, second, _third = queue.submit([("a", 1), ("b", 1), ("c", 1)])
    wait_until(lambda: process.started == ["a"])
    assert second.cancel()
    assert queue.waiting == 1
    queue.submit([("d", 1)])
    process.released.set()
    assert first.result(HANG_S) == "A"
    with pytest.raises(CancelledError):
        second.result(HANG_S)
    wait_until(lambda: queue.seconds == 0)
    assert process.started == ["a", "c", "d"]


def test_job_longer_than_timeout_is_not_started(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    (future,) = queue.submit([("a", 11)])
    with pytest.raises(TooLateError, match=r"needs about 11\.0 s; the limit is 10 s"):
        future.result(HANG_S)
    assert process.started == []


def test_job_past_its_deadline_is_not_started(
    queue: WorkQueue[str, str], process: BlockedProcess, clock: Clock
) -> None:
    first, second = queue.submit([("a", 1), ("b", 1)])
    wait_until(lambda: process.started == ["a"])
    clock.now += 9.5  # b would finish at 10.5 s, half a second after its deadline
    process.released.set()
    assert first.result(HANG_S) == "A"
    with pytest.raises(TooLateError, match=r"waited 9\.5 s"):
        second.result(HANG_S)
    assert process.started == ["a"]


def test_rate_follows_measured_durations(queue: WorkQueue[str, str], process: BlockedProcess, clock: Clock) -> None:
    process.released.set()
    for _ in range(60):
        process.released.clear()
        (future,) = queue.submit([("a", 2)])
        wait_until(lambda: len(process.started) and not queue.waiting)
        clock.now += 8
        process.released.set()
        future.result(HANG_S)
        wait_until(lambda: queue.seconds == 0)
    process.released.clear()
    queue.submit([("b", 1)])
    assert queue.seconds == pytest.approx(4, rel=0.05)  # 8 seconds for 2 units


def test_close_finishes_admitted_jobs_and_rejects_new_ones(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    futures = queue.submit([("a", 1), ("b", 1)])
    closing = threading.Thread(target=queue.close, args=(5,))
    closing.start()
    wait_until(lambda: _rejects(queue))
    process.released.set()
    closing.join(HANG_S)
    assert [future.result(0) for future in futures] == ["A", "B"]


def test_close_fails_jobs_unfinished_after_timeout(process: BlockedProcess) -> None:
    queue = WorkQueue(process, limit_s=3, timeout_s=10, workers=1, seconds_per_unit=1)
    jobs = queue.submit([("a", 1), ("b", 1)])
    wait_until(lambda: process.started == ["a"])
    queue.close(0.05)
    for future in jobs:  # also the one that has started
        with pytest.raises(NotReadyError, match="shut down"):
            future.result(0)
    process.released.set()


def _rejects(queue: WorkQueue[str, str]) -> bool:
    try:
        queue.check_capacity()
    except NotReadyError:
        return True
    return False


def test_cancelled_job_is_freed_while_others_run(queue: WorkQueue[str, str], process: BlockedProcess) -> None:
    class Work(str):
        __slots__ = ("__weakref__",)

    work = Work("b")
    reference = weakref.ref(work)
    _running, future = queue.submit([("a", 1), (work, 1)])
    del work
    wait_until(lambda: process.started == ["a"])
    future.cancel()
    gc.collect()
    assert reference() is None
