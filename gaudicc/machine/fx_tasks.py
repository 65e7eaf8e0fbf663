"""From captured graphs to schedules: the tasks of ATen nodes, with the dependences between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from gaudicc.machine.attention_cost import Costs
from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import ELEMENT_BYTES, Engine, OpCost, OpWork, op_cost
from gaudicc.machine.fx import ATTENTION, attention_shape, op_name, works_of
from gaudicc.machine.split import fused_work
from gaudicc.machine.timeline import Task


def tasks_of(nodes: Iterable[fx.Node], chip: Chip, *, on_chip: bool = False) -> tuple[Task, ...]:
    """Tasks for a scheduler: one per node and bias, dependences traced through views.

    Args:
        nodes: of one graph, in order; all but `call_function` nodes are passed over.
        chip: the machine.
        on_chip: results stay in on-chip memory until they are read.

    Returns:
        The tasks in program order, without bundles and slices.
    """
    tasks: list[Task] = []
    made_by: dict[fx.Node, tuple[str, ...]] = {}  # node -> tasks whose results it stands for
    for node in nodes:
        if node.op != "call_function":
            continue
        after = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in made_by.get(source, ())))
        added = node_tasks(node, priced(node, chip, on_chip=on_chip), chip, after, on_chip=on_chip)
        tasks += added
        made_by[node] = tuple(task.name for task in added[-1:]) or after
    return tuple(tasks)


def priced(
    node: fx.Node, chip: Chip, *, on_chip: bool = False, linear_dtype: str | None = None
) -> list[tuple[OpWork, OpCost]]:
    """What a node computes, with its cost; nothing for what the target's table knows as a view or a logical concat.

    What passes between the nodes that split-attention has numbered (`meta["slice"]`), and inside fused attention, stays on chip.

    Args:
        node: a `call_function` node.
        chip: the machine.
        on_chip: results stay in on-chip memory until they are read.
        linear_dtype: what if projections multiplied in this dtype; None: in that of the node.
    """
    if op_name(node) != ATTENTION and getattr(node.meta.get("engine"), "value", None) == "none":
        return []
    on_chip = on_chip or "slice" in node.meta or op_name(node) == ATTENTION
    works = (_multiplied_in(linear_dtype, work) if linear_dtype else work for work in works_of(node))
    costs = ((work, op_cost(work, chip, on_chip=on_chip)) for work in works)
    return [(work, cost) for work, cost in costs if cost.engine is not Engine.NONE]


def _multiplied_in(dtype: str, work: OpWork) -> OpWork:
    """A projection with operands of another dtype; what makes them so is taken to be part of what is before it."""
    if work.gemm is None or work.gemm.batch or not work.weight_bytes or work.dtype not in ("bf16", "fp16", "fp32"):
        return work
    ratio = ELEMENT_BYTES[dtype] / ELEMENT_BYTES[work.dtype]
    read, weights = round(work.read_bytes * ratio), round(work.weight_bytes * ratio)
    return replace(work, dtype=dtype, gemm=replace(work.gemm, dtype=dtype), read_bytes=read, weight_bytes=weights)


def node_tasks(
    node: fx.Node, works: Iterable[tuple[OpWork, OpCost]], chip: Chip, after: tuple[str, ...], *, on_chip: bool = False
) -> list[Task]:
    """The tasks of one node, each after the one before it; none for a view.

    Fused attention is three tasks: the part of the shorter engine's work that nothing hides, then both at once.

    Args:
        node: a `call_function` node.
        works: as `priced` gives them.
        chip: the machine.
        after: names of the tasks whose results it reads.
        on_chip: results stay in on-chip memory until they are read.
    """
    if op_name(node) == ATTENTION:
        return _fused_tasks(node, chip, after)
    place = node.meta.get("slice")
    kept = on_chip or any(user.meta.get("slice") == place for user in node.users if place is not None)
    tasks: list[Task] = []
    for op, cost in works:
        tasks.append(Task(op.name, cost.engine, cost.seconds, after, op.written_bytes if kept else 0, slice=place))
        after = (op.name,)
    return tasks


def _fused_tasks(node: fx.Node, chip: Chip, after: tuple[str, ...]) -> list[Task]:
    mme, tpc = fused_work(Costs(attention_shape(node), chip))
    short, long = sorted(((mme, Engine.MME), (tpc, Engine.TPC)), key=lambda pair: pair[0])
    hidden, name = chip.host.engine_overlap * short[0], node.name
    exposed = Task(f"{name}_exposed", short[1], short[0] - hidden, after)
    beside = Task(f"{name}_hidden", short[1], hidden, (exposed.name,))
    return [exposed, beside, Task(name, long[1], long[0] + chip.host.node_seconds, (exposed.name,))]
