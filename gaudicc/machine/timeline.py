"""What a schedule is made of and what it becomes: tasks on engines, and when each ran.

`simulate` turns tasks and an order into a `Timeline`; `schedule`, `pipeline` and `exact` find orders. Times are in
seconds, modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

from gaudicc.errors import InputError
from gaudicc.machine.cost import Engine


@dataclass(frozen=True, slots=True)
class Task:
    """One node of a scheduled graph.

    Attributes:
        name: unique in its graph.
        engine: where it runs.
        seconds: time for which it holds the engine.
        after: names of the tasks whose results it reads.
        result_bytes: bytes of its result kept in on-chip memory until the last reader has ended; 0 if it goes to HBM.
        bundle: which bundle of the graph compiler it belongs to; bundles follow one another.
        slice: which slice of the bundle it belongs to; None if the node is not sliced.
    """

    name: str
    engine: Engine
    seconds: float
    after: tuple[str, ...] = ()
    result_bytes: int = 0
    bundle: int = 0
    slice: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One task as it ran.

    Attributes:
        task: the task.
        start: when it took its engine.
        end: when it gave it back.
    """

    task: Task
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A finished run.

    Attributes:
        events: in order of start.
        spilled_bytes: results that did not fit in on-chip memory and went to HBM.
        peak_bytes: most on-chip memory in use at once.
    """

    events: tuple[Event, ...]
    spilled_bytes: int = 0
    peak_bytes: int = 0

    @property
    def makespan(self) -> float:
        """End of the last task."""
        return max((event.end for event in self.events), default=0.0)

    @property
    def order(self) -> tuple[str, ...]:
        """Task names in order of start."""
        return tuple(event.task.name for event in self.events)

    def busy(self, engine: Engine) -> float:
        """Time for which an engine works."""
        return sum(event.end - event.start for event in self.events if event.task.engine is engine)

    def overlap(self, one: Engine = Engine.MME, other: Engine = Engine.TPC) -> float:
        """Time for which both engines work."""
        return _common(self._intervals(one), self._intervals(other))

    def overlap_efficiency(self) -> float:
        """Overlap of MME and TPC over the busy time of the shorter; 1 if one of them does nothing.

        A split that wastes one engine scores high here: valid only beside a bound that does not depend on the split.
        """
        shorter = min(self.busy(Engine.MME), self.busy(Engine.TPC))
        return self.overlap() / shorter if shorter else 1.0

    def exposed(self, engine: Engine = Engine.TPC, hidden_by: Engine = Engine.MME) -> float:
        """Time for which `engine` works and `hidden_by` does not."""
        return self.busy(engine) - self.overlap(engine, hidden_by)

    def _intervals(self, engine: Engine) -> list[tuple[float, float]]:
        return [(event.start, event.end) for event in self.events if event.task.engine is engine]


def _common(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    total, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        total += max(0.0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] <= other[j][1]:
            i += 1
        else:
            j += 1
    return total


def graph_of(tasks: Iterable[Task]) -> nx.DiGraph:
    """The dependence graph: nodes are task names with the task as attribute `task`.

    Args:
        tasks: in any order.

    Returns:
        The graph, edges from a task to its readers.

    Raises:
        InputError: two tasks have one name, a task reads one that is not there, or tasks depend on themselves.
    """
    graph: nx.DiGraph = nx.DiGraph()
    for task in tasks:
        if task.name in graph:
            raise InputError(f"two tasks are called {task.name!r}", hint="give every task a name of its own")
        graph.add_node(task.name, task=task)
    for name in list(graph):
        for source in graph.nodes[name]["task"].after:
            if "task" not in graph.nodes.get(source, {}):
                raise InputError(f"task {name!r} reads {source!r}, which is not among the tasks")
            graph.add_edge(source, name)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(edge[0] for edge in nx.find_cycle(graph))
        raise InputError(f"the tasks depend on themselves: {cycle}")
    return graph


def tails(graph: nx.DiGraph, handoff: float = 0.0) -> dict[str, float]:
    """Longest time from the start of each task to the end of the graph, hand-offs between tasks included."""
    longest: dict[str, float] = {}
    for name in reversed(list(nx.topological_sort(graph))):
        after = max((handoff + longest[reader] for reader in graph.successors(name)), default=0.0)
        longest[name] = graph.nodes[name]["task"].seconds + after
    return longest


def lower_bound(tasks: Sequence[Task], handoff: float = 0.0) -> float:
    """A time that no schedule of these tasks beats: the longest path, and the work of each engine with head and tail.

    Args:
        tasks: the tasks.
        handoff: time between a task's end and a reader's start.

    Returns:
        The bound. It holds for these tasks; for a choice among splits take the minimum over all of them.
    """
    graph = graph_of(tasks)
    tail = tails(graph, handoff)
    head: dict[str, float] = {}
    for name in nx.topological_sort(graph):
        before = ((head[source] + graph.nodes[source]["task"].seconds + handoff) for source in graph.predecessors(name))
        head[name] = max(before, default=0.0)
    bound = max((head[name] + tail[name] for name in graph), default=0.0)
    for engine in {task.engine for task in tasks}:
        mine = [task for task in tasks if task.engine is engine]
        first = min(head[task.name] for task in mine)
        last = min(tail[task.name] - task.seconds for task in mine)
        bound = max(bound, first + sum(task.seconds for task in mine) + last)
    return bound
