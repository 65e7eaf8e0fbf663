"""`gaudicc::grouped_linear`: every row times the weight of its group, as the experts of a mixture want it."""

from __future__ import annotations

import torch
from torch import Tensor

from gaudicc.kernels.registry import define

aten = torch.ops.aten


def _reference(rows: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    result = rows.new_zeros(rows.shape[0], weight.shape[1])
    for index in group.unique().tolist():
        members = (group == index).nonzero()[:, 0]
        result[members] = rows[members] @ weight[index].t()
    return result


def block_of(rows: int, groups: int) -> int:
    """Rows of one block: the largest power of two that is no more than the mean number of rows of a group.

    At most `rows + groups * (block - 1)` rows are multiplied then, less than twice those that are there, and less than
    `3 * groups` weights are copied beside the blocks once there are more rows than groups.
    """
    return 1 << max(rows // groups, 1).bit_length() - 1


def plain_grouped_linear(rows: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """The same in plain ATen of static sizes: whatever the groups are, so many blocks hold their rows.

    Each group's rows are moved together and filled up to whole blocks with zeros; one batched product multiplies each block by
    the weight of its group, and the rows are picked out again.
    """
    (count, width), groups = rows.shape, weight.shape[0]
    if not count:
        return rows.new_zeros(0, weight.shape[1])
    block = block_of(count, groups)
    blocks = (count + groups * (block - 1)) // block
    ids = aten.arange.default(groups, dtype=group.dtype, device=group.device)
    member = aten._to_copy.default(aten.eq.Tensor(aten.unsqueeze(group, 1), ids), dtype=torch.int32)
    order = aten.cumsum.default(member, 0, dtype=torch.int32)
    whole = aten.bitwise_and.Scalar(aten.add.Scalar(aten.select.int(order, 0, count - 1), block - 1), -block)
    ends = aten.cumsum.default(whole, 0, dtype=torch.int32)
    before = aten.add.Scalar(
        aten.add.Tensor(aten.sub.Tensor(ends, whole), order), -1
    )  # the slot, if the row is a member
    slot = aten._to_copy.default(aten.sum.dim_IntList(aten.mul.Tensor(before, member), [1]), dtype=torch.int64)
    starts = aten.arange.start_step(0, blocks * block, block, dtype=torch.int32, device=group.device)
    passed = aten._to_copy.default(aten.ge.Tensor(aten.unsqueeze(starts, 1), ends), dtype=torch.int32)
    owner = aten.clamp.default(aten.sum.dim_IntList(passed, [1], dtype=torch.int32), None, groups - 1)
    room = aten.full.default([blocks * block, width], 0, dtype=rows.dtype, device=rows.device)
    packed = aten.view.default(aten.index_copy.default(room, 0, slot, rows), [blocks, block, width])
    chosen = aten.index_select.default(weight, 0, aten._to_copy.default(owner, dtype=torch.int64))
    product = aten.bmm.default(packed, aten.transpose.int(chosen, 1, 2))
    flat = aten.view.default(product, [blocks * block, weight.shape[1]])
    result: Tensor = aten.index_select.default(flat, 0, slot)
    return result


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
