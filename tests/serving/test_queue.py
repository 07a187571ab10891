"""Work waits its turn, within bounds, and whoever gives up is taken out."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest

from droneseg.core.errors import NotReadyError, QueueFullError, TooLateError
from droneseg.serving.queue import WorkQueue


class Gate:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open = threading.Event()

    def __call__(self, work: str, _waited_s: float) -> str:
        self.begun.append(work)
        assert self.open.wait(10)
        if work == "bad":
            raise ValueError("bad")
        return work.upper()


class Clock:
    """Time that stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(gate: Gate, clock: Clock) -> Iterator[WorkQueue[str, str]]:
    made = WorkQueue(gate, limit_s=3, timeout_s=10, workers=1, seconds_per_unit=1, clock=clock)
    yield made
    gate.open.set()
    made.close(5)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def test_work_is_done_in_order_and_each_gets_its_own_result(queue: WorkQueue[str, str], gate: Gate) -> None:
    gate.open.set()
    futures = queue.submit([("a", 1), ("b", 1), ("c", 1)])
    assert [future.result(5) for future in futures] == ["A", "B", "C"]
    assert gate.begun == ["a", "b", "c"]


def test_a_failure_reaches_only_its_own_request(queue: WorkQueue[str, str], gate: Gate) -> None:
    gate.open.set()
    bad, good = queue.submit([("bad", 1), ("b", 1)])
    with pytest.raises(ValueError, match="bad"):
        bad.result(5)
    assert good.result(5) == "B"


def test_a_full_queue_refuses_and_says_when_to_come_back(queue: WorkQueue[str, str]) -> None:
    queue.submit([("a", 1), ("b", 1), ("c", 1)])
    queue.check_capacity()  # 3 of 3 seconds: full, but not over
    with pytest.raises(QueueFullError) as caught:
        queue.submit([("d", 2)])
    assert caught.value.retry_after_s == pytest.approx(2)
    assert queue.seconds == pytest.approx(3)


def test_a_batch_is_admitted_whole_or_not_at_all(queue: WorkQueue[str, str], gate: Gate) -> None:
    (first,) = queue.submit([("a", 1)])
    with pytest.raises(QueueFullError):
        queue.submit([("b", 1), ("c", 1), ("d", 1)])
    gate.open.set()
    first.result(5)
    until(lambda: queue.seconds == 0)
    assert gate.begun == ["a"]


def test_an_empty_queue_admits_a_request_of_any_size(queue: WorkQueue[str, str], gate: Gate) -> None:
    gate.open.set()
    assert [future.result(5) for future in queue.submit([("a", 4), ("b", 4)])] == ["A", "B"]


def test_nothing_of_what_is_done_stays_in_memory(queue: WorkQueue[str, str], gate: Gate) -> None:
    class Work(str):
        __slots__ = ("__weakref__",)

    gate.open.set()
    gate.begun = Forgetful()  # type: ignore[assignment]
    gc.disable()
    try:
        for text in ("a", "bad"):
            work = Work(text)
            seen = weakref.ref(work)
            (future,) = queue.submit([(work, 1)])
            until(future.done)
            del work
            until(lambda: seen() is None)  # noqa: B023  # called within the loop
    finally:
        gc.enable()


class Forgetful(list[str]):
    """A list that keeps nothing."""

    def append(self, work: str) -> None:
        pass


def test_one_slow_piece_of_work_is_not_yet_the_rate(queue: WorkQueue[str, str], gate: Gate, clock: Clock) -> None:
    (future,) = queue.submit([("a", 1)])
    until(lambda: gate.begun == ["a"])
    clock.now += 100
    gate.open.set()
    future.result(5)
    until(lambda: queue.seconds == 0)
    gate.open.clear()
    queue.submit([("b", 1)])
    assert queue.seconds < 1.5


def test_whoever_hangs_up_is_taken_out_and_makes_room(queue: WorkQueue[str, str], gate: Gate) -> None:
    first, second, _third = queue.submit([("a", 1), ("b", 1), ("c", 1)])
    until(lambda: gate.begun == ["a"])
    assert second.cancel()
    assert queue.waiting == 1
    queue.submit([("d", 1)])
    gate.open.set()
    assert first.result(5) == "A"
    with pytest.raises(CancelledError):
        second.result(5)
    until(lambda: queue.seconds == 0)
    assert gate.begun == ["a", "c", "d"]


def test_what_would_take_too_long_by_itself_is_not_computed(queue: WorkQueue[str, str], gate: Gate) -> None:
    (future,) = queue.submit([("a", 11)])
    with pytest.raises(TooLateError, match=r"needs about 11\.0 s, which is more than 10 s"):
        future.result(5)
    assert gate.begun == []


def test_what_would_be_too_late_is_not_computed(queue: WorkQueue[str, str], gate: Gate, clock: Clock) -> None:
    first, second = queue.submit([("a", 1), ("b", 1)])
    until(lambda: gate.begun == ["a"])
    clock.now += 9.5  # b would be done at 10.5, half a second after its time
    gate.open.set()
    assert first.result(5) == "A"
    with pytest.raises(TooLateError, match=r"waited 9\.5 s"):
        second.result(5)
    assert gate.begun == ["a"]


def test_the_rate_is_learned_from_the_clock(queue: WorkQueue[str, str], gate: Gate, clock: Clock) -> None:
    gate.open.set()
    for _ in range(60):
        gate.open.clear()
        (future,) = queue.submit([("a", 2)])
        until(lambda: len(gate.begun) and not queue.waiting)
        clock.now += 8
        gate.open.set()
        future.result(5)
        until(lambda: queue.seconds == 0)
    gate.open.clear()
    queue.submit([("b", 1)])
    assert queue.seconds == pytest.approx(4, rel=0.05)  # 8 seconds for 2 units


def test_closing_finishes_what_was_admitted_and_takes_no_more(queue: WorkQueue[str, str], gate: Gate) -> None:
    futures = queue.submit([("a", 1), ("b", 1)])
    closing = threading.Thread(target=queue.close, args=(5,))
    closing.start()
    until(lambda: _refuses(queue))
    gate.open.set()
    closing.join(5)
    assert [future.result(0) for future in futures] == ["A", "B"]


def test_what_cannot_be_finished_in_time_is_told_so(gate: Gate) -> None:
    queue = WorkQueue(gate, limit_s=3, timeout_s=10, workers=1, seconds_per_unit=1)
    both = queue.submit([("a", 1), ("b", 1)])
    until(lambda: gate.begun == ["a"])
    queue.close(0.05)
    for future in both:  # that which was begun, too
        with pytest.raises(NotReadyError, match="stopped"):
            future.result(0)
    gate.open.set()


def _refuses(queue: WorkQueue[str, str]) -> bool:
    try:
        queue.check_capacity()
    except NotReadyError:
        return True
    return False
