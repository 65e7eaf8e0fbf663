"""From static programs to schedules: the tasks of a root graph, region calls and loops unfolded."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import fx

from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import OpWork
from gaudicc.machine.fx import op_name
from gaudicc.machine.fx_tasks import node_tasks, priced
from gaudicc.machine.timeline import Task
from gaudicc.nodes import call_loop, call_region, outputs_of

Makers = dict[fx.Node, tuple[str, ...]]
"""Node -> names of the tasks that make what it stands for; what is left out was there before."""


@dataclass
class ProgramTasks:
    """The tasks of graphs that call each other: a body's nodes once per call.

    Attributes:
        chip: the machine.
        tasks: in program order.
        works: what they compute.
        ops: task name -> op and what bounds it.
        hbm_bytes: that they move from and to HBM; what passes inside a slice of attention, or the fused kernel, stays on chip.
        linear_dtype: what if projections multiplied in this dtype; None: in their own.
        stands_for: call that adds no tasks -> an earlier one of the same graph, whose results stand for its own.
    """

    chip: Chip
    tasks: list[Task] = field(default_factory=list)
    works: list[OpWork] = field(default_factory=list)
    ops: dict[str, tuple[str, str]] = field(default_factory=dict)
    hbm_bytes: int = 0
    linear_dtype: str | None = None
    stands_for: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _slices: dict[tuple[str, int], int] = field(default_factory=dict)  # (call, slice of the body) -> slice of all
    _in_attention: bool = False  # slices of one attention are a bundle, and so is what stands between two of them
    _bundle: int = 0
    _merge: tuple[str, int | None] = ("", None)  # the last task of a merge, and its slice

    def graph(self, module: fx.GraphModule, made_by: Makers, call: str = "") -> dict[int, tuple[str, ...]]:
        """Adds one graph's tasks.

        Args:
            module: the graph.
            made_by: of its placeholders; filled in.
            call: prefix of task names.

        Returns:
            Output position -> tasks that make it.
        """
        self.nodes(module, module.graph.nodes, made_by, call)
        return {i: made_by.get(out, ()) for i, out in enumerate(outputs_of(module.graph)) if isinstance(out, fx.Node)}

    def nodes(self, module: fx.GraphModule, nodes: Iterable[fx.Node], made_by: Makers, call: str = "") -> None:
        """Adds the tasks of some nodes of a graph; arguments as for `graph`."""
        calls: dict[fx.Node, dict[int, tuple[str, ...]]] = {}
        work: dict[fx.Node, tuple[list[OpWork], int]] = {}
        for node in nodes:
            if node.op != "call_function":
                continue
            if node in self.stands_for:
                same = self.stands_for[node]
                calls[node] = calls[same]
                self.works += work[same][0]
                self.hbm_bytes += work[same][1]
            elif node.target is call_region:
                works, moved = len(self.works), self.hbm_bytes
                name, *operands = cast(Any, node.args)
                body = getattr(module, str(name.target))
                given = zip(body.graph.find_nodes(op="placeholder"), operands, strict=True)
                calls[node] = self.graph(body, {n: made_by.get(arg, ()) for n, arg in given}, f"{call}{node.name}/")
                work[node] = self.works[works:], self.hbm_bytes - moved
            elif node.target is call_loop:
                calls[node] = self._trips(module, node, made_by, call)
            elif node.target is operator.getitem and node.args[0] in calls:
                source, position = cast(Any, node.args)
                made_by[node] = calls[source].get(position, ())
            else:
                made_by[node] = self._node(node, made_by, call)

    def _trips(self, module: fx.GraphModule, loop: fx.Node, made_by: Makers, call: str) -> dict[int, tuple[str, ...]]:
        """Every trip of a loop after the one before it, as many as the bucket has room for; one, if data alone ends it."""
        name, limit, _, carried, *operands = cast(Any, loop.args)
        body = getattr(module, str(name.target))
        _, *inputs = body.graph.find_nodes(op="placeholder")
        given: list[tuple[str, ...]] = [made_by.get(arg, ()) for arg in operands]
        results: dict[int, tuple[str, ...]] = dict(enumerate(given[:carried]))
        for trip in range(1 if limit is None else limit):
            results = self.graph(body, dict(zip(inputs, given, strict=True)), f"{call}{loop.name}/{trip}/")
            given[:carried] = [results.get(i, ()) for i in range(carried)]
        return results

    def _node(self, node: fx.Node, made_by: Makers, call: str) -> tuple[str, ...]:
        after = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in made_by.get(source, ())))
        works = priced(node, self.chip, linear_dtype=self.linear_dtype)
        tasks = node_tasks(node, works, self.chip, ())
        if tasks and self._in_attention != ("slice" in node.meta):
            self._in_attention = not self._in_attention
            self._bundle += 1
        added = [self._renamed(task, call) for task in tasks]
        added[:1] = [replace(task, after=after) for task in added[:1]]
        if added and "merge" in node.meta:
            added = self._with_merge(added)
        self.tasks += added
        self.works += [work for work, _ in works]
        self.hbm_bytes += sum(cost.hbm_bytes for _, cost in works)
        bounds = {cost.bound for _, cost in works}
        name = "merge_parts" if "merge" in node.meta else op_name(node)
        label = name, next(iter(bounds)) if len(bounds) == 1 else "mixed"
        self.ops.update((task.name, label) for task in added)
        return tuple(task.name for task in added[-1:]) or after

    def _with_merge(self, added: list[Task]) -> list[Task]:
        """A merge is lowered to vector nodes that follow each other: handed out as one, though each is paid for."""
        name, place = self._merge
        if place != added[0].slice or self.tasks[-1].name != name:
            self._merge = added[-1].name, added[-1].slice
            return added
        last = self.tasks.pop()
        read = {*last.after, *(source for task in added for source in task.after)} - {last.name}
        seconds = last.seconds + sum(task.seconds for task in added)
        return [replace(last, seconds=seconds, after=tuple(sorted(read)), result_bytes=added[-1].result_bytes)]

    def _renamed(self, task: Task, call: str) -> Task:
        place = task.slice
        if place is not None:
            place = self._slices.setdefault((call, place), len(self._slices))
        inner = tuple(f"{call}{name}" for name in task.after)
        return replace(task, name=f"{call}{task.name}", after=inner, slice=place, bundle=self._bundle)
