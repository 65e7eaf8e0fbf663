"""The discrete-event simulator: tasks on MME, TPC, DMA, network and host, with bounded on-chip memory.

Every engine runs one task at a time. Which of the tasks that are ready it takes is the policy: `simulate` follows a
given order (each engine has its queue, as on the device), `dispatch` takes the ready task of highest priority.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import networkx as nx

from gaudicc.errors import InputError
from gaudicc.machine.cost import Engine
from gaudicc.machine.timeline import Event, Task, Timeline, graph_of


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run is bound by besides its engines.

    Attributes:
        buffer_bytes: on-chip memory for results.
        stream: bytes a second to and from HBM, for what does not fit.
        handoff: seconds between the end of a task and the start of one that reads its result.
    """

    buffer_bytes: float = inf
    stream: float = inf
    handoff: float = 0.0


UNLIMITED = Limits()


def simulate(tasks: Sequence[Task], order: Sequence[str], limits: Limits = UNLIMITED) -> Timeline:
    """Runs tasks in a given order: each engine takes its own tasks one after the other, as they stand in the order.

    Args:
        tasks: the tasks.
        order: every task name once, no task before one that it reads.
        limits: memory and hand-off.

    Returns:
        When each task ran.

    Raises:
        InputError: the order does not name each task once, or puts a task before one that it reads.
    """
    graph = graph_of(tasks)
    rank = {name: index for index, name in enumerate(order)}
    if len(order) != len(graph) or set(rank) != set(graph):
        raise InputError("the order must name every task exactly once")
    for source, reader in graph.edges:
        if rank[source] > rank[reader]:
            raise InputError(f"the order puts {reader!r} before {source!r}, whose result it reads")
    return run_in_order(graph, order, limits)


def run_in_order(graph: nx.DiGraph, order: Sequence[str], limits: Limits) -> Timeline:
    """`simulate` on a graph made by `graph_of` and an order known to be sound."""
    return _Run(graph, {name: -index for index, name in enumerate(order)}, limits, in_order=True).run()


def dispatch(graph: nx.DiGraph, priority: Mapping[str, float], limits: Limits = UNLIMITED) -> Timeline:
    """Runs tasks without delay: a free engine takes the ready task of highest priority that fits in memory.

    Args:
        graph: the tasks, as `graph_of` gives them.
        priority: task name -> priority; ties are broken by the order of the graph.
        limits: memory and hand-off.

    Returns:
        When each task ran.
    """
    return _Run(graph, priority, limits, in_order=False).run()


@dataclass(slots=True)
class _Run:
    """The state of one run."""

    graph: nx.DiGraph
    priority: Mapping[str, float]
    limits: Limits
    in_order: bool
    now: float = 0.0
    used: float = 0.0
    peak: float = 0.0
    spilled: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)  # results whose memory has been given back
    events: list[Event] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)  # task -> inputs still missing
    readers: dict[str, int] = field(default_factory=dict)  # task -> readers that have not ended
    ready: dict[Engine, list[tuple[float, int, str]]] = field(default_factory=lambda: defaultdict(list))
    queue: dict[Engine, list[str]] = field(default_factory=dict)  # in-order mode: what is left, last first
    free: dict[Engine, bool] = field(default_factory=dict)
    agenda: list[tuple[float, int, str, bool]] = field(default_factory=list)  # (when, rank, task, it ends)
    rank: dict[str, int] = field(default_factory=dict)
    task: dict[str, Task] = field(default_factory=dict)

    def run(self) -> Timeline:
        self._set_up()
        while len(self.events) < len(self.graph) or self.agenda:
            started = [self._start_one(engine) for engine in self.free]
            if any(started):
                continue
            if self.agenda:
                self._advance()
            else:
                self._spill_one()
        events = sorted(self.events, key=lambda event: (event.start, self.rank[event.task.name]))
        spilled = sum(self.task[name].result_bytes for name in self.spilled)
        return Timeline(tuple(events), spilled, int(self.peak))

    def _set_up(self) -> None:
        self.rank = {name: index for index, name in enumerate(self.graph)}
        self.task = dict(self.graph.nodes(data="task"))
        engines = {self.task[name].engine for name in self.graph}
        self.free = {engine: True for engine in Engine if engine in engines}
        for name in self.graph:
            self.waiting[name] = self.graph.in_degree(name)
            self.readers[name] = self.graph.out_degree(name)
            if not self.waiting[name]:
                self._make_ready(name)
        if self.in_order:
            for engine in self.free:
                mine = [name for name in self.graph if self.task[name].engine is engine]
                self.queue[engine] = sorted(mine, key=lambda name: self.priority[name])

    def _make_ready(self, name: str) -> None:
        heapq.heappush(self.ready[self.task[name].engine], (-self.priority[name], self.rank[name], name))

    def _start_one(self, engine: Engine) -> bool:
        """Starts the next task of a free engine, if there is one that fits."""
        if not self.free[engine] or not self.ready[engine]:
            return False
        name = self._pick(engine)
        if name is None:
            return False
        task = self.task[name]
        reload = sum(self.task[source].result_bytes for source in task.after if source in self.spilled)
        if name in self.spilled:
            reload += task.result_bytes
        else:
            self.used += task.result_bytes - self._released_by(name)
            self.released.update(self._last_read_by(name))
            self.peak = max(self.peak, self.used)
        end = self.now + task.seconds + (reload / self.limits.stream if reload else 0.0)
        self.free[engine] = False
        self.events.append(Event(task, self.now, end))
        heapq.heappush(self.agenda, (end, self.rank[name], name, True))
        return True

    def _pick(self, engine: Engine) -> str | None:
        heap = self.ready[engine]
        if self.in_order:
            name = self.queue[engine][-1]
            entry = (-self.priority[name], self.rank[name], name)
            if heap[0] != entry or not self._fits(name):
                return None
            self.queue[engine].pop()
            return heapq.heappop(heap)[2]
        skipped: list[tuple[float, int, str]] = []
        found = None
        while heap and found is None:
            entry = heapq.heappop(heap)
            if self._fits(entry[2]):
                found = entry[2]
            else:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(heap, entry)
        return found

    def _fits(self, name: str) -> bool:
        if name in self.spilled:
            return True
        over = self.used + self.task[name].result_bytes - self.limits.buffer_bytes
        return over <= 0 or over <= self._released_by(name)

    def _released_by(self, name: str) -> int:
        """Bytes of inputs that this task is the last to read: its result may take their place."""
        return sum(self.task[source].result_bytes for source in self._last_read_by(name))

    def _last_read_by(self, name: str) -> list[str]:
        kept = (source for source in self.task[name].after if not self._gone(source))
        return [source for source in kept if self.readers[source] == 1]

    def _gone(self, name: str) -> bool:
        return name in self.spilled or name in self.released

    def _advance(self) -> None:
        self.now, _, name, ends = heapq.heappop(self.agenda)
        if not ends:
            self._make_ready(name)
            return
        task = self.task[name]
        self.free[task.engine] = True
        for source in task.after:
            self.readers[source] -= 1
        for kept in (*task.after, name):
            if not self.readers[kept] and not self._gone(kept):
                self.used -= self.task[kept].result_bytes
                self.released.add(kept)
        for reader in self.graph.successors(name):
            self.waiting[reader] -= 1
            if self.waiting[reader] == 0:
                if self.limits.handoff:
                    heapq.heappush(self.agenda, (self.now + self.limits.handoff, self.rank[reader], reader, False))
                else:
                    self._make_ready(reader)

    def _spill_one(self) -> None:
        """Nothing runs and nothing fits: the next result goes to HBM and is read back from there."""
        heads = [self.queue[engine][-1] for engine in self.free if self.queue[engine]] if self.in_order else []
        stuck = [name for heap in self.ready.values() for _, _, name in heap if not self.in_order or name in heads]
        self.spilled.add(max(stuck, key=lambda name: (self.priority[name], -self.rank[name])))
