"""Recorded graphs within a budget of device bytes: exact keys, eviction by what it would cost to record again, pins.

A prompt graph can hold gigabytes and a decode graph megabytes, so graphs are weighed, not counted. The one with the least
`uses * seconds to record / bytes` goes first, where every eviction ages what it leaves behind (GreedyDual-Size-Frequency:
Cherkasova, HP Labs 1998).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gaudicc.errors import DeviceError, Where


class Graph(Protocol):
    """What is cached.

    Attributes:
        bytes_held: bytes of device memory that releasing it gives back.
    """

    bytes_held: int

    def release(self) -> None:
        """Gives its memory back; it is not used afterwards."""
        ...


G = TypeVar("G", bound=Graph)


class ExactKey:
    """A key that is compared by all its parts, and never by its hash alone.

    Attributes:
        label: names it in messages.

    Args:
        label: names it in messages; no part of the key.
        *parts: what a recorded graph depends on.
    """

    __slots__ = ("_hash", "_parts", "label")

    def __init__(self, label: str, *parts: Hashable) -> None:
        self.label, self._parts, self._hash = label, parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, ExactKey) and self._parts == other._parts)


@dataclass
class CacheStats:
    """What a cache did.

    Attributes:
        hits: graphs found.
        misses: graphs recorded, again or for the first time.
        evictions: graphs released to make room.
        seconds: spent recording.
        bytes_held: by all graphs now.
        pinned_bytes: of those that are never evicted.
        dropped: labels of graphs that were released because the device had no memory left, in order.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    seconds: float = 0.0
    bytes_held: int = 0
    pinned_bytes: int = 0
    dropped: list[str] = field(default_factory=list)


@dataclass
class _Entry(Generic[G]):
    graph: G
    seconds: float
    pinned: bool
    uses: int = 1
    worth: float = 0.0


class OutOfDeviceMemoryError(DeviceError):
    """The device, or the budget of its graphs, has no room for a graph."""

    hint = "record fewer or smaller buckets, or give graphs a larger budget"


class GraphCache(Generic[G]):
    """Recorded graphs by key. Not for several threads at once: the device's lock is held around it.

    Attributes:
        budget: most bytes that all graphs may hold; None for no bound. It shrinks when the device runs out before.
        stats: counters.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.stats = CacheStats()
        self._entries: dict[ExactKey, _Entry[G]] = {}
        self._age = 0.0
        self._pinning = False

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: ExactKey) -> bool:
        return key in self._entries

    @contextmanager
    def pinning(self) -> Iterator[None]:
        """A block in which every graph that is recorded or used becomes one that is never evicted."""
        before, self._pinning = self._pinning, True
        try:
            yield
        finally:
            self._pinning = before

    def get(self, key: ExactKey, record: Callable[[], G], expected_bytes: int = 0) -> G:
        """The graph of a key; recorded if it is not there.

        Args:
            key: of the graph.
            record: records it.
            expected_bytes: room is made for so much before it is recorded.

        Raises:
            OutOfDeviceMemoryError: it does not fit even when all is released that may be.
        """
        entry = self._entries.get(key)
        if entry is None:
            return self._record(key, record, expected_bytes)
        self.stats.hits += 1
        entry.uses += 1
        self._appraise(entry)
        if self._pinning and not entry.pinned:
            entry.pinned = True
            self.stats.pinned_bytes += entry.graph.bytes_held
        return entry.graph

    def release(self, key: ExactKey) -> None:
        """Drops a graph, pinned or not, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.stats.bytes_held -= entry.graph.bytes_held
            self.stats.pinned_bytes -= entry.graph.bytes_held if entry.pinned else 0
            entry.graph.release()

    def _record(self, key: ExactKey, record: Callable[[], G], expected_bytes: int) -> G:
        self._make_room(key, expected_bytes)
        dropped = len(self.stats.dropped)
        graph, seconds = self._timed(key, record)
        if len(self.stats.dropped) > dropped:  # the device holds less than was planned
            self.budget = self.stats.bytes_held + graph.bytes_held
            warnings.warn(
                f"the device holds less than was planned: {', '.join(self.stats.dropped[dropped:])} went for {key.label}, "
                f"to be recorded again when used; graphs may hold {self.budget} bytes from now on",
                RuntimeWarning,
                stacklevel=2,
            )
        self.stats.misses += 1
        self.stats.seconds += seconds
        try:
            self._make_room(key, graph.bytes_held)
        except OutOfDeviceMemoryError:
            graph.release()
            raise
        entry = self._entries[key] = _Entry(graph, seconds, self._pinning)
        self.stats.bytes_held += graph.bytes_held
        self.stats.pinned_bytes += graph.bytes_held if entry.pinned else 0
        self._appraise(entry)
        return graph

    def _timed(self, key: ExactKey, record: Callable[[], G]) -> tuple[G, float]:
        """Records, releasing one graph after another while the device has no room."""
        while True:
            started = time.perf_counter()
            try:
                return record(), time.perf_counter() - started
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                dropped = self._evict_one()
                if dropped is None:
                    raise OutOfDeviceMemoryError(
                        f"the device has no memory for {key.label}: {str(error).splitlines()[0]}",
                        where=Where(stage="record"),
                    ) from error
                self.stats.dropped.append(dropped)

    def _make_room(self, key: ExactKey, wanted: int) -> None:
        while self.budget is not None and self.stats.bytes_held + wanted > self.budget:
            if self._evict_one() is None:
                raise OutOfDeviceMemoryError(
                    f"{key.label} needs {wanted} bytes; of the budget of {self.budget} bytes for graphs, "
                    f"{self.stats.pinned_bytes} are pinned",
                    where=Where(stage="record"),
                )

    def _evict_one(self) -> str | None:
        """Releases the graph that is worth least; gives its label, or None if all are pinned."""
        free = [key for key, entry in self._entries.items() if not entry.pinned]
        if not free:
            return None
        least = min(free, key=lambda key: self._entries[key].worth)
        self._age = self._entries[least].worth
        self.release(least)
        self.stats.evictions += 1
        return least.label

    def _appraise(self, entry: _Entry[G]) -> None:
        entry.worth = self._age + entry.uses * entry.seconds / max(entry.graph.bytes_held, 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device raised because its memory is full; the bridge raises a plain RuntimeError."""
    return type(error).__name__ == "OutOfMemoryError" or "Allocation failed" in str(error)


def out_of_memory_behind(error: BaseException) -> BaseException | None:
    """The error of a full device that another one hides, as dynamo's may; the error itself if it is one."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        if is_out_of_memory(at):
            return at
        seen.append(at)
        at = at.__cause__ or at.__context__
    return None
