"""The common form of a modelled and a measured run: what each lane did when; and what is read off it.

A lane is one engine of the chip. A node that is spread over several engines of a kind shows once in each, so times of a kind
are means over its lanes, never sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

KINDS = ("MME", "TPC", "DMA", "NETWORK", "HOST")
_LARGEST = 10
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Activity:
    """One node on one lane.

    Attributes:
        kind: MME, TPC, DMA, NETWORK or HOST.
        lane: the engine's name.
        name: the node.
        start: seconds.
        end: seconds.
        op: what the node computes; the name if nothing better is known.
        bound: `compute` or `memory` where a model says so.
    """

    kind: str
    lane: str
    name: str
    start: float
    end: float
    op: str = ""
    bound: str = ""


@dataclass(frozen=True, slots=True)
class OpTime:
    """Nodes of one op.

    Attributes:
        op: its name.
        kind: the engine.
        count: nodes.
        seconds: time on its engines, mean over their lanes.
        bound: `compute`, `memory`, `mixed`, or nothing where it is not known.
    """

    op: str
    kind: str
    count: int
    seconds: float
    bound: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What is read off one run.

    Attributes:
        title: what ran.
        modelled: whether times come from the machine model; else they were measured.
        window: seconds from the first start to the last end.
        busy: kind -> seconds, mean over its lanes.
        active: kind -> seconds in which any of its lanes works.
        overlap: seconds in which any MME and any TPC work.
        idle: seconds of the window in which nothing works.
        largest: the ten ops with most time.
        bound: seconds that no schedule of these nodes beats; None where it is not known.
    """

    title: str
    modelled: bool
    window: float
    busy: dict[str, float]
    active: dict[str, float]
    overlap: float
    idle: float
    largest: tuple[OpTime, ...]
    bound: float | None = None

    @property
    def overlap_efficiency(self) -> float:
        """Overlap over the active time of the shorter of MME and TPC; 1 if one of them does nothing."""
        shorter = min(self.active.get("MME", 0.0), self.active.get("TPC", 0.0))
        return self.overlap / shorter if shorter else 1.0


def profile_of(activities: Iterable[Activity], title: str, *, modelled: bool, bound: float | None = None) -> Profile:
    """Reads a run.

    Args:
        activities: in any order.
        title: what ran.
        modelled: whether a model gave the times.
        bound: seconds that no schedule beats, if known.

    Returns:
        Busy times, overlap, and the largest ops.
    """
    found = list(activities)
    lanes: dict[str, dict[str, list[Interval]]] = defaultdict(lambda: defaultdict(list))
    for entry in found:
        lanes[entry.kind][entry.lane].append((entry.start, entry.end))
    merged = {kind: {lane: union(spans) for lane, spans in of.items()} for kind, of in lanes.items()}
    busy = {kind: sum(map(length, of.values())) / len(of) for kind, of in merged.items()}
    any_of = {kind: union([span for spans in of.values() for span in spans]) for kind, of in merged.items()}
    start, end = min((e.start for e in found), default=0.0), max((e.end for e in found), default=0.0)
    worked = length(union([span for spans in any_of.values() for span in spans]))
    return Profile(
        title,
        modelled,
        end - start,
        {kind: busy[kind] for kind in KINDS if kind in busy},
        {kind: length(any_of[kind]) for kind in KINDS if kind in busy},
        length(common(any_of.get("MME", []), any_of.get("TPC", []))),
        end - start - worked,
        _largest(found, {kind: len(of) for kind, of in lanes.items()}),
        bound,
    )


def union(spans: Iterable[Interval]) -> list[Interval]:
    """The same instants as intervals that do not touch, in order."""
    result: list[Interval] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        elif end > start:
            result.append((start, end))
    return result


def common(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """Instants in both; each given as `union` returns them."""
    result: list[Interval] = []
    i = j = 0
    while i < len(one) and j < len(other):
        start, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if start < end:
            result.append((start, end))
        if one[i][1] <= other[j][1]:
            i += 1
        else:
            j += 1
    return result


def length(spans: Iterable[Interval]) -> float:
    """Seconds in intervals that do not overlap."""
    return sum(end - start for start, end in spans)


def _largest(found: list[Activity], lanes: dict[str, int]) -> tuple[OpTime, ...]:
    def key(entry: Activity) -> tuple[str, str]:
        return entry.kind, entry.op or entry.name

    times = []
    for (kind, op), group in groupby(sorted(found, key=key), key=key):
        nodes = list(group)
        bounds = {node.bound for node in nodes}
        times.append(
            OpTime(
                op,
                kind,
                len({node.name for node in nodes}),
                sum(node.end - node.start for node in nodes) / lanes[kind],
                bounds.pop() if len(bounds) == 1 else "mixed",
            )
        )
    return tuple(sorted(times, key=lambda time: -time.seconds)[:_LARGEST])
