"""What each op makes of tensors of unknown length; plain PyTorch on their largest length, inlined where the op stood."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gaudicc.kernels import attention, rms_norm
from gaudicc.nodes import val
from gaudicc.rules import compaction
from gaudicc.rules.bounded import Form, Inline, Refused, Rows, filled, first, fixed, same_op, several, values
from gaudicc.rules.bounded_counts import bincount, runs, unique
from gaudicc.rules.bounded_indexing import (
    index,
    index_add,
    masked_select,
    nonzero,
    picked,
    pieces,
    scattered,
    selected_by,
    sliced,
    written_at,
)
from gaudicc.rules.bounded_order import (
    attended,
    einsum,
    filled_by_extreme,
    flipped,
    last_but_one,
    normalised,
    ordered,
    place_of_largest,
    product,
    topk,
)
from gaudicc.rules.bounded_places import written
from gaudicc.rules.bounded_shapes import (
    counted,
    counted_from,
    expanded,
    narrowed,
    repeated,
    repeated_alike,
    repeated_rows,
    reshaped,
)

aten = torch.ops.aten


def _with_identity(inline: Inline, kind: str, rows: Rows) -> Any:
    """Rows with what changes no result of a reduction behind the valid ones."""
    if kind in ("sum", "any", "mean", "prod", "all"):
        return filled(inline, rows, int(kind in ("prod", "all")))
    largest = kind in ("min", "amin")
    return filled_by_extreme(inline, rows, largest=largest, number=float("inf") if largest else -float("inf"))


def columns(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`where(x)`: the columns of `nonzero(x)`; a number has one."""
    x = args[0]
    if not isinstance(x, Rows) and not val(x).dim():
        args = [inline(lambda t: aten.unsqueeze.default(t, 0), x)]
    rows = nonzero(inline, args, kwargs, dim)
    parts = inline(lambda x: tuple(aten.unbind.int(x, 1)), rows.value)
    return tuple(Rows(part, 0, rows.length) for part in parts)


def scalar(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`scalar_tensor(n)`: the tensor that the number was read from."""
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return inline(lambda t: aten._to_copy.default(t, dtype=dtype), args[0].node)


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
        whole = _with_identity(inline, kind, rows)
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


def stacked(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`stack` of rows that are as long as each other."""
    if not all(isinstance(part, Rows) for part in args[0]):
        raise Refused("tensors of known and unknown length are stacked")
    return same_op(aten.stack.default)(inline, args, kwargs, dim)


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


def _fills(args: Any, dim: int, rank: int) -> bool:
    """Whether `pad` lengthens a dim: it names two widths for each, from the last one."""
    widths = args[1][2 * (rank - 1 - dim) :][:2]
    return any(width != 0 for width in widths)


_SAME = (
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.mT.default,
    aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.fill.Tensor, aten.fill.Scalar,
)  # fmt: skip
_COUNTED = (aten.arange.default, aten.zeros.default, aten.ones.default, aten.full.default)
_SEVERAL = (aten.unbind.int, aten.max.dim, aten.min.dim, aten.split.Tensor, aten.chunk.default)
_MIXES_DIM = (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
_ORDERS = (aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable)
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
_SCATTERS = (aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.scatter_reduce.two)
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
    **{op: apart(op, _fills) for op in (aten.pad.default, aten.constant_pad_nd.default)},
    rms_norm: apart(rms_norm, lambda args, dim, rank: dim == rank - 1),
    attention: attended,
    **{op: several(op) for op in _SEVERAL},
    **{op: counted(op) for op in _COUNTED},
    **{op: counted(op, 1) for op in (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)},
    aten.scalar_tensor.default: scalar,
    aten.arange.start: counted_from,
    aten.where.default: columns,
    aten.nonzero_numpy.default: columns,
    aten.repeat_interleave.self_Tensor: repeated_rows,
    aten.select.int: selected_by,
    aten.select_scatter.default: written_at,
    aten._unique2.default: unique,
    aten.repeat_interleave.Tensor: repeated,
    aten.repeat_interleave.self_int: repeated_alike,
    aten.slice.Tensor: sliced,
    **{op: narrowed for op in (aten.narrow.default, aten.narrow.Tensor)},
    aten.nonzero.default: nonzero,
    aten.index.Tensor: index,
    aten.masked_select.default: masked_select,
    aten.index_put.default: written,
    aten.index_add.default: index_add,
    **{op: scattered(op) for op in _SCATTERS},
    aten.split_with_sizes.default: pieces,
    aten.index_select.default: picked(aten.index_select.default),
    aten.embedding.default: picked(aten.embedding.default),
    aten.view.default: reshaped,
    aten.reshape.default: reshaped,
    aten.flatten.using_ints: reshaped,
    aten.expand.default: expanded,
    aten.cat.default: joined,
    aten.stack.default: stacked,
    aten.linear.default: product(aten.linear.default, lambda place, rank: rank - 1),
    aten.mm.default: product(aten.mm.default, last_but_one),
    aten.addmm.default: product(aten.addmm.default, lambda place, rank: rank - 1 if place == 1 else 0),
    aten.matmul.default: product(aten.matmul.default, last_but_one),
    aten.einsum.default: einsum,
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

OVER_TWO_DIMS = frozenset((aten.expand.default, aten.unsqueeze.default, attention))
"""Ops that, like those that work element by element, take or give tensors with two dims of one unknown length: masks."""

NUMBERS: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: aten.add.Tensor, operator.sub: aten.sub.Tensor, operator.mul: aten.mul.Tensor,
    operator.ge: aten.ge.Tensor, operator.gt: aten.gt.Tensor, operator.le: aten.le.Tensor, operator.lt: aten.lt.Tensor,
    operator.and_: aten.logical_and.default, operator.or_: aten.logical_or.default,
    operator.eq: aten.eq.Tensor, operator.ne: aten.ne.Tensor, torch.sym_min: aten.minimum.default,
    torch.sym_max: aten.maximum.default,
    operator.floordiv: lambda a, b: aten.div.Tensor_mode(a, b, rounding_mode="floor"), operator.mod: aten.remainder.Tensor,
}  # fmt: skip
"""Arithmetic on sizes -> the same on int64 tensors of no dims."""
