"""The graph cache: never over budget, never the pinned, exact keys, and the device's own limit heeded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.runtime.graph_cache import ExactKey, GraphCache, OutOfDeviceMemoryError


@dataclass(eq=False)
class Fake:
    bytes_held: int
    released: bool = False

    def release(self) -> None:
        assert not self.released
        self.released = True


def key(name: object, label: str = "") -> ExactKey:
    return ExactKey(label or str(name), name)


def of(size: int) -> Callable[[], Fake]:
    return lambda: Fake(size)


def refuse() -> Fake:
    raise AssertionError("it was there already")


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60), st.integers(20, 60))
def test_what_is_held_is_counted_and_bounded(calls: list[tuple[int, bool]], budget: int) -> None:
    cache: GraphCache[Fake] = GraphCache(budget)
    made: list[Fake] = []
    pinned: set[int] = set()

    def record(size: int) -> Fake:
        made.append(Fake(size))
        return made[-1]

    for number, pin in calls:
        size = 3 + number
        try:
            if pin and number < 2:
                with cache.pinning():
                    graph = cache.get(key(number), lambda size=size: record(size), size)  # type: ignore[misc]
                pinned.add(number)
            else:
                graph = cache.get(key(number), lambda size=size: record(size), size)  # type: ignore[misc]
        except OutOfDeviceMemoryError:
            pytest.fail("the largest graph fits beside all that may be pinned")
        assert not graph.released
        assert graph.bytes_held == size
        alive = [each for each in made if not each.released]
        assert cache.stats.bytes_held == sum(each.bytes_held for each in alive) <= budget
        assert len(cache) == len(alive)
        assert all(key(each) in cache for each in pinned)
        assert cache.stats.pinned_bytes == sum(3 + each for each in pinned)
    assert cache.stats.misses == len(made)
    assert cache.stats.hits + cache.stats.misses == len(calls)
    assert cache.stats.evictions == sum(each.released for each in made)


def test_keys_of_one_hash_are_told_apart() -> None:
    cache: GraphCache[Fake] = GraphCache()
    assert hash(key(-1)) == hash(key(-2))  # Python's own collision
    first, second = cache.get(key(-1), of(1)), cache.get(key(-2), of(1))
    assert first is not second
    assert cache.get(key(-1), refuse) is first
    assert cache.get(ExactKey("another label", -2), refuse) is second


def test_what_is_dear_to_record_stays() -> None:
    cache: GraphCache[Fake] = GraphCache(100)

    def slow() -> Fake:
        time.sleep(0.05)
        return Fake(40)

    cache.get(key("slow"), slow)
    cache.get(key("quick"), of(40))
    cache.get(key("new"), of(40))
    assert key("slow") in cache
    assert key("quick") not in cache


def test_old_use_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # recording takes 1 s
    cache: GraphCache[Fake] = GraphCache(20)
    cache.get(key("old"), of(10))
    for _ in range(3):
        cache.get(key("old"), refuse)
    for number in range(4):
        cache.get(key(number), of(10))
        assert key("old") in cache, "it was used four times"
    for number in range(4, 8):
        cache.get(key(number), of(10))
    assert key("old") not in cache


def test_a_graph_beyond_the_budget_is_refused_and_released() -> None:
    cache: GraphCache[Fake] = GraphCache(10)
    with cache.pinning():
        cache.get(key("pinned"), of(6))
    graph = Fake(5)
    with pytest.raises(
        OutOfDeviceMemoryError, match="needs 5 bytes; of the budget of 10 bytes for graphs, 6 are pinned"
    ):
        cache.get(key("big"), lambda: graph)
    assert graph.released
    with pytest.raises(OutOfDeviceMemoryError):
        cache.get(key("big"), refuse, expected_bytes=5)  # refused before it is recorded
    cache.release(key("pinned"))
    assert cache.stats.bytes_held == cache.stats.pinned_bytes == 0
    assert cache.get(key("big"), of(5)).bytes_held == 5


def test_a_full_device_shrinks_the_budget_and_says_what_went() -> None:
    cache: GraphCache[Fake] = GraphCache()
    for name in "abc":
        cache.get(key(name, f"bucket {name}"), of(10))
    room = [30]

    def record() -> Fake:
        held = cache.stats.bytes_held
        if held + 15 > room[0]:
            raise RuntimeError("Allocation failed for size::15")
        return Fake(15)

    with pytest.warns(
        RuntimeWarning, match="went for bucket d, to be recorded again when used; graphs may hold 25 bytes"
    ):
        cache.get(key("d", "bucket d"), record)
    assert len(cache.stats.dropped) == 2
    assert all(label.startswith("bucket ") for label in cache.stats.dropped)
    assert cache.stats.bytes_held == cache.budget == 25
    room[0] = 0
    with pytest.raises(OutOfDeviceMemoryError, match="the device has no memory for bucket e: Allocation failed"):
        cache.get(key("e", "bucket e"), record)


def test_another_error_of_recording_is_passed_on_and_leaves_nothing() -> None:
    cache: GraphCache[Fake] = GraphCache()

    def record() -> Fake:
        raise RuntimeError("the capture failed")

    with pytest.raises(RuntimeError, match="the capture failed"):
        cache.get(key("a"), record)
    assert (len(cache), cache.stats.misses, cache.stats.bytes_held) == (0, 0, 0)
    assert cache.get(key("a"), of(3)).bytes_held == 3
