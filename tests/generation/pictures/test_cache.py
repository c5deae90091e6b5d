"""What graphs made of the last pictures: bounded in bytes, least recently used first, and computed once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.generation.pictures.cache import Computed, PictureCache
from sts_export.generation.timing import PictureTimes
from tests.support.scheduling.gates import PATIENCE, until

FEATURES, CHOICE = "vision_encoder", "selector"


def computed(size: int) -> Computed:
    return Computed({"visual_features": np.zeros(size, np.uint8)}, PictureTimes(vision=1.0, select=2.0))


def refused() -> Computed:
    raise AssertionError("it was there")


def has(cache: PictureCache, key: str, graph: str = FEATURES) -> bool:
    return (graph, key) in cache._entries


def test_the_least_recently_used_go() -> None:
    cache = PictureCache(30)
    for key in "abc":
        cache.outputs(FEATURES, key, lambda: computed(10))
    cache.outputs(FEATURES, "a", refused)
    cache.outputs(FEATURES, "d", lambda: computed(15))
    assert [key for key in "abcd" if has(cache, key)] == ["a", "d"] and cache.bytes == 25


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = PictureCache(30)
    cache.outputs(FEATURES, "a", lambda: computed(10))
    assert cache.outputs(FEATURES, "b", lambda: computed(31)).bytes == 31
    assert has(cache, "a") and not has(cache, "b") and cache.bytes == 10


def test_graphs_share_the_bytes_but_no_keys() -> None:
    cache = PictureCache(30)
    cache.outputs(FEATURES, "a", lambda: computed(20))
    assert cache.outputs(CHOICE, "a", lambda: computed(5)).bytes == 5
    assert cache.bytes == 25 and cache.lookups(FEATURES) == cache.lookups(CHOICE) == (0, 1)
    cache.outputs(CHOICE, "b", lambda: computed(6))
    assert not has(cache, "a") and cache.bytes == 11


@given(st.integers(0, 40), st.lists(st.tuples(st.sampled_from([FEATURES, CHOICE]), st.integers(0, 12)), max_size=60))
def test_no_more_bytes_than_allowed(most: int, asked: list[tuple[str, int]]) -> None:
    """Against a list that is searched from its end, for as many of the last used as fit."""
    cache, used = PictureCache(most), OrderedDict[tuple[str, int], None]()
    for graph, size in asked:
        cache.outputs(graph, str(size), lambda size=size: computed(size))  # type: ignore[misc]
        if size <= most:
            used[graph, size] = None
            used.move_to_end((graph, size))
        while sum(size for _, size in used) > most:
            used.popitem(last=False)
        assert list(cache._entries) == [(graph, str(size)) for graph, size in used]
        assert cache.bytes == sum(entry.bytes for entry in cache._entries.values()) <= most


def test_bytes_are_all_that_is_kept_in_memory() -> None:
    """Rows of a larger array would keep all of it; and an engine's memory would be the engine's."""
    whole = np.arange(1000, dtype=np.int64)
    views: dict[str, Any] = {"rows": whole[:3], "turned": whole.reshape(10, 100).T, "steps": whole[::500]}
    views["own"] = np.zeros(3, np.int8)
    cache = PictureCache(1 << 20)
    made = cache.outputs(CHOICE, "a", lambda: Computed(views))
    for name, array in cache.outputs(CHOICE, "a", refused).outputs.items():
        assert array.flags.owndata and array is made.outputs[name]
        np.testing.assert_array_equal(array, views[name])
    assert cache.bytes == 8 * (3 + 1000 + 2) + 3


def test_nobody_writes_to_what_others_find() -> None:
    cache = PictureCache(30)
    made = cache.outputs(FEATURES, "a", lambda: computed(10))
    for entry in (made, cache.outputs(FEATURES, "a", refused)):
        with pytest.raises(ValueError, match="read-only"):
            entry.outputs["visual_features"][0] = 1


def test_times_of_what_is_found_are_those_that_are_saved() -> None:
    cache = PictureCache(30)
    assert cache.outputs(FEATURES, "a", lambda: computed(10)).times == PictureTimes(1.0, 2.0)
    for _ in range(2):
        times = cache.outputs(FEATURES, "a", refused).times
        assert times.vision > 0 and times == PictureTimes(times.vision, 0.0, 1.0, 2.0)


def test_what_fails_is_computed_the_next_time() -> None:
    cache = PictureCache(30)

    def fails() -> Computed:
        raise RuntimeError("the engine failed")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="the engine failed"):
            cache.outputs(FEATURES, "a", fails)
    cache.outputs(FEATURES, "a", lambda: computed(10))
    assert cache.lookups(FEATURES) == (0, 3) and has(cache, "a") and cache._pending == {}


@pytest.mark.parametrize("size", [10, 31], ids=["kept", "too large to be kept"])
def test_threads_wait_for_the_one_that_computes(size: int) -> None:
    cache, go, runs = PictureCache(30), threading.Event(), list[int]()
    found: list[Any] = []

    def compute() -> Computed:
        runs.append(1)
        assert go.wait(PATIENCE)
        return computed(size)

    workers = [threading.Thread(target=lambda: found.append(cache.outputs(FEATURES, "a", compute))) for _ in range(8)]
    for worker in workers:
        worker.start()
    until(lambda: len(runs) == 1)
    cache.outputs(FEATURES, "b", lambda: computed(1))  # nobody waits for another picture
    go.set()
    for worker in workers:
        worker.join(PATIENCE)
    if size > 30:  # whoever comes after the first has ended computes it again, once for all that wait then
        assert 1 <= len(runs) <= 8 and not has(cache, "a")
    else:
        assert len(runs) == 1 and cache.lookups(FEATURES) == (7, 2)
    assert [one.bytes for one in found] == [size] * 8 and cache._pending == {}


def test_a_thread_that_waited_for_a_failure_computes_it_itself() -> None:
    cache, go, runs = PictureCache(30), threading.Event(), list[str]()
    ends: list[str] = []

    def compute() -> Computed:
        runs.append("run")
        assert go.wait(PATIENCE)
        if len(runs) == 1:
            raise RuntimeError("the engine failed")
        return computed(10)

    def work() -> None:
        try:
            cache.outputs(FEATURES, "a", compute)
            ends.append("found")
        except RuntimeError:
            ends.append("failed")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    until(lambda: len(runs) == 1)
    go.set()
    for worker in workers:
        worker.join(PATIENCE)
    assert sorted(ends) == ["failed", "found", "found", "found"] and len(runs) == 2
