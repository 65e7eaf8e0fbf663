"""Attention on two engines, first part: its shape, and the ways of cutting it into slices.

`attention_cost` says what each slice costs, `split` chooses among the ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import inf

# Keys skipped and chunk edges are multiples of this: a full vector of bf16, and what the MME takes without waste.
KEY_STEP = 128


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
    """The slices of a split in program order: blocks of heads, in them blocks of rows, in them chunks of keys.

    The last rows come first: where attention is causal they see the most keys, and short slices at the end leave the engines
    idle for less.
    """
    for batch, heads in head_blocks(shape, split.heads):
        yield from _block(shape, split, batch, heads)


def first_block(shape: AttentionShape, split: Split) -> Iterator[Tile]:
    """The slices of the first block of heads; those of the others differ in nothing that costs time."""
    return _block(shape, split, *next(head_blocks(shape, split.heads)))


def _block(shape: AttentionShape, split: Split, batch: tuple[int, int], heads: tuple[int, int]) -> Iterator[Tile]:
    for row in reversed(range(0, shape.queries, split.rows)):
        rows = (row, min(shape.queries, row + split.rows))
        chunks = list(_chunks(shape.span(*rows), split.keys))
        for index, keys in enumerate(chunks):
            yield Tile(batch, heads, rows, keys, index == 0, index == len(chunks) - 1)


def head_blocks(shape: AttentionShape, size: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(Sequences, query heads) of each block of so many heads, counted over the whole batch."""
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


def splits(
    shape: AttentionShape, *, most_slices: int | None = None, most_scores: float | None = None
) -> Iterator[Split]:
    """All ways of cutting that are considered: powers of two, the whole in place of the last one, and half-way sizes of keys.

    Without the half-way sizes some prompts have no split that stays good when constants are off.

    Args:
        shape: the attention.
        most_slices: ways with more slices than this are left out.
        most_scores: ways in which one slice has more scores than this are left out.

    Yields:
        Splits with at least two slices.
    """
    rows = _powers(KEY_STEP, shape.queries)
    powers = _powers(512, shape.keys)
    keys = [0, *(size for power in powers for size in (power, power * 3 // 2) if size < shape.keys)]
    for split in (Split(*sizes) for sizes in product(_head_sizes(shape), rows, keys)):
        if most_scores is not None and _most_scores(shape, split) > most_scores:
            continue
        if 2 <= count_slices(shape, split, most_slices) <= (most_slices or inf):
            yield split


def _most_scores(shape: AttentionShape, split: Split) -> int:
    """Scores of the largest slice."""
    width = split.keys
    if not width:
        spans = (shape.span(row, min(shape.queries, row + split.rows)) for row in range(0, shape.queries, split.rows))
        width = max(high - low for low, high in spans)
    return split.heads * min(split.rows, shape.queries) * width


def count_slices(shape: AttentionShape, split: Split, stop: int | None = None) -> int:
    """Slices of a split; counting ends once there are more than `stop`."""
    blocks, total = shape.batch * shape.heads // split.heads, 0
    for row in range(0, shape.queries, split.rows):
        low, high = shape.span(row, min(shape.queries, row + split.rows))
        total += blocks * -(-(high - low) // (split.keys or high - low))
        if stop is not None and total > stop:
            break
    return total


def body_heads(shape: AttentionShape, split: Split, most: int) -> int:
    """Heads that are written down once, their slices standing for those of all others: as many as have at most `most` slices.

    Args:
        shape: the attention.
        split: how it is cut.
        most: slices that are written down at most, if one block of heads has no more.

    Returns:
        All heads of the batch if these have no more slices than that.
    """
    each = block_slices(shape, split)
    fitting = [n for n in _head_sizes(shape) if n % split.heads == 0 and n // split.heads * each <= most]
    return max(fitting, default=split.heads)


def block_slices(shape: AttentionShape, split: Split) -> int:
    """Slices of one block of heads."""
    return count_slices(shape, split) * split.heads // (shape.batch * shape.heads)


def with_heads(shape: AttentionShape, heads: int) -> AttentionShape:
    """The attention of one of the blocks of so many heads, as `head_blocks` gives them."""
    if heads >= shape.heads:
        return replace(shape, batch=heads // shape.heads)
    return replace(shape, batch=1, heads=heads, kv_heads=max(1, heads * shape.kv_heads // shape.heads))


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
