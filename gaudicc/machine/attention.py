"""Attention on two engines: the ways of cutting it into slices, and what each slice costs.

A slice is QK^T on the MME, one softmax node on the TPCs, weights x V on the MME; where the keys are cut, one more TPC
node merges its result into that of the slices before it. `split` chooses among the ways. All times are modelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import ELEMENT_BYTES, Engine, OpClass, OpCost, OpWork, op_cost
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.timeline import Task

# Keys skipped and chunk edges are multiples of this: a full vector of bf16, and what the MME takes without waste.
KEY_STEP = 128
# A merge scales and adds an output element of a slice: two exponentials per row besides.
_MERGE_FLOPS = 6


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What one attention computes.

    Attributes:
        batch: sequences.
        heads: query heads.
        kv_heads: key/value heads; divides `heads`.
        queries: rows.
        keys: columns.
        dim: size of a key.
        value_dim: size of a value.
        dtype: of all operands.
        ahead: row i sees keys 0 .. i + ahead at most; None if every row may see every key.
        window: row i sees the last `window` keys of these at most; None if there is no such limit.
        mask_bytes: bytes that a mask adds to the reading of one score; 0 without mask.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    value_dim: int
    dtype: str = "bf16"
    ahead: int | None = None
    window: int | None = None
    mask_bytes: int = 0

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Keys that rows `first` to `last - 1` may see, rounded out to `KEY_STEP`; never empty."""
        high = self.keys if self.ahead is None else min(self.keys, last + self.ahead)
        low = 0
        if self.ahead is not None and self.window is not None:
            low = max(0, first + self.ahead + 1 - self.window) // KEY_STEP * KEY_STEP
        high = min(self.keys, -(-high // KEY_STEP) * KEY_STEP)
        return (low, high) if low < high else (0, min(KEY_STEP, self.keys))


@dataclass(frozen=True, slots=True, order=True)
class Split:
    """How an attention is cut.

    Attributes:
        heads: query heads in a slice, counted over the whole batch.
        rows: query rows in a slice.
        keys: keys in a slice; 0 if each slice sees all keys of its rows.
    """

    heads: int
    rows: int
    keys: int = 0

    def __str__(self) -> str:
        return f"{self.heads} heads x {self.rows} rows x {self.keys or 'all'} keys"


@dataclass(frozen=True, slots=True)
class Tile:
    """One slice.

    Attributes:
        batch: first and last sequence, the last exclusive, as in all these ranges.
        heads: query heads.
        rows: query rows.
        keys: keys.
        first: it is the first of its rows.
        last: it is the last of its rows.
    """

    batch: tuple[int, int]
    heads: tuple[int, int]
    rows: tuple[int, int]
    keys: tuple[int, int]
    first: bool
    last: bool

    @property
    def items(self) -> int:
        """Query heads over all its sequences."""
        return (self.batch[1] - self.batch[0]) * (self.heads[1] - self.heads[0])


def tiles(shape: AttentionShape, split: Split) -> Iterator[Tile]:
    """The slices of a split in program order: blocks of heads, in them blocks of rows, in them chunks of keys."""
    for batch, heads in _head_blocks(shape, split.heads):
        for row in range(0, shape.queries, split.rows):
            rows = (row, min(shape.queries, row + split.rows))
            chunks = list(_chunks(shape.span(*rows), split.keys))
            for index, keys in enumerate(chunks):
                yield Tile(batch, heads, rows, keys, index == 0, index == len(chunks) - 1)


def _head_blocks(shape: AttentionShape, size: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    if size >= shape.heads:
        step = size // shape.heads
        for start in range(0, shape.batch, step):
            yield (start, min(shape.batch, start + step)), (0, shape.heads)
        return
    for start in range(shape.batch):
        for head in range(0, shape.heads, size):
            yield (start, start + 1), (head, head + size)


def _chunks(span: tuple[int, int], size: int) -> Iterator[tuple[int, int]]:
    low, high = span
    step = size or high - low
    for start in range(low, high, step):
        yield start, min(high, start + step)


def splits(shape: AttentionShape, *, most_slices: int | None = None) -> Iterator[Split]:
    """All ways of cutting that are considered: powers of two, the whole in place of the last one.

    Args:
        shape: the attention.
        most_slices: ways with more slices than this are left out.

    Yields:
        Splits with at least two slices that do not depend on each other.
    """
    rows = _powers(KEY_STEP, shape.queries)
    keys = [0, *(size for size in _powers(512, shape.keys) if size < shape.keys)]
    for heads in _head_sizes(shape):
        blocks = shape.batch * shape.heads // heads
        for row in rows:
            if blocks * -(-shape.queries // row) < 2 and shape.keys < 1024:
                continue
            for chunk in keys:
                split = Split(heads, row, chunk)
                if 2 <= count_slices(shape, split, most_slices) <= (most_slices or float("inf")):
                    yield split


def count_slices(shape: AttentionShape, split: Split, stop: int | None = None) -> int:
    """Slices of a split; counting ends once there are more than `stop`."""
    blocks = shape.batch * shape.heads // split.heads
    total = 0
    for row in range(0, shape.queries, split.rows):
        low, high = shape.span(row, min(shape.queries, row + split.rows))
        total += blocks * -(-(high - low) // (split.keys or high - low))
        if stop is not None and total > stop:
            break
    return total


def _powers(first: int, whole: int) -> list[int]:
    sizes = []
    while first < whole:
        sizes.append(first)
        first *= 2
    return [*sizes, whole]


def _head_sizes(shape: AttentionShape) -> list[int]:
    """Heads in a slice: parts of a group, whole groups, whole sequences; powers of two of each."""
    groups = shape.heads // shape.kv_heads
    inside = [size for size in range(1, groups) if groups % size == 0]
    several = [groups * n for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0]
    batches = [shape.heads * n for n in range(2, shape.batch + 1) if shape.batch % n == 0]
    return [*inside, *several, *batches]


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
        counts = Counter(id(self.of(tile)) for tile in tiles(self.shape, split))
        by_id = {id(cost): cost for cost in self._known.values()}
        return [(by_id[key], count) for key, count in counts.items()]


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
    """One vector node: reads a float32 sum and the slice's result, writes the sum, or the output if it is the last."""
    per_element = chip.tpc.flops_per_element["elementwise"]
    work = OpWork(
        "merge", OpClass.ELEMENTWISE, "fp32", elements=round(elements * _MERGE_FLOPS / per_element),
        read_bytes=4 * elements + out_bytes, written_bytes=out_bytes if last else 4 * elements,
        weight_bytes=out_bytes if last else 0,
    )  # fmt: skip
    return op_cost(work, chip, on_chip=True)


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
