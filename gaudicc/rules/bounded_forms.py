"""What each op makes of tensors of unknown length; plain PyTorch on their largest length, inlined where the op stood."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gaudicc.nodes import val
from gaudicc.rules import compaction
from gaudicc.rules.bounded import (
    Form,
    Inline,
    Number,
    Refused,
    Rows,
    filled,
    first,
    fixed,
    promised,
    same_op,
    several,
    values,
)
from gaudicc.rules.bounded_counts import bincount, runs, unique
from gaudicc.rules.bounded_indexing import (
    index,
    index_add,
    index_put,
    masked_select,
    nonzero,
    picked,
    pieces,
    selected_by,
    sliced,
    to_rows,
    written_at,
)
from gaudicc.rules.bounded_order import (
    flipped,
    last_but_one,
    normalised,
    ordered,
    place_of_largest,
    product,
    topk,
)

aten = torch.ops.aten


def _identity(kind: str, dtype: torch.dtype) -> Any:
    if kind in ("sum", "any", "mean"):
        return 0
    if kind in ("prod", "all"):
        return 1
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    low, high = (-float("inf"), float("inf")) if dtype.is_floating_point else (info.min, info.max)
    return low if kind in ("max", "amax", "argmax") else high


def columns(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`where(x)`: the columns of `nonzero(x)`."""
    rows = nonzero(inline, args, kwargs, dim)
    parts = inline(lambda x: tuple(aten.unbind.int(x, 1)), rows.value)
    return tuple(Rows(part, 0, rows.length) for part in parts)


def repeated_rows(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`repeat_interleave(x, repeats, dim)`."""
    x, along = args[0], args[2] if len(args) > 2 else None
    table = x.value if isinstance(x, Rows) else x
    place = (along or 0) % val(table).dim()
    if isinstance(x, Rows):
        if x.dim != place or (along is None and val(table).dim() > 1):
            raise Refused("rows of unknown length are repeated along another dim")
        count = args[1].length if isinstance(args[1], Rows) else val(args[1]).shape[0]
        differ = inline(lambda n, m: n != m, x.length, count)
        inline.demand(differ, RuntimeError("repeats must have the same size as input along dim"))
    at = repeated(inline, args[1:2], kwargs, dim)
    flat = inline(lambda t: aten.reshape.default(t, [-1]), table) if along is None else table
    value = inline(lambda t, i: aten.index_select.default(t, place, i), flat, at.value)
    return Rows(value, place, at.length)


def scalar(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`scalar_tensor(n)`: the tensor that the number was read from."""
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return inline(lambda t: aten._to_copy.default(t, dtype=dtype), args[0].node)


def repeated(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`repeat_interleave(repeats)`, where the program says how large the repeats can be."""
    repeats = filled(inline, args[0], 0) if isinstance(args[0], Rows) else args[0]
    high = inline.range_of(repeats)[1]
    if isinstance(args[0], Rows) and args[0].total is not None:
        size = args[0].total
    elif 0 <= high < 2**31:
        size = int(high) * fixed(val(repeats).numel())
    else:
        length = inline(lambda r: aten.sum.default(r), repeats)
        size = promised(inline, length, "nothing bounds how often a row is repeated; clamp the repeats")
    return Rows(*to_rows(inline(lambda r: compaction.repeated(r, size), repeats)))


def counted(op: Any, place: int = 0) -> Form:
    """`arange(n)` and tensors of one value, with a size that was read from a tensor, given as argument `place`."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        before, args = args[:place], args[place:]
        shape = args[0] if isinstance(args[0], list) else [args[0]]
        numbers = [size for size in shape if isinstance(size, Number)]
        if not numbers and dim is None:
            return inline(lambda *x: op(*x, **kwargs), *values(before), *args)
        why = "nothing bounds the size; clamp the number that it is read from"
        if len(numbers) != 1 or dim is None:
            raise Refused(why)
        (number,) = numbers
        if number.node is None:
            raise Refused(why)
        high = number.high if 0 <= number.high < 2**31 else promised(inline, number.node, why, number.promised)
        sizes = [int(high) if isinstance(size, Number) else size for size in shape]
        whole = sizes if isinstance(args[0], list) else sizes[0]
        made = inline(lambda *x: op(*x, **kwargs), *values(before), whole, *args[1:])
        return Rows(made, dim, inline(lambda n: aten.clamp.default(n, 0), number.node))

    return form


def reduced(kind: str, op: Any) -> Form:
    """A reduction: over the dim of unknown length behind an identity, over others as it is."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        rows: Rows = args[0]
        if dim is not None:
            return same_op(op)(inline, args, kwargs, dim)
        x = val(rows.value)
        if kind == "mean":
            total = inline(
                lambda t, *rest: aten.sum.dim_IntList(t, *rest), filled(inline, rows, 0), *_dims(args, x.dim())
            )
            sizes = [fixed(size) for i, size in enumerate(x.shape) if i != rows.dim]
            others = math.prod(sizes) if not args[1:] else _others(args[1], rows.dim, x)
            return inline(lambda t, n: aten.div.Tensor(t, aten.mul.Tensor(n, others)), total, rows.length)
        whole = filled(inline, rows, _identity(kind, x.dtype))
        return inline(lambda t, *rest: op(t, *rest, **kwargs), whole, *args[1:])

    return form


def _dims(args: Any, rank: int) -> list[Any]:
    return list(args[1:]) or [list(range(rank))]


def _others(dims: Any, dim: int, x: Tensor) -> int:
    kept = [d % x.dim() for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    count = 1
    for d in kept:
        count *= 1 if d == dim else int(x.shape[d])
    return count


def apart(op: Any, mixes: Callable[[Any, int, int], bool]) -> Form:
    """An op that mixes some dims, and not the one of unknown length; `mixes(args, dim, rank)` says whether it would."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        rows = first(args)
        if mixes(args, rows.dim, val(rows.value).dim()):
            raise Refused("the dim of unknown length is mixed")
        return same_op(op)(inline, args, kwargs, dim)

    return form


def reshaped(op: Any) -> Form:
    """`view`, `reshape`, `expand`: the unknown size in the shape becomes the largest."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        rows: Rows = args[0]
        if dim is None:
            raise Refused("a dim of unknown length is merged or split")

        def reshape(x: Tensor, *shape: Any) -> Tensor:
            made: Tensor = op(x, [x.shape[rows.dim] if i == dim else size for i, size in enumerate(shape)])
            return made

        shape = [-1 if i == dim else size for i, size in enumerate(args[1])]
        return Rows(inline(reshape, rows.value, *shape), dim, rows.length)

    return form


def expanded(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`expand` of rows, or of a known tensor to as many copies as data says."""
    form = reshaped(aten.expand.default) if isinstance(args[0], Rows) else counted(aten.expand.default, 1)
    return form(inline, args, kwargs, dim)


def joined(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`cat`: of rows side by side as it is, of rows one after the other by moving the valid ones to the front."""
    parts, along = list(args[0]), args[1] if len(args) > 1 else 0
    rows = next(part for part in parts if isinstance(part, Rows))
    if along % val(rows.value).dim() != rows.dim:
        return same_op(aten.cat.default)(inline, (parts, along), kwargs, dim)
    at = rows.dim
    valid = [
        inline(lambda x, n: aten.lt.Tensor(aten.arange.default(x.shape[at]), n), part.value, part.length)
        if isinstance(part, Rows)
        else inline(lambda x: aten.full.default([x.shape[at]], True, dtype=torch.bool), part)
        for part in parts
    ]
    whole = inline(lambda *p: aten.cat.default(list(p), at), *values(parts))
    position, length = inline(compaction.places, inline(lambda *p: aten.cat.default(list(p), 0), *valid))
    made = Rows(inline(lambda x, i: aten.index_select.default(x, at, i), whole, position), at, length)
    # All pieces of a tensor together are as long as it is.
    most = next((part for part in parts if isinstance(part, Rows) and inline.is_at_most(part.bound)), None)
    if most is None:
        return made
    return replace(made, value=inline(lambda x, t: aten.slice.Tensor(x, at, 0, t.shape[at]), made.value, most.value))


_SAME = (
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
)  # fmt: skip
_COUNTED = (aten.arange.default, aten.zeros.default, aten.ones.default, aten.full.default)
_SEVERAL = (aten.unbind.int, aten.max.dim, aten.min.dim, aten.split.Tensor, aten.chunk.default)
_MIXES_DIM = (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
_ORDERS = (aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable)
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
FORMS: dict[Any, Form] = {
    **{op: same_op(op) for op in _SAME},
    **{op: normalised(op) for op in _MIXES_DIM},
    **{op: ordered(op) for op in _ORDERS},
    **{op: place_of_largest(op) for op in (aten.argmax.default, aten.argmin.default)},
    aten.topk.default: topk,
    aten.flip.default: flipped,
    aten.unique_consecutive.default: runs,
    aten.bincount.default: bincount,
    aten.argwhere.default: nonzero,
    aten.dot.default: product(aten.dot.default, lambda place, rank: 0),
    **{op: apart(op, lambda args, dim, rank: dim >= rank - len(args[1])) for op in _NORMS},
    **{op: several(op) for op in _SEVERAL},
    **{op: counted(op) for op in _COUNTED},
    **{op: counted(op, 1) for op in (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)},
    aten.scalar_tensor.default: scalar,
    aten.where.default: columns,
    aten.repeat_interleave.self_Tensor: repeated_rows,
    aten.select.int: selected_by,
    aten.select_scatter.default: written_at,
    aten._unique2.default: unique,
    aten.repeat_interleave.Tensor: repeated,
    aten.slice.Tensor: sliced,
    aten.nonzero.default: nonzero,
    aten.index.Tensor: index,
    aten.masked_select.default: masked_select,
    aten.index_put.default: index_put,
    aten.index_add.default: index_add,
    aten.split_with_sizes.default: pieces,
    aten.index_select.default: picked(aten.index_select.default),
    aten.embedding.default: picked(aten.embedding.default),
    aten.view.default: reshaped(aten.reshape.default),
    aten.reshape.default: reshaped(aten.reshape.default),
    aten.expand.default: expanded,
    aten.cat.default: joined,
    aten.linear.default: product(aten.linear.default, lambda place, rank: rank - 1),
    aten.mm.default: product(aten.mm.default, last_but_one),
    aten.addmm.default: product(aten.addmm.default, lambda place, rank: rank - 1 if place == 1 else 0),
    aten.matmul.default: product(aten.matmul.default, last_but_one),
    aten.bmm.default: product(aten.bmm.default, last_but_one),
    **{
        op: reduced(op._schema.name.removeprefix("aten::"), op)
        for op in (
            aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.prod.default, aten.any.default,
            aten.all.default, aten.amax.default, aten.amin.default, aten.max.default, aten.min.default, aten.prod.dim_int,
            aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims,
        )
    },
}  # fmt: skip
"""Op -> its form on rows. An op that is missing, and is not pointwise, is refused."""

NUMBERS: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: aten.add.Tensor, operator.sub: aten.sub.Tensor, operator.mul: aten.mul.Tensor,
    operator.ge: aten.ge.Tensor, operator.gt: aten.gt.Tensor, operator.le: aten.le.Tensor, operator.lt: aten.lt.Tensor,
    operator.and_: aten.logical_and.default, operator.or_: aten.logical_or.default,
    operator.eq: aten.eq.Tensor, operator.ne: aten.ne.Tensor, torch.sym_min: aten.minimum.default,
    torch.sym_max: aten.maximum.default,
    operator.floordiv: lambda a, b: aten.div.Tensor_mode(a, b, rounding_mode="floor"), operator.mod: aten.remainder.Tensor,
}  # fmt: skip
"""Arithmetic on sizes -> the same on int64 tensors of no dims."""
