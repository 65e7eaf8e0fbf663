"""A sequence of ops as a model runs them, and what a run costs: the step between `cost` and whole-model figures.

A `Workload` is what a captured graph becomes (`fx.workload_of`) or what `decoder` builds from a model's dimensions.
`run_cost` prices it in one of Gaudi's execution modes; a schedule of the same ops is made by `schedule`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import Engine, OpClass, OpCost, OpWork, op_cost


class Mode(Enum):
    """How the host drives the device."""

    RECORDED = "recorded"  # recorded graphs, replayed
    LAZY = "lazy"  # ops accumulated and flushed
    EAGER = "eager"  # ops dispatched one by one


@dataclass(frozen=True, slots=True)
class Workload:
    """Ops in program order, repeats folded.

    Attributes:
        parts: (ops, how often they run one after the other), in order.
    """

    parts: tuple[tuple[tuple[OpWork, ...], int], ...]

    @classmethod
    def of(cls, ops: Iterable[OpWork], repeats: int = 1) -> Workload:
        """A workload of one part."""
        return cls(((tuple(ops), repeats),))

    def __add__(self, other: Workload) -> Workload:
        return Workload(self.parts + other.parts)


@dataclass(frozen=True, slots=True)
class RunCost:
    """What one run of a workload costs, modelled.

    Attributes:
        seconds: wall time.
        device_seconds: time the device is busy or waits for a result of its own.
        host_seconds: time the host needs to drive it; the longer of the two counts.
        busy: engine -> seconds.
        hbm_bytes: bytes moved from and to HBM.
        flops: multiplications and additions.
        nodes: device nodes launched.
    """

    seconds: float
    device_seconds: float
    host_seconds: float
    busy: dict[Engine, float]
    hbm_bytes: int
    flops: int
    nodes: int


def run_cost(workload: Workload, chip: Chip, *, mode: Mode = Mode.RECORDED, graphs: int = 1) -> RunCost:
    """Prices a workload as a stock graph runs it: a chain of ops, of which the graph compiler overlaps a part.

    Every op pays the hand-off to the next; of MME and TPC work the published `host.engine_overlap` of the shorter
    runs under the longer. What a better schedule gains is `schedule`'s to say.

    Args:
        workload: the ops.
        chip: the machine.
        mode: how the host drives the device.
        graphs: recorded graphs replayed in one run; read in mode RECORDED only.

    Returns:
        The cost of one run.
    """
    busy: defaultdict[Engine, float] = defaultdict(float)
    hbm_bytes = flops = nodes = 0
    beside_mme = 0.0  # TPC time of nodes that the graph compiler bundles with an MME node
    for ops, repeats in workload.parts:
        for op in ops:
            cost: OpCost = op_cost(op, chip)
            if cost.engine is Engine.NONE:
                continue
            busy[cost.engine] += cost.seconds * repeats
            if cost.engine is Engine.TPC and op.op_class is not OpClass.GEMM:
                beside_mme += cost.seconds * repeats
            hbm_bytes += cost.hbm_bytes * repeats
            flops += cost.flops * repeats
            nodes += repeats
    hidden = chip.host.engine_overlap * min(busy[Engine.MME], beside_mme)
    device = sum(busy.values()) - hidden + nodes * chip.host.handoff_seconds
    per_op = {Mode.LAZY: chip.host.lazy_op_seconds, Mode.EAGER: chip.host.eager_op_seconds}
    host = graphs * chip.host.replay_seconds if mode is Mode.RECORDED else nodes * per_op[mode]
    return RunCost(max(device, host), device, host, dict(busy), hbm_bytes, flops, nodes)


@dataclass(frozen=True, slots=True)
class RecordCost:
    """What recording a graph costs, modelled.

    Attributes:
        compile_seconds: graph compile time; with a recipe cache it is paid once per unique graph.
        capture_seconds: time to record.
        graph_bytes: memory held besides weights, state and buffers.
    """

    compile_seconds: float
    capture_seconds: float
    graph_bytes: float


def record_cost(nodes: int, chip: Chip) -> RecordCost:
    """Prices compiling and recording a graph.

    Args:
        nodes: device nodes of the graph.
        chip: the machine.

    Returns:
        Compile time, capture time and memory.
    """
    host = chip.host
    return RecordCost(
        nodes * host.compile_seconds_per_node,
        nodes * host.capture_seconds_per_node,
        nodes * host.graph_bytes_per_node,
    )
