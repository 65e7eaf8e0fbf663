"""From a static program to a modelled run: its nodes as tasks on engines, scheduled by the graph compiler's own policy."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import fx

from gaudicc.machine import Chip, Engine, OpWork, Task, Timeline, lower_bound, vendor_schedule
from gaudicc.machine.cost import op_cost
from gaudicc.machine.fx import op_name, works_of
from gaudicc.machine.fx_tasks import node_tasks
from gaudicc.machine.split import limits_of
from gaudicc.nodes import call_loop, call_region, outputs_of
from gaudicc.profile.activity import Activity
from gaudicc.program import Program


@dataclass(frozen=True)
class ModelledRun:
    """A program as the machine model runs it.

    Attributes:
        timeline: when each task ran.
        activities: the same in the common form.
        bound: seconds that no schedule of these tasks beats.
        works: what the tasks compute, in the order of the program.
    """

    timeline: Timeline
    activities: tuple[Activity, ...]
    bound: float
    works: tuple[OpWork, ...]


def modelled_run(program: Program, chip: Chip) -> ModelledRun:
    """Schedules a static program.

    Args:
        program: after the static passes of one bucket.
        chip: the machine.

    Returns:
        The run, modelled; every engine of a kind works on one node at a time, so there is one lane a kind.
    """
    walk = _Walk(chip)
    walk.graph(program.root, {}, "")
    timeline = vendor_schedule(walk.tasks, limits_of(chip))
    return ModelledRun(timeline, tuple(walk.activities(timeline)), lower_bound(walk.tasks), tuple(walk.works))


@dataclass
class _Walk:
    """Unfolds region calls: a body's nodes once per call."""

    chip: Chip
    tasks: list[Task] = field(default_factory=list)
    works: list[OpWork] = field(default_factory=list)
    ops: dict[str, tuple[str, str]] = field(default_factory=dict)  # task -> (op, bound)
    slices: dict[tuple[str, int], int] = field(default_factory=dict)  # (call, slice of the body) -> slice of all

    def graph(
        self, module: fx.GraphModule, made_by: dict[fx.Node, tuple[str, ...]], call: str
    ) -> dict[int, tuple[str, ...]]:
        """Adds one graph's tasks.

        Args:
            module: the graph.
            made_by: placeholder -> tasks whose results it stands for; what is left out was there before.
            call: prefix of task names.

        Returns:
            Output position -> tasks that make it.
        """
        calls: dict[fx.Node, dict[int, tuple[str, ...]]] = {}
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is call_region:
                body = getattr(module, str(node.args[0].target))
                inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
                given = zip(inputs, node.args[1:], strict=True)
                calls[node] = self.graph(body, {n: made_by.get(arg, ()) for n, arg in given}, f"{call}{node.name}/")
            elif node.target is call_loop:
                calls[node] = self._trips(module, node, made_by, call)
            elif node.target is operator.getitem and node.args[0] in calls:
                made_by[node] = calls[node.args[0]].get(int(node.args[1]), ())
            else:
                made_by[node] = self._node(node, made_by, call)
        return {i: made_by.get(out, ()) for i, out in enumerate(outputs_of(module.graph)) if isinstance(out, fx.Node)}

    def _trips(
        self, module: fx.GraphModule, loop: fx.Node, made_by: dict[fx.Node, tuple[str, ...]], call: str
    ) -> dict[int, tuple[str, ...]]:
        """Every trip of a loop after the one before it, as many as the bucket has room for."""
        name, limit, _, carried, *operands = cast(Any, loop.args)
        body = getattr(module, str(name.target))
        _, *inputs = body.graph.find_nodes(op="placeholder")
        given: list[tuple[str, ...]] = [made_by.get(arg, ()) for arg in operands]
        results: dict[int, tuple[str, ...]] = dict(enumerate(given[:carried]))
        for trip in range(limit):
            results = self.graph(body, dict(zip(inputs, given, strict=True)), f"{call}{loop.name}/{trip}/")
            given[:carried] = [results.get(i, ()) for i in range(carried)]
        return results

    def _node(self, node: fx.Node, made_by: dict[fx.Node, tuple[str, ...]], call: str) -> tuple[str, ...]:
        after = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in made_by.get(source, ())))
        added = [self._renamed(task, call) for task in node_tasks(node, self.chip, ())]
        added[:1] = [replace(task, after=after) for task in added[:1]]
        self.tasks += added
        works = list(works_of(node))
        if added:
            self.works += works
        bounds = [op_cost(work, self.chip).bound for work in works]
        label = op_name(node)
        for task in added:
            self.ops[task.name] = (label, bounds[0] if len(set(bounds)) == 1 else "mixed")
        return tuple(task.name for task in added[-1:]) or after

    def _renamed(self, task: Task, call: str) -> Task:
        place = task.slice
        if place is not None:
            place = self.slices.setdefault((call, place), len(self.slices))
        inner = tuple(f"{call}{name}" for name in task.after)
        return replace(task, name=f"{call}{task.name}", after=inner, slice=place)

    def activities(self, timeline: Timeline) -> Iterator[Activity]:
        """The timeline in the common form."""
        for event in timeline.events:
            kind = event.task.engine.value
            op, bound = self.ops[event.task.name]
            yield Activity(kind, LANES[event.task.engine], event.task.name, event.start, event.end, op, bound)


# Named as in traces of real devices; one lane stands for all engines of its kind.
LANES = {
    Engine.MME: "[HD0] MME",
    Engine.TPC: "[HD0] TPC",
    Engine.DMA: "[HD0] EDMA",
    Engine.NETWORK: "[HD0] NIC",
    Engine.HOST: "Host",
}
