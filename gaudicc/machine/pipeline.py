"""Software pipelining of a body that repeats: the slices of an attention, the layers of a model.

Beside `schedule`, which orders the tasks of one segment: here iteration i + 1 starts before iteration i has ended, at a
fixed initiation interval. The interval cannot be shorter than the work of the busiest engine, nor than any dependence
that goes round from one iteration to the next (Rau's iterative modulo scheduling, 1994, on continuous time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx

from gaudicc.errors import InputError
from gaudicc.machine.cost import Engine
from gaudicc.machine.simulate import UNLIMITED, Limits, dispatch
from gaudicc.machine.timeline import Event, Task, Timeline, graph_of, tails

# Growth of the interval after a failed attempt.
_GROWTH = 1.005
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Carried:
    """A dependence from one iteration on an earlier one.

    Attributes:
        source: the task whose result is read.
        reader: the task that reads it, in a later iteration.
        distance: how many iterations later; at least 1.
    """

    source: str
    reader: str
    distance: int = 1


@dataclass(frozen=True, slots=True)
class Pipelined:
    """A modulo schedule.

    Attributes:
        interval: seconds between the starts of two iterations.
        bound: the initiation-interval bound: no schedule of this body has a shorter one.
        starts: task name -> start within its iteration.
        tasks: the body.
    """

    interval: float
    bound: float
    starts: dict[str, float]
    tasks: tuple[Task, ...]

    @property
    def length(self) -> float:
        """Seconds from the start of one iteration to its own end: fill and drain are this less the interval."""
        return max(self.starts[task.name] + task.seconds for task in self.tasks)

    def makespan(self, repeats: int) -> float:
        """Seconds for this many iterations."""
        return self.length + (repeats - 1) * self.interval if repeats else 0.0

    def buffer_bytes(self) -> int:
        """Most on-chip memory in use at once in the steady state."""
        return _peak_bytes(self)

    def unrolled(self, repeats: int) -> Timeline:
        """The first iterations as a timeline; task names get the iteration as suffix `@i`."""
        events = [
            Event(_rename(task, i), start := self.starts[task.name] + i * self.interval, start + task.seconds)
            for i in range(repeats)
            for task in self.tasks
        ]
        return Timeline(tuple(sorted(events, key=lambda event: event.start)), 0, self.buffer_bytes())


def pipeline(body: Sequence[Task], carried: Sequence[Carried] = (), limits: Limits = UNLIMITED) -> Pipelined:
    """Finds a short initiation interval for a repeated body.

    Args:
        body: the tasks of one iteration.
        carried: dependences between iterations.
        limits: memory that all iterations under way share, and hand-off.

    Returns:
        The schedule with the shortest interval found.

    Raises:
        InputError: the body is empty, a carried dependence names no task, or one iteration alone does not fit in
            memory.
    """
    if not body:
        raise InputError("a pipeline needs at least one task")
    graph = graph_of(body)
    for edge in carried:
        if edge.source not in graph or edge.reader not in graph or edge.distance < 1:
            raise InputError(f"the carried dependence {edge.source!r} -> {edge.reader!r} is not one of this body")
    bound = interval_bound(body, carried, limits.handoff)
    serial = _serial(graph, body, bound, limits)
    interval = bound
    while interval < serial.interval:
        starts = _place(graph, carried, interval, limits.handoff)
        if starts is not None:
            found = Pipelined(interval, bound, starts, tuple(body))
            if found.buffer_bytes() <= limits.buffer_bytes:
                return found
        interval *= _GROWTH
    return serial


def interval_bound(body: Sequence[Task], carried: Sequence[Carried], handoff: float = 0.0) -> float:
    """The least interval: work of the busiest engine, and the longest way round per iteration gone round."""
    engines = {task.engine for task in body}
    resource = max(sum(task.seconds for task in body if task.engine is engine) for engine in engines)
    low, high = resource, max(resource, sum(task.seconds + handoff for task in body))
    if not _goes_round(body, carried, low, handoff):
        return low
    while high - low > _ROUNDING * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _goes_round(body, carried, middle, handoff) else (low, middle)
    return high


def _goes_round(body: Sequence[Task], carried: Sequence[Carried], interval: float, handoff: float) -> bool:
    """Whether some cycle of dependences takes longer than the iterations that it spans."""
    seconds = {task.name: task.seconds for task in body}
    graph: nx.DiGraph = nx.DiGraph()
    for task in body:
        for source in task.after:
            graph.add_edge(source, task.name, slack=-(seconds[source] + handoff))
    for edge in carried:
        slack = edge.distance * interval - seconds[edge.source] - handoff
        known = graph.get_edge_data(edge.source, edge.reader, {}).get("slack", slack)
        graph.add_edge(edge.source, edge.reader, slack=min(slack, known))
    return bool(nx.negative_edge_cycle(graph, weight="slack"))


def _place(graph: nx.DiGraph, carried: Sequence[Carried], interval: float, handoff: float) -> dict[str, float] | None:
    """Start of every task, urgent ones first among those whose inputs are placed; None if one finds no room."""
    path = tails(graph, handoff)
    starts: dict[str, float] = {}
    taken: dict[Engine, list[tuple[float, float]]] = {}
    while len(starts) < len(graph):
        able = (n for n in graph if n not in starts and all(source in starts for source in graph.predecessors(n)))
        name = max(able, key=lambda candidate: path[candidate])
        task: Task = graph.nodes[name]["task"]
        inputs = (starts[source] + graph.nodes[source]["task"].seconds + handoff for source in graph.predecessors(name))
        rounds = (
            starts[edge.source] + graph.nodes[edge.source]["task"].seconds + handoff - edge.distance * interval
            for edge in carried
            if edge.reader == name and edge.source in starts
        )
        earliest = max((*inputs, *rounds, 0.0))
        start = _first_gap(taken.setdefault(task.engine, []), earliest, task.seconds, interval)
        if start is None:
            return None
        starts[name] = start
        taken[task.engine].append((start % interval, task.seconds))
    late = any(
        starts[edge.source] + graph.nodes[edge.source]["task"].seconds + handoff
        > starts[edge.reader] + edge.distance * interval + _ROUNDING * interval
        for edge in carried
    )
    return None if late else starts


def _first_gap(taken: list[tuple[float, float]], earliest: float, seconds: float, interval: float) -> float | None:
    """First start not before `earliest` at which an engine is free, every `interval` again."""
    room = _ROUNDING * interval
    candidates = [0.0, *((begin + length - earliest) % interval for begin, length in taken)]
    for wait in sorted(candidates):
        phase = (earliest + wait) % interval
        gaps = ((begin - phase) % interval for begin, _ in taken)
        clear = all(gap >= seconds - room or interval - gap <= room for gap in gaps)
        clear = clear and all((phase - begin) % interval >= length - room or
                              interval - (phase - begin) % interval <= room for begin, length in taken)  # fmt: skip
        if clear and seconds <= interval + room:
            return earliest + wait
    return None


def _peak_bytes(schedule: Pipelined) -> int:
    readers: dict[str, float] = {}
    for task in schedule.tasks:
        for name in (*task.after, task.name):
            readers[name] = max(readers.get(name, 0.0), schedule.starts[task.name] + task.seconds)
    edges: list[tuple[float, int]] = []
    base = 0
    for task in schedule.tasks:
        start, end = schedule.starts[task.name], readers[task.name]
        whole, rest = divmod(end - start, schedule.interval)
        base += int(whole) * task.result_bytes
        begin = start % schedule.interval
        edges += [(begin, task.result_bytes), (begin + rest, -task.result_bytes)]
        edges += [
            (begin - schedule.interval, task.result_bytes),
            (begin + rest - schedule.interval, -task.result_bytes),
        ]
    level = peak = 0
    for _, change in sorted(edges):
        level += change
        peak = max(peak, level)
    return base + peak


def _serial(graph: nx.DiGraph, body: Sequence[Task], bound: float, limits: Limits) -> Pipelined:
    """One iteration after the other, each as list scheduling has it."""
    alone = dispatch(graph, tails(graph, limits.handoff), limits)
    if alone.spilled_bytes:
        raise InputError(f"one iteration needs more than the {limits.buffer_bytes:.0f} bytes of on-chip memory")
    starts = {event.task.name: event.start for event in alone.events}
    return Pipelined(alone.makespan + limits.handoff, bound, starts, tuple(body))


def _rename(task: Task, iteration: int) -> Task:
    return replace(task, name=f"{task.name}@{iteration}", after=tuple(f"{source}@{iteration}" for source in task.after))
