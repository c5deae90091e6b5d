"""CachePool: bounded, nothing lent twice, also while threads and garbage collection give buffers back."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.generation.cache_pool import CachePool


class Buffers:
    """Told apart by identity."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.users = 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("give"), st.integers(1, 12)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=40,
)


@given(most=st.integers(1, 8), steps=STEPS)
def test_it_is_a_bounded_queue(most: int, steps: list[tuple[str, int]]) -> None:
    """Against a list: the longest idle ones are taken first, and go first."""
    pool, idle = CachePool(most), list[Buffers]()
    for step, batch in steps:
        if step == "give":
            given_back = Buffers(batch)
            pool.give(batch, given_back)
            idle.append(given_back)
            while sum(buffers.batch for buffers in idle) > max(batch, most):
                del idle[0]
        elif step == "take":
            expected = next((buffers for buffers in idle if buffers.batch == batch), None)
            assert pool.take(batch) is expected
            if expected is not None:
                idle.remove(expected)
        else:
            assert pool.clear() is bool(idle)
            idle = []
        assert len(pool) == len(idle)


@given(steps=STEPS)
def test_a_closed_pool_keeps_nothing(steps: list[tuple[str, int]]) -> None:
    pool = CachePool(8)
    pool.give(2, Buffers(2))
    pool.close()
    for step, batch in steps:
        if step == "give":
            pool.give(batch, Buffers(batch))
        assert len(pool) == 0 and pool.take(2) is None


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_never_hold_the_same_buffers(hurried: None) -> None:
    pool = CachePool(6)
    problems: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(400):
                batch = 1 + (number + turn) % 3
                buffers = pool.take(batch) or Buffers(batch)
                buffers.users += 1
                if buffers.users != 1 or buffers.batch != batch:
                    problems.append((number, turn, buffers.users, buffers.batch))
                buffers.users -= 1
                pool.give(batch, buffers)
                if turn % 50 == 49:
                    pool.clear()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == [] and not any(thread.is_alive() for thread in threads)
    assert len(pool) <= 6


class Abandoned:
    """Gives buffers back when it is collected, as an abandoned stream does."""

    def __init__(self, pool: CachePool) -> None:
        self.pool = pool
        self.myself = self  # a cycle: only the collector finds it

    def __del__(self) -> None:
        self.pool.give(1, Buffers(1))


class Collecting(int):
    """A number that brings the collector in when it is compared, which the pool does under its lock."""

    def __eq__(self, other: object) -> bool:
        gc.collect()
        return int(self) == other

    __hash__ = int.__hash__


def in_time(work: Callable[[], object]) -> None:
    """A deadlock is a failure."""
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(20)
    assert not worker.is_alive()


def test_garbage_collection_gives_back_in_the_middle_of_a_call() -> None:
    """Of the same thread, which must not wait for itself; what came in is there at once, within the bound."""
    pool = CachePool(3)

    def work() -> None:
        for _ in range(5):
            pool.give(2, Buffers(2))
            Abandoned(pool)
            assert pool.take(Collecting(7)) is None

    gc.disable()  # not before the comparison
    try:
        in_time(work)
    finally:
        gc.enable()
    assert len(pool) == 2  # the last ones of 2 and of 1
    assert pool.take(1) is not None and pool.take(2) is not None and pool.take(1) is None


def test_dropped_buffers_may_give_back_others() -> None:
    """Their destructors run without the lock."""
    pool = CachePool(1)

    class Chained(Buffers):
        def __del__(self) -> None:
            if self.batch:
                pool.give(0, Chained(0))

    def work() -> None:
        pool.give(1, Chained(1))
        pool.give(1, Buffers(1))  # drops the first one

    in_time(work)
    assert isinstance(pool.take(0), Chained) and isinstance(pool.take(1), Buffers)
