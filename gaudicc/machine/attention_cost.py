"""Attention on two engines, second part: what each slice costs, and the tasks of a split.

A slice is QK^T on the MME, one softmax node on the TPCs, weights x V on the MME; where the keys are cut, one more TPC
node merges its result into that of the slices before it. All times are modelled.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from gaudicc.machine.attention import AttentionShape, Split, Tile, first_block, tiles
from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import ELEMENT_BYTES, Engine, OpClass, OpCost, OpWork, op_cost
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.timeline import Task

# Nodes of a merge on two numbers a row: maximum, difference, exponential, product, sum, bound, share.
_ROW_NODES = 7


@dataclass(frozen=True)
class TileCost:
    """What one slice costs.

    Attributes:
        scores: QK^T.
        softmax: the vector node.
        values: weights x V.
        merge: into the slices before it; None for the first of its rows.
        score_bytes: on-chip memory for scores and weights side by side.
        out_bytes: on-chip memory for a result that is still to be merged; 0 if it goes to HBM.
    """

    scores: OpCost
    softmax: OpCost
    values: OpCost
    merge: OpCost | None
    score_bytes: int
    out_bytes: int

    @cached_property
    def mme(self) -> float:
        """Seconds on the MME."""
        return sum(part.seconds for part in (self.scores, self.values) if part.engine is Engine.MME)

    @cached_property
    def tpc(self) -> float:
        """Seconds on the TPCs."""
        return self.length - self.mme

    @cached_property
    def length(self) -> float:
        """Seconds from start to end."""
        parts = (self.scores, self.softmax, self.values, self.merge)
        return sum(part.seconds for part in parts if part is not None)


class Costs:
    """Costs of the slices of one attention on one chip; slices of equal shape are priced once."""

    def __init__(self, shape: AttentionShape, chip: Chip) -> None:
        self.shape, self.chip = shape, chip
        self._known: dict[tuple[int, int, int, bool, bool], TileCost] = {}

    def of(self, tile: Tile) -> TileCost:
        """The cost of one slice."""
        rows, keys = tile.rows[1] - tile.rows[0], tile.keys[1] - tile.keys[0]
        key = (tile.items, rows, keys, tile.first, tile.last)
        if key not in self._known:
            self._known[key] = _tile_cost(self.shape, self.chip, *key)
        return self._known[key]

    def counted(self, split: Split) -> list[tuple[TileCost, int]]:
        """Every different slice of a split with its count."""
        blocks = self.shape.batch * self.shape.heads // split.heads
        counts = Counter(id(self.of(tile)) for tile in first_block(self.shape, split))
        by_id = {id(cost): cost for cost in self._known.values()}
        return [(by_id[key], count * blocks) for key, count in counts.items()]


def _tile_cost(
    shape: AttentionShape, chip: Chip, items: int, rows: int, keys: int, first: bool, last: bool
) -> TileCost:
    width, groups = ELEMENT_BYTES[shape.dtype], shape.heads // shape.kv_heads
    group = min(groups, items)
    batch = tuple(size for size in (group, items // group) if size > 1)
    kv_items, scores = max(1, items // group), items * rows * keys
    shared, part = group > 1, not (first and last)
    query, key, value, out = (
        width * size for size in (items * rows * shape.dim, kv_items * keys * shape.dim,
                                  kv_items * keys * shape.value_dim, items * rows * shape.value_dim)
    )  # fmt: skip
    outside = query + key
    left = OpWork(
        "scores", OpClass.GEMM, shape.dtype,
        Gemm(rows, keys, shape.dim, batch, shape.dtype, trans_b=True, shared_b=shared, flatten=False),
        read_bytes=outside, written_bytes=width * scores, weight_bytes=outside,
    )  # fmt: skip
    softmax = OpWork(
        "softmax", OpClass.SOFTMAX, shape.dtype, elements=scores,
        read_bytes=(width + shape.mask_bytes) * scores, written_bytes=width * scores,
    )  # fmt: skip
    right = OpWork(
        "values", OpClass.GEMM, shape.dtype,
        Gemm(rows, shape.value_dim, keys, batch, shape.dtype, shared_b=shared),
        read_bytes=width * scores + value, written_bytes=out, weight_bytes=value + (0 if part else out),
    )  # fmt: skip
    costs = [op_cost(work, chip, on_chip=True) for work in (left, softmax, right)]
    merge = None if first else _merge_cost(chip, items * rows * shape.value_dim, out, last)
    kept = 0 if not part else out if first else 2 * out
    return TileCost(costs[0], costs[1], costs[2], merge, 2 * width * scores, kept)


def _merge_cost(chip: Chip, elements: int, out_bytes: int, last: bool) -> OpCost:
    """The nodes that a merge is lowered to, one by one: a cast, a weighted mean in float32, statistics of rows.

    The graph compiler's fuser may make one node of them; nothing here counts on it.
    """
    cast = OpWork(
        "cast", OpClass.ELEMENTWISE, "fp32", elements=elements, read_bytes=out_bytes, written_bytes=4 * elements
    )
    mean = OpWork(
        "mean", OpClass.ELEMENTWISE, "fp32", elements=elements, read_bytes=8 * elements, written_bytes=4 * elements
    )
    works = [
        cast,
        mean,
        *([cast, cast] if last else []),
    ]  # the last one pays for the cast of the first part, and of the result
    costs = [op_cost(work, chip, on_chip=True) for work in works]
    seconds = sum(cost.seconds for cost in costs) + _ROW_NODES * chip.host.node_seconds
    compute, memory = sum(cost.compute_seconds for cost in costs), sum(cost.memory_seconds for cost in costs)
    return OpCost(Engine.TPC, seconds, compute, memory, 0, sum(cost.flops for cost in costs))


def split_tasks(costs: Costs, split: Split) -> list[Task]:
    """The tasks of a split, one bundle with one slice per tile, in program order."""
    result: list[Task] = []
    merged = ""
    for index, tile in enumerate(tiles(costs.shape, split)):
        cost, name = costs.of(tile), f"slice{index}"
        scores, softmax, values = (f"{name}.{part}" for part in ("scores", "softmax", "values"))
        result += [
            Task(scores, cost.scores.engine, cost.scores.seconds, (), cost.score_bytes, slice=index),
            Task(softmax, Engine.TPC, cost.softmax.seconds, (scores,), cost.score_bytes // 2, slice=index),
            Task(values, cost.values.engine, cost.values.seconds, (softmax,), cost.out_bytes, slice=index),
        ]
        if cost.merge is not None:
            sums = 0 if tile.last else cost.out_bytes
            result.append(Task(f"{name}.merge", Engine.TPC, cost.merge.seconds, (values, merged), sums, slice=index))
        merged = values if cost.merge is None else f"{name}.merge"
    return result
