"""Rules for numpy-style indexing: `x[i, :, j]`, `x[i] = v`, `x[mask] = v`, `nonzero` of a static size.

The table knows `index.Tensor` without any dtype, so several index tensors are folded into one position along one dim, and one
`index_select`, `index_copy` or `index_add` does the rest. Where positions repeat in an assignment without `accumulate`, the last
one wins, as on CPU; PyTorch promises no order. An index out of range is an error in eager and undefined here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
Indices = Sequence[Tensor | None]
MASKS = (torch.bool, torch.uint8)


def index(x: Tensor, indices: Indices) -> Tensor:
    """`x[indices]`: the indexed dims side by side, one position per entry, one `index_select`."""
    dims = [dim for dim, entry in enumerate(indices) if entry is not None]
    first = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0  # apart from each other they go to the front
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    before, after = kept[:first], kept[first:]
    place, shape = position(x, dims, indices)
    head, tail, size = ([x.shape[dim] for dim in group] for group in (before, after, dims))
    if math.prod(tail) == 1 and math.prod(head) > 1 and math.prod(size) <= place.shape[0]:
        # Single entries would be picked; what comes before makes rows of them.
        columns = aten.reshape(aten.permute(x, [*dims, *kept]), [math.prod(size), math.prod(head)])
        spread = aten.reshape(aten.index_select(columns, 0, place), [*shape, *head, *tail])
        at = len(shape)
        turned: Tensor = aten.permute(spread, [*range(at, at + first), *range(at), *range(at + first, spread.dim())])
        return turned
    moved = aten.permute(x, [*before, *dims, *after])
    rows = aten.reshape(moved, [math.prod(head), math.prod(size), math.prod(tail)])
    picked: Tensor = aten.reshape(aten.index_select(rows, 1, place), [*head, *shape, *tail])
    return picked


def position(x: Tensor, dims: Sequence[int], indices: Indices) -> tuple[Tensor, list[int]]:
    """The entries of several index tensors as positions in the flattened `dims`, int32 or int64 `[n]`, and their shape."""
    given = [entry for entry in indices if entry is not None]
    spread = torch.broadcast_tensors(*given)
    total: Any = None
    for dim, entry in zip(dims, spread, strict=True):
        size = x.shape[dim]
        wrapped = aten.where.self(aten.lt.Scalar(entry, 0), aten.add.Tensor(entry, size), entry)
        total = wrapped if total is None else aten.add.Tensor(aten.mul.Tensor(total, size), wrapped)
    return aten.reshape(total, [total.numel()]), list(total.shape)


def _by_position(x: Tensor, indices: Indices, *args: Any) -> str | None:
    if any(entry is not None and entry.dtype in MASKS for entry in indices):
        return "a bool index selects a number of entries that depends on data"
    return None


def assign(x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False) -> Tensor:
    """`x[indices] = values`, or `+=`: the indexed dims first, one row per position."""
    dims = [dim for dim, entry in enumerate(indices) if entry is not None]
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    place, shape = position(x, dims, indices)
    order = [*dims, *kept]
    rest = [x.shape[dim] for dim in kept]
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    lead = dims[0] if adjacent else 0  # where the values' own index dims stand among the kept ones
    wanted = [*rest[:lead], *shape, *rest[lead:]]
    spread = aten.expand(values, wanted)
    at = list(range(lead, lead + len(shape)))
    spread = aten.permute(spread, [*at, *(dim for dim in range(len(wanted)) if dim not in at)])
    count, width = math.prod(shape), math.prod(rest)
    rows = aten.reshape(aten.permute(x, order), [math.prod(x.shape[dim] for dim in dims), width])
    update = aten.index_add if accumulate else aten.index_copy
    written = update(rows, 0, place, aten.reshape(spread, [count, width]))
    shaped = aten.reshape(written, [x.shape[dim] for dim in order])
    result: Tensor = aten.permute(shaped, [order.index(dim) for dim in range(x.dim())])
    return result


def _assigns(x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False) -> str | None:
    return _by_position(x, indices)


def assign_mask(x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False) -> Tensor:
    """`x[mask] = values`: one value for all is a choice by mask; a list of values is dealt out in the order of the mask."""
    mask: Any = indices[0]
    rest = x.dim() - mask.dim()
    wide = aten.reshape(mask, [*mask.shape, *[1] * rest])
    if values.dim() <= rest or values.shape[0] == 1:
        new = values if values.dim() <= rest else aten.reshape(values, list(values.shape[1:]))
    else:
        flags = aten._to_copy(aten.reshape(mask, [mask.numel()]), dtype=torch.int32)
        rank = aten.cumsum(flags, 0, dtype=torch.int32)
        last = aten.clamp(aten.add.Tensor(rank, -1), 0, values.shape[0] - 1)
        new = aten.reshape(aten.index_select(values, 0, last), [*mask.shape, *values.shape[1:]])
    if accumulate:
        new = aten.add.Tensor(x, new)
    result: Tensor = aten.where.self(wide, new, x)
    return result


def _is_mask(x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False) -> str | None:
    given = [entry for entry in indices if entry is not None]
    if len(indices) != 1 or len(given) != 1 or given[0].dtype is not torch.bool:
        return "its index is not one bool mask"
    rest = x.dim() - given[0].dim()
    if values.dim() > rest and values.shape[0] == 0:
        return "an empty list of values fits only an empty mask"
    if values.dim() > rest + 1:
        return "the values have more dims than what the mask selects"
    return None


def gather_nothing(x: Tensor, dim: int, places: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Gather by an empty index of bytes, the only one that eager takes."""
    result: Tensor = aten.full(list(places.shape), 0, dtype=x.dtype, device=x.device)
    return result


def _no_bytes(x: Tensor, dim: int, places: Tensor, *, sparse_grad: bool = False) -> str | None:
    return None if places.dtype is torch.uint8 and not places.numel() else "its index is no empty uint8 tensor"


def nonzero_static(x: Tensor, *, size: int, fill_value: int = -1) -> Tensor:
    """The coordinates of the first `size` nonzero entries: the k-th is where the running count reaches k."""
    if not x.numel() or not x.dim() or not size:
        empty: Tensor = aten.full([size, x.dim()], fill_value, dtype=torch.int64, device=x.device)
        return empty
    entries = aten.reshape(aten.ne.Scalar(x, 0), [x.numel()])
    rank = aten.cumsum(aten._to_copy(entries, dtype=torch.int32), 0, dtype=torch.int32)
    wanted = aten.arange.start(1, size + 1, dtype=torch.int32, device=x.device)
    place = aten._to_copy(aten.searchsorted.Tensor(rank, wanted), dtype=torch.int32)
    found = aten.lt.Scalar(place, x.numel())
    columns = []
    for dim in range(x.dim()):
        step = math.prod(x.shape[dim + 1 :])
        coordinate = aten.remainder.Scalar(aten.floor_divide(place, step), x.shape[dim])
        filler = aten.full([size], fill_value, dtype=torch.int32, device=x.device)
        columns.append(aten._to_copy(aten.where.self(found, coordinate, filler), dtype=torch.int64))
    result: Tensor = aten.stack(columns, 1)
    return result


RULES = (
    Rule(
        "index-by-position", (aten.index.Tensor, aten._unsafe_index.Tensor), index, check=_by_position,
        cost="arithmetic on the indices; copies the tensor once where the indexed dims are not contiguous",
    ),
    Rule(
        "assign-by-position", (aten.index_put.default, aten._unsafe_index_put.default), assign, check=_assigns,
        cost="arithmetic on the indices; copies the tensor once more where the indexed dims do not come first",
    ),
    Rule(
        "assign-by-mask", (aten.index_put.default,), assign_mask, check=_is_mask,
        cost="reads and writes the whole tensor once; a list of values is gathered to the size of the mask",
    ),
    Rule("gather-nothing", (aten.gather.default,), gather_nothing, check=_no_bytes, cost="nothing"),
    Rule(
        "nonzero-static", (aten.nonzero_static.default,), nonzero_static,
        cost="a running count of the entries and a search per result; no more memory than the input",
    ),
)  # fmt: skip
