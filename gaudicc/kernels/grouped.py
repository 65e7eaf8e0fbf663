"""`gaudicc::grouped_linear`: every row times the weight of its group, as the experts of a mixture want it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gaudicc.kernels.registry import define

aten = torch.ops.aten
# (Rows of a block, turns that its products are long enough for: each is more nodes.)
_TURNS = ((512, 4), (128, 2))


def _reference(rows: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    result = rows.new_zeros(rows.shape[0], weight.shape[1])
    for index in group.unique().tolist():
        members = (group == index).nonzero()[:, 0]
        result[members] = rows[members] @ weight[index].t()
    return result


def block_of(rows: int, groups: int) -> int:
    """Rows of one block: the largest power of two that is no more than the mean number of rows of a group."""
    return 1 << max(rows // groups, 1).bit_length() - 1


def block_counts(rows: int, groups: int) -> tuple[int, int]:
    """(Blocks that are multiplied by a group's weight where it lies, those whose weight is copied beside them).

    With no fewer rows than groups each group has a first block of its own, and of what does not fit there less than one block
    is left for each `block_of` rows: at most `rows + groups * block` rows are multiplied, less than three times those that
    are there, and fewer than `2 * groups` weights are copied. With fewer rows most groups have none; then no more weights are
    read than there are rows.
    """
    block = block_of(rows, groups)
    return (groups, (rows - 1) // block) if rows >= groups else (0, rows)


OfBlocks = Callable[[Tensor], Tensor]
"""From a tensor with one entry a group to one with the entry of each block's group."""


def multiplied(blocks: Tensor, weight: Tensor) -> Tensor:
    """`[blocks, block, width]` times the weight of each, `[blocks, out, width]`."""
    product: Tensor = aten.bmm.default(blocks, aten.transpose.int(weight, 1, 2))
    return product


def plain_grouped_linear(rows: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """The same in plain ATen of static sizes, whatever the groups are."""

    def apply(blocks: Tensor, of: OfBlocks) -> Iterator[Tensor]:
        yield multiplied(blocks, of(weight))

    if not rows.shape[0]:
        return rows.new_zeros(0, weight.shape[1])
    return plain_experts(rows, group, weight.shape[0], apply)


def plain_experts(
    rows: Tensor, group: Tensor, groups: int, apply: Callable[[Tensor, OfBlocks], Iterator[Tensor]]
) -> Tensor:
    """What a function that works row by row makes of rows, each with what belongs to its group; in plain ATen of static sizes.

    Each group's rows are moved together and filled up to whole blocks with any row. The function is applied to the blocks of
    which each group has one, and to the others, to parts of them if they are large, in turn: so one's vector work can run
    under the other's products. What it makes of the rows that were filled up is not read.

    Args:
        rows: `[count, width]`, one or more; or fewer, each standing for as many of `group` that follow each other.
        group: int64 `[count]`.
        groups: how many there are.
        apply: from `[blocks, block, width]`, and what looks up the entries of these blocks' groups, a generator: it stops where
            the other blocks may have their turn, and yields `[blocks, block, out]` last.

    Returns:
        `[count, out]`.
    """
    count, width = group.shape[0], rows.shape[1]
    block, (own, more) = block_of(count, groups), block_counts(count, groups)
    slot, owner = _places(group, groups, block, own, more)
    # Each place of a block -> the row that is put there; a place that is filled up takes the first one.
    numbers = aten.arange.default(rows.shape[0], dtype=torch.int32, device=rows.device)
    if count > rows.shape[0]:
        wide = aten.expand.default(aten.unsqueeze.default(numbers, 1), [rows.shape[0], count // rows.shape[0]])
        numbers = aten.view.default(aten.clone.default(wide, memory_format=torch.contiguous_format), [count])
    room = aten.full.default([(own + more) * block], 0, dtype=torch.int32, device=rows.device)
    source = aten._to_copy.default(aten.index_copy.default(room, 0, slot, numbers), dtype=torch.int64)
    packed = aten.view.default(aten.index_select.default(rows, 0, source), [own + more, block, width])
    chosen = aten._to_copy.default(owner, dtype=torch.int64)

    def weights(low: int, high: int) -> OfBlocks:
        if high <= own:
            return lambda table: _cut(table, low, high)
        return lambda table: aten.index_select.default(table, 0, _cut(chosen, low - own, high - own))

    spans = [*_spans(0, own, block), *_spans(own, own + more, block)]
    runs = [apply(_cut(packed, *span), weights(*span)) for span in spans]
    *_, results = zip(*runs, strict=True)
    whole = aten.cat.default(list(results)) if len(results) > 1 else results[0]
    flat = aten.view.default(whole, [(own + more) * block, whole.shape[2]])
    result: Tensor = aten.index_select.default(flat, 0, slot)
    return result


def _spans(low: int, high: int, block: int) -> list[tuple[int, int]]:
    """Blocks that have their turn together: fewer, the longer their products are."""
    turns = next((turns for least, turns in _TURNS if block >= least), 1)
    step = max(1, -(-(high - low) // turns))
    return [(start, min(high, start + step)) for start in range(low, high, step)]


def _cut(x: Tensor, low: int, high: int) -> Tensor:
    return x if (low, high) == (0, x.shape[0]) else aten.slice.Tensor(x, 0, low, high)


def _places(group: Tensor, groups: int, block: int, own: int, more: int) -> tuple[Tensor, Tensor]:
    """(Where each row is put, int64; the group of each block behind the first `own`, int32)."""
    count = group.shape[0]
    ids = aten.arange.default(groups, dtype=group.dtype, device=group.device)
    member = aten._to_copy.default(aten.eq.Tensor(aten.unsqueeze(group, 1), ids), dtype=torch.int32)
    order = aten.cumsum.default(member, 0, dtype=torch.int32)
    sizes = aten.select.int(order, 0, count - 1)
    beside = aten.clamp.default(aten.sub.Scalar(sizes, block), 0) if own else sizes
    whole = aten.bitwise_and.Scalar(aten.add.Scalar(beside, block - 1), -block)
    ends = aten.cumsum.default(whole, 0, dtype=torch.int32)
    places = aten.add.Scalar(aten.add.Tensor(aten.sub.Tensor(ends, whole), order), -1)
    if own:
        starts = aten.arange.start_step(0, own * block, block, dtype=torch.int32, device=group.device)
        fits = aten.le.Scalar(order, block)
        first = aten.add.Scalar(aten.add.Tensor(order, starts), -1)
        places = aten.where.self(fits, first, aten.add.Scalar(places, (own - 1) * block))
    # A row's place is that in the column of its group.
    slot = aten._to_copy.default(aten.sum.dim_IntList(aten.mul.Tensor(places, member), [1]), dtype=torch.int64)
    begins = aten.arange.start_step(0, more * block, block, dtype=torch.int32, device=group.device)
    passed = aten._to_copy.default(aten.ge.Tensor(aten.unsqueeze(begins, 1), ends), dtype=torch.int32)
    return slot, aten.clamp.default(aten.sum.dim_IntList(passed, [1], dtype=torch.int32), None, groups - 1)


def _fake(rows: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


grouped_linear = define("grouped_linear(Tensor rows, Tensor weight, Tensor group) -> Tensor", _reference, _fake)
"""Row i of the result is `rows[i] @ weight[group[i]].T`.

Args:
    rows: `[count, width]`, floating point.
    weight: `[groups, out, width]`, of the same dtype.
    group: int64 `[count]`, from 0 to groups - 1, in any order.

Returns:
    `[count, out]`.
"""
