"""Between shapes and seconds: what one op costs on a chip, from its shapes and dtypes alone.

An op is described by an `OpWork` (made by hand, by `workload`, or from an ATen node by `fx.work_of`). A GEMM costs MME
cycles (`mme_choice`), everything else vector operations, and either may be bound by memory instead. What the vendor's
MME predictor leaves out is added here and named: the speed of a dtype (`mme.dtype_rate`), the clock that lasts
(`mme.sustained`) and memory. All seconds are modelled, none is measured on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from gaudicc.machine.chip import Chip
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme import cycles_at_rate
from gaudicc.machine.mme_choice import DEFAULT_PIPELINE_DEPTH, choose
from gaudicc.machine.specs import MmeSpec


class Engine(Enum):
    """The unit that runs an op."""

    MME = "MME"
    TPC = "TPC"
    DMA = "DMA"
    NETWORK = "NETWORK"
    HOST = "HOST"
    NONE = "NONE"


class OpClass(Enum):
    """What kind of work an op is; the values of vector classes are the keys of `tpc.flops_per_element`."""

    VIEW = "view"
    GEMM = "gemm"
    COPY = "copy"
    ELEMENTWISE = "elementwise"
    TRANSCENDENTAL = "transcendental"
    REDUCTION = "reduction"
    NORM = "norm"
    SOFTMAX = "softmax"
    GATHER = "gather"
    SORT = "sort"
    ALL_REDUCE = "all_reduce"
    FALLBACK = "fallback"


ELEMENT_BYTES = {
    "fp8": 1, "int8": 1, "bool": 1, "bf16": 2, "fp16": 2, "int16": 2, "fp32": 4, "tf32": 4, "int32": 4,
    "int64": 8, "fp64": 8,
}  # fmt: skip


# A batch of products with at most this many rows (or columns) each may run on the vector engines.
THIN_ROWS = 16


@dataclass(frozen=True, slots=True)
class OpWork:
    """The work of one op.

    Attributes:
        name: what to call it in tables and timelines.
        op_class: the kind of work.
        dtype: of the computation; a key of `ELEMENT_BYTES`.
        gemm: the product, for class GEMM.
        elements: elements computed by a vector op.
        read_bytes: bytes of all operands.
        written_bytes: bytes of all results.
        weight_bytes: those of `read_bytes` that lie in HBM whatever came before: weights, KV cache.
        row_bytes: bytes that a gather reads in one place.
        cards: chips that take part in a collective.
    """

    name: str
    op_class: OpClass
    dtype: str = "bf16"
    gemm: Gemm | None = None
    elements: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    weight_bytes: int = 0
    row_bytes: int = 0
    cards: int = 1


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one op costs, modelled.

    Attributes:
        engine: the unit that runs it.
        seconds: time for which it holds the engine.
        compute_seconds: the part that arithmetic needs.
        memory_seconds: the part that memory, the network or the host link needs.
        hbm_bytes: bytes moved from and to HBM.
        flops: multiplications and additions.
    """

    engine: Engine
    seconds: float
    compute_seconds: float
    memory_seconds: float
    hbm_bytes: int
    flops: int

    @property
    def bound(self) -> str:
        """`compute` or `memory`, whichever takes longer."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


_FREE = OpCost(Engine.NONE, 0.0, 0.0, 0.0, 0, 0)


def op_cost(op: OpWork, chip: Chip, *, on_chip: bool = False) -> OpCost:
    """The modelled cost of one op, run alone.

    Args:
        op: the work.
        chip: the machine.
        on_chip: operands and results other than weights stay in on-chip memory, as inside a slice.

    Returns:
        Engine, seconds and what they are made of.
    """
    if op.op_class is OpClass.VIEW:
        return _FREE
    if op.op_class is OpClass.ALL_REDUCE:
        return _all_reduce(op, chip)
    if op.op_class is OpClass.FALLBACK:
        return _fallback(op, chip)
    moved = op.read_bytes + op.written_bytes
    hbm_bytes = op.weight_bytes if on_chip else moved
    memory = hbm_bytes / chip.memory.stream + (moved - hbm_bytes) / chip.memory.sram_bandwidth
    if op.op_class is OpClass.COPY and chip.dma is not None:
        seconds = max(memory, moved / chip.dma.bandwidth, chip.dma.minimum_seconds)
        return OpCost(Engine.DMA, seconds, 0.0, seconds, hbm_bytes, 0)
    if op.op_class is OpClass.GEMM:
        engine, compute = _product_seconds(_product(op), chip)
        flops = 2 * _product(op).macs
        if _is_thin(_product(op)):
            memory /= chip.memory.cache_efficiency
    else:
        per_element = chip.tpc.flops_per_element[op.op_class.value]
        engine, flops = Engine.TPC, round(op.elements * per_element)
        compute = flops / chip.tpc.peak_flops(max(2, ELEMENT_BYTES[op.dtype]))
        if op.op_class is OpClass.GATHER:
            rows = min(1.0, op.row_bytes / chip.tpc.vector_bytes) if op.row_bytes else 1.0
            memory /= chip.tpc.gather_efficiency * rows
    return OpCost(engine, max(compute, memory) + chip.host.node_seconds, compute, memory, hbm_bytes, flops)


def gemm_seconds(gemm: Gemm, chip: Chip) -> float:
    """Compute time of a GEMM on the MME: the vendor's cycles, at the rate of its dtype and the clock that lasts."""
    if not gemm.macs:  # of a batch of nothing
        return 0.0
    return _mme_seconds(gemm, chip.mme)


@lru_cache(maxsize=8192)
def _mme_seconds(gemm: Gemm, mme: MmeSpec) -> float:
    depth = DEFAULT_PIPELINE_DEPTH if mme.generation == 2 else 1
    chosen = choose(gemm, mme, pipeline_depth=depth)
    return cycles_at_rate(chosen, gemm.k, mme.dtype_rate[gemm.dtype], mme) / (mme.clock_mhz * 1e6 * mme.sustained)


def _product_seconds(gemm: Gemm, chip: Chip) -> tuple[Engine, float]:
    """Engine and compute time of a product.

    A batch of products with a few rows each (decode attention) leaves an MME tile nearly empty and pays its drain
    floor for every item; vector engines then take less. No source says which engine Gaudi's compiler takes: the MME
    alone would need more than the whole measured step of Llama-2-7B at batch 163.
    """
    on_mme = gemm_seconds(gemm, chip)
    if not _is_thin(gemm):
        return Engine.MME, on_mme
    on_tpc = 2 * gemm.macs / chip.tpc.peak_flops(max(2, gemm.element_bytes))
    return (Engine.TPC, on_tpc) if on_tpc < on_mme else (Engine.MME, on_mme)


def _is_thin(gemm: Gemm) -> bool:
    return bool(gemm.items) and min(gemm.m, gemm.n) <= THIN_ROWS


def _product(op: OpWork) -> Gemm:
    if op.gemm is None:
        raise ValueError(f"{op.name} is of class GEMM and has no gemm")
    return op.gemm


def _all_reduce(op: OpWork, chip: Chip) -> OpCost:
    """Reduce-scatter and all-gather over links to every peer at once: each chip sends 2 (n-1)/n of the bytes."""
    peers = op.cards - 1
    if peers == 0:
        return _FREE
    network = chip.network
    bandwidth = network.link_bandwidth * network.links_per_peer * peers * network.efficiency
    seconds = 2 * peers / op.cards * op.read_bytes / bandwidth + peers * network.latency
    return OpCost(Engine.NETWORK, seconds, 0.0, seconds, op.read_bytes + op.written_bytes, 0)


def _fallback(op: OpWork, chip: Chip) -> OpCost:
    """An op that leaves the device: copy out, compute on the host, copy back."""
    host = chip.host
    moved = op.read_bytes + op.written_bytes
    transfer = moved / host.pcie_bandwidth + 2 * host.transfer_latency
    compute = op.elements / host.flops
    return OpCost(Engine.HOST, transfer + compute, compute, transfer, moved, op.elements)
