"""The yardstick beside `schedule`: the shortest schedule of a small bundle, by branch and bound.

Every active schedule of engines that each run one task at a time is a sequence of decisions of which task an engine
takes next (Giffler and Thompson, 1960); one of them is the shortest. Memory is not bounded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx

from gaudicc.errors import InputError
from gaudicc.machine.cost import Engine
from gaudicc.machine.schedule import list_schedule
from gaudicc.machine.simulate import Limits, simulate
from gaudicc.machine.timeline import Task, Timeline, graph_of, lower_bound, tails

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ExactSchedule:
    """The outcome of the search.

    Attributes:
        timeline: the shortest run found.
        proved: no shorter one exists; False if the search was cut off.
        visited: nodes of the search tree.
    """

    timeline: Timeline
    proved: bool
    visited: int


def exact_schedule(tasks: Sequence[Task], *, handoff: float = 0.0, visits: int = 200_000) -> ExactSchedule:
    """Finds a shortest schedule of a bundle.

    Args:
        tasks: at most some 30 of them.
        handoff: seconds between the end of a task and the start of one that reads its result.
        visits: nodes of the search tree after which to give up the proof.

    Returns:
        The shortest run, and whether it is proved.

    Raises:
        InputError: there are no tasks.
    """
    if not tasks:
        raise InputError("an exact schedule needs at least one task")
    start = list_schedule(tasks, Limits(handoff=handoff))
    search = _Search(graph_of(tasks), handoff, start.makespan, list(start.order), lower_bound(tasks, handoff), visits)
    search.run()
    timeline = simulate(tasks, search.best_order, Limits(handoff=handoff))
    return ExactSchedule(timeline, search.proved, search.visited)


@dataclass(slots=True)
class _Search:
    graph: nx.DiGraph
    handoff: float
    best: float
    best_order: list[str]
    bound: float
    visits: int
    visited: int = 0
    tail: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)  # of the tasks placed so far, in order of placing
    seen: dict[frozenset[str], list[tuple[float, ...]]] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        return self.visited < self.visits or self.best <= self.bound * (1 + _ROUNDING)

    def run(self) -> None:
        self.tail = tails(self.graph, self.handoff)
        self.tasks = {name: self.graph.nodes[name]["task"] for name in nx.topological_sort(self.graph)}
        self._branch({task.engine: 0.0 for task in self.tasks.values()})

    def _branch(self, free: dict[Engine, float]) -> None:
        self.visited += 1
        if len(self.end) == len(self.tasks):
            makespan = max(self.end.values())
            if makespan < self.best * (1 - _ROUNDING):
                self.best = makespan
                self.best_order = sorted(self.end, key=lambda name: self.end[name] - self.tasks[name].seconds)
            return
        earliest = self._earliest(free)
        if self._least(free, earliest) >= self.best * (1 - _ROUNDING) or self._dominated(free):
            return
        for name in self._conflict(earliest):
            if self.visited >= self.visits or self.best <= self.bound * (1 + _ROUNDING):
                return
            task = self.tasks[name]
            before = free[task.engine]
            self.end[name] = free[task.engine] = earliest[name] + task.seconds
            self._branch(free)
            del self.end[name]
            free[task.engine] = before

    def _earliest(self, free: dict[Engine, float]) -> dict[str, float]:
        """Earliest start of every task not placed yet, engines' conflicts among them left aside."""
        earliest: dict[str, float] = {}
        for name, task in self.tasks.items():
            if name in self.end:
                continue
            start = free[task.engine]
            for source in task.after:
                ended = self.end[source] if source in self.end else earliest[source] + self.tasks[source].seconds
                start = max(start, ended + self.handoff)
            earliest[name] = start
        return earliest

    def _least(self, free: dict[Engine, float], earliest: dict[str, float]) -> float:
        """A time that no completion of this node beats: paths, and one-machine relaxations with preemption."""
        bound = max(start + self.tail[name] for name, start in earliest.items())
        for engine in free:
            jobs = [
                (start, self.tasks[name].seconds, self.tail[name] - self.tasks[name].seconds)
                for name, start in earliest.items()
                if self.tasks[name].engine is engine
            ]
            bound = max(bound, _preemptive(jobs))
        return bound

    def _conflict(self, earliest: dict[str, float]) -> list[str]:
        """The tasks one of which must come next on the engine that can first complete a task."""
        ready = [name for name in earliest if all(source in self.end for source in self.tasks[name].after)]
        first = min(ready, key=lambda name: earliest[name] + self.tasks[name].seconds)
        horizon, engine = earliest[first] + self.tasks[first].seconds, self.tasks[first].engine
        rivals = [name for name in ready if self.tasks[name].engine is engine and earliest[name] < horizon]
        return sorted(rivals or [first], key=lambda name: (-self.tail[name], earliest[name]))

    def _dominated(self, free: dict[Engine, float]) -> bool:
        """Whether the same tasks were placed before with no engine and no needed result later than now."""
        placed = frozenset(self.end)
        needed = sorted(name for name in placed if any(reader not in placed for reader in self.graph.successors(name)))
        state = (*(free[engine] for engine in sorted(free, key=lambda engine: engine.value)),
                 *(self.end[name] for name in needed))  # fmt: skip
        states = self.seen.setdefault(placed, [])
        if any(all(a <= b for a, b in zip(old, state, strict=True)) for old in states):
            return True
        states.append(state)
        return False


def _preemptive(jobs: list[tuple[float, float, float]]) -> float:
    """Jackson's preemptive schedule of (head, time, tail) on one machine: the latest end with tail."""
    jobs = sorted(jobs)
    left: list[list[float]] = []  # [tail, time left]
    now, bound, index = 0.0, 0.0, 0
    while index < len(jobs) or left:
        if not left:
            now = max(now, jobs[index][0])
        while index < len(jobs) and jobs[index][0] <= now:
            left.append([jobs[index][2], jobs[index][1]])
            index += 1
        urgent = max(left)
        until = jobs[index][0] if index < len(jobs) else float("inf")
        step = min(urgent[1], until - now)
        now += step
        urgent[1] -= step
        if urgent[1] <= 0:
            left.remove(urgent)
            bound = max(bound, now + urgent[0])
    return bound
