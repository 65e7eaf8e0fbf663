"""From a static program to a modelled run: its nodes as tasks on engines, scheduled by the graph compiler's own policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from gaudicc.cut_branches import Branch
from gaudicc.graph_module import copy_graph
from gaudicc.lower_branches import holds_branches, inline_branches, parts_of
from gaudicc.machine import Chip, Engine, OpWork, Task, Timeline, load_chip, lower_bound, vendor_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.fx_repeats import KEPT, repeats_of, with_repeats
from gaudicc.machine.split import limits_of
from gaudicc.nodes import buffer_of, outputs_of
from gaudicc.program import Program


@dataclass(frozen=True)
class ModelledRun:
    """A program as the machine model runs it.

    Attributes:
        timeline: when each task ran.
        ops: task name -> op and what bounds it.
        bound: seconds that no schedule of these tasks beats.
        works: what the tasks compute, in the order of the program.
        branches: source line, or name, of each condition that the host decides: the side that takes longer is run.
    """

    timeline: Timeline
    ops: Mapping[str, tuple[str, str]]
    bound: float
    works: tuple[OpWork, ...]
    branches: tuple[str, ...] = ()


def modelled_run(program: Program, chip: Chip, linear_dtype: str | None = None) -> ModelledRun:
    """Schedules a static program.

    Args:
        program: after the static passes of one bucket.
        chip: the machine.
        linear_dtype: what if projections multiplied in this dtype, `fp8` for one; None: in their own.

    Returns:
        The run, modelled; every engine of a kind works on one node at a time, so there is one lane a kind. Where the host
        decides between two recorded graphs, the one that takes longer is run, after the host has read the condition.
    """
    if holds_branches(program.root):
        root = copy_graph(program.root)
        inline_branches(root)
        route = _Route(ProgramTasks(chip, linear_dtype=linear_dtype))
        route.follow(root)
        return _whole(route.found, tuple(route.branches))
    repeated = _repeated(program.root, chip, linear_dtype)
    if repeated is None:
        found = ProgramTasks(chip, linear_dtype=linear_dtype)
        found.graph(program.root, {})
        return _whole(found)
    return repeated


def modelled_seconds(program: Program) -> float:
    """What one run of a static program takes on its target, a chip that the machine model knows."""
    assert program.target is not None, "asked by whoever calls"
    return modelled_run(program, load_chip(program.target.name)).timeline.makespan


def _whole(found: ProgramTasks, branches: tuple[str, ...] = ()) -> ModelledRun:
    timeline = vendor_schedule(found.tasks, limits_of(found.chip))
    return ModelledRun(timeline, found.ops, lower_bound(found.tasks), tuple(found.works), branches)


def _repeated(root: fx.GraphModule, chip: Chip, linear_dtype: str | None) -> ModelledRun | None:
    """The run of a graph whose layers repeat, from that of few of them; None if they do not, or run into each other."""
    repeats = list(repeats_of(root))
    if not repeats:
        return None
    fewer, few = (_few(root, ProgramTasks(chip, linear_dtype=linear_dtype), kept) for kept in (KEPT - 1, KEPT))
    timeline: Timeline | None = vendor_schedule(few.tasks, limits_of(chip))
    ops = dict(few.ops)
    for repeat in repeats:
        timeline = None if timeline is None else with_repeats(timeline, repeat)
        ops.update(repeat.names(few.ops))
    if timeline is None:
        return None
    # A bound is convex in the number of layers: from each to the next it grows by no less than this.
    bound = lower_bound(few.tasks)
    bound += (bound - lower_bound(fewer.tasks)) * min(len(repeat.left) for repeat in repeats)
    return ModelledRun(timeline, ops, bound, tuple(few.works))


def _few(root: fx.GraphModule, found: ProgramTasks, kept: int) -> ProgramTasks:
    """The tasks of a graph with so many of the layers that repeat."""
    for repeat in repeats_of(root, kept):
        found.stands_for |= repeat.stands_for()
    found.graph(root, {})
    return found


@dataclass
class _Route:
    """What one call runs: the graphs between branches, and the longer side of each branch."""

    found: ProgramTasks
    branches: list[str] = field(default_factory=list)
    made: dict[str, tuple[str, ...]] = field(default_factory=dict)  # buffer -> tasks that make it
    read: tuple[str, ...] = ()  # the last condition that the host has read
    graphs: int = 0

    def follow(self, module: fx.GraphModule) -> None:
        """Adds the tasks of a graph, which may hold branches."""
        parts = parts_of(module)
        if parts is None:
            self._add(module)
            return
        for part in parts:
            if isinstance(part, Branch):
                self._decide(part)
                self.follow(max(part.then, part.otherwise, key=self._seconds))
            else:
                self.follow(part)

    def _add(self, module: fx.GraphModule) -> None:
        inputs = module.graph.find_nodes(op="placeholder")
        given = {node: (*self.made.get(buffer_of(node), ()), *self.read) for node in inputs}
        results = self.found.graph(module, given, f"{self.graphs}/" if self.graphs else "")
        self.graphs += 1
        outs = enumerate(outputs_of(module.graph))
        self.made.update({buffer_of(out): results[i] for i, out in outs if isinstance(out, fx.Node)})

    def _decide(self, branch: Branch) -> None:
        """The host waits for all that runs, reads the condition and launches the graph of one side."""
        place, host = branch.source or branch.condition, self.found.chip.host
        self.branches.append(place)
        name, earlier = f"condition_{len(self.branches)}", tuple(task.name for task in self.found.tasks)
        self.found.tasks.append(Task(name, Engine.HOST, host.transfer_latency + host.replay_seconds, earlier))
        self.found.ops[name] = "read condition", ""
        self.read = (name,)

    def _seconds(self, side: fx.GraphModule) -> float:
        """A side alone."""
        alone = _Route(ProgramTasks(self.found.chip, linear_dtype=self.found.linear_dtype))
        alone.follow(copy_graph(side))
        return vendor_schedule(alone.found.tasks, limits_of(alone.found.chip)).makespan
