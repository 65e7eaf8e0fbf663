"""Orders of tasks: the critical path's, the program's, and the graph compiler's own.

`list_schedule` is what could be reached, `vendor_schedule` what will run: Gaudi's graph compiler reorders nodes itself
by a rule that knows no durations. Choices are made under the vendor's policy; ours is the bound to aim at.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

import networkx as nx

from gaudicc.errors import InternalError
from gaudicc.machine.cost import Engine
from gaudicc.machine.simulate import UNLIMITED, Limits, dispatch, run_in_order, simulate
from gaudicc.machine.timeline import Event, Task, Timeline, graph_of, lower_bound, tails

# Slices that the vendor's scheduler keeps under way: brain_conf.cpp in HabanaAI/Intel_Gaudi3_Software says 2 to 3. Taken to be
# three, or two where three do not fit.
VENDOR_LIVE_SLICES = 3
# Noise of the restarts, as a fraction of the longest path, in turn.
_NOISE = (0.05, 0.2)
# How much longer than the current one a run may be for the walk of swaps to go on from it; shrinks to 0.
_SLACK = 0.05
# Tasks simulated at most by each search; bounds the time spent on a large graph.
_EFFORT = 30_000


def program_schedule(tasks: Sequence[Task], limits: Limits = UNLIMITED) -> Timeline:
    """Runs tasks in the order given, each engine in turn."""
    return simulate(tasks, [task.name for task in tasks], limits)


def list_schedule(
    tasks: Sequence[Task], limits: Limits = UNLIMITED, *, restarts: int = 100, swaps: int = 800, seed: int = 0
) -> Timeline:
    """List scheduling by longest remaining path, improved by restarts and by swaps on the critical path.

    Args:
        tasks: the tasks.
        limits: memory and hand-off.
        restarts: runs with noise on the priorities, fewer for a large graph.
        swaps: neighbours tried of the best run, fewer for a large graph: two tasks that follow each other on an engine
            change places.
        seed: of the noise. Both searches stop early once the lower bound is met.

    Returns:
        The shortest run found.
    """
    graph = graph_of(tasks)
    path = tails(graph, limits.handoff)
    best = min(dispatch(graph, path, limits), program_schedule(_topological(tasks), limits), key=_makespan)
    target, longest = lower_bound(tasks, limits.handoff) * (1 + 1e-12), max(path.values(), default=0.0)
    noise = random.Random(seed)
    affordable = _EFFORT // max(1, len(graph))
    for restart in range(min(restarts, affordable)):
        if best.makespan <= target:
            return best
        spread = _NOISE[restart % len(_NOISE)] * longest
        priority = {name: length + noise.gauss(0.0, spread) for name, length in path.items()}
        best = min(best, dispatch(graph, priority, limits), key=_makespan)
    return _swap(graph, best, limits, min(swaps, affordable), target, noise)


def _swap(
    graph: nx.DiGraph, best: Timeline, limits: Limits, swaps: int, target: float, noise: random.Random
) -> Timeline:
    """Walks over runs that differ by one swap on the critical path; a slightly longer one may be passed through."""
    current = best
    for step in range(swaps):
        pairs = _critical_pairs(graph, current, limits.handoff)
        if best.makespan <= target or not pairs:
            break
        first, second = noise.choice(pairs)
        order = list(current.order)
        i, j = order.index(first), order.index(second)
        order[i], order[j] = second, first
        tried = run_in_order(graph, order, limits)
        if tried.makespan <= current.makespan * (1 + _SLACK * (1 - step / swaps)):
            current = tried
        best = min(best, tried, key=_makespan)
    return best


def _critical_pairs(graph: nx.DiGraph, timeline: Timeline, handoff: float) -> list[tuple[str, str]]:
    """Pairs of tasks next to each other on an engine and on the critical path, the second not reading the first."""
    before: dict[str, Event] = {}
    last: dict[Engine, Event] = {}
    ran = {event.task.name: event for event in timeline.events}
    for event in timeline.events:
        if event.task.engine in last:
            before[event.task.name] = last[event.task.engine]
        last[event.task.engine] = event
    pairs: list[tuple[str, str]] = []
    current: Event | None = max(timeline.events, key=lambda event: event.end, default=None)
    while current is not None:
        name, since = current.task.name, current.start - 1e-12 * current.end
        inputs = (ran[source] for source in graph.predecessors(name))
        waited = next((one for one in inputs if one.end + handoff >= since), None)
        queued = before.get(name)
        if waited is None and queued is not None and queued.end >= since:
            pairs.append((queued.task.name, name))
            waited = queued
        current = waited
    return pairs


def vendor_schedule(tasks: Sequence[Task], limits: Limits = UNLIMITED, *, live_slices: int | None = None) -> Timeline:
    """The graph compiler's published policy.

    Bundles run one after the other. Within a bundle each slice is a thread; `live_slices` of them are kept under way
    and nodes are handed out round-robin, passing over a thread whose next node reads the node just handed out while
    another has one that does not. When a thread ends the next slice takes its place. Durations play no part.

    Args:
        tasks: in program order, with `bundle` and `slice` set.
        limits: memory and hand-off.
        live_slices: threads under way at once; None for three, or for two where three do not fit in memory and two are faster.

    Returns:
        The run.
    """
    first = _run_in_turn(tasks, limits, live_slices or VENDOR_LIVE_SLICES)
    if live_slices is not None or not first.spilled_bytes:
        return first
    return min(first, _run_in_turn(tasks, limits, VENDOR_LIVE_SLICES - 1), key=_makespan)


def _run_in_turn(tasks: Sequence[Task], limits: Limits, live_slices: int) -> Timeline:
    order: list[str] = []
    for _, bundle in groupby(_topological(tasks), key=lambda task: task.bundle):
        order += _hand_out(list(bundle), set(order), live_slices)
    return simulate(tasks, order, limits)


def _topological(tasks: Sequence[Task]) -> list[Task]:
    """Program order by bundle, inputs before readers."""
    ordered = sorted(tasks, key=lambda task: task.bundle)
    seen: set[str] = set()
    for task in ordered:
        if not seen.issuperset(task.after):
            break
        seen.add(task.name)
    else:
        return ordered
    done: dict[str, Task] = {}
    left = {task.name: task for task in ordered}
    while left:
        name = next((name for name, task in left.items() if done.keys() >= set(task.after)), None)
        if name is None:
            graph_of(tasks)  # says which tasks depend on themselves or on none
            raise InternalError("no task can come next in a graph without cycles")
        done[name] = left.pop(name)
    return list(done.values())


def _hand_out(bundle: list[Task], issued: set[str], live_slices: int) -> list[str]:
    """The order in which a bundle's nodes are handed out."""
    threads: dict[int, list[Task]] = {}
    for index, task in enumerate(bundle):
        # A node that is not sliced is a thread of its own.
        threads.setdefault(index + len(bundle) if task.slice is None else task.slice, []).append(task)
    waiting = list(threads.values())
    live: list[list[Task]] = []
    order: list[str] = []
    while waiting or live:
        while waiting and len(live) < live_slices:
            live.append(waiting.pop(0))
        turn = _next_thread(live, issued, order[-1] if order else None)
        if turn is None:
            if not waiting:
                raise InternalError("the vendor's policy has no node to hand out")
            live.append(waiting.pop(0))
            continue
        thread = live.pop(turn)
        task = thread.pop(0)
        order.append(task.name)
        issued.add(task.name)
        if thread:
            live.append(thread)
    return order


def _next_thread(live: list[list[Task]], issued: set[str], last: str | None) -> int | None:
    """Index of the thread whose turn it is: the first that can go on and does not read the node just handed out."""
    able = [index for index, thread in enumerate(live) if issued.issuperset(thread[0].after)]
    free = [index for index in able if last not in live[index][0].after]
    return next(iter(free or able), None)


def _makespan(timeline: Timeline) -> float:
    return timeline.makespan
