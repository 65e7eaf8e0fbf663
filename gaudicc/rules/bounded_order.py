"""What mixes the valid rows of a tensor of unknown length: sorting, selecting, contracting, normalising; pads stay behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from gaudicc.kernels import attention
from gaudicc.nodes import val
from gaudicc.rules.bounded import (
    Form,
    Inline,
    Refused,
    Rows,
    filled,
    first,
    mask,
    same_length,
    same_op,
    several,
    values,
)

aten = torch.ops.aten


def filled_by_extreme(inline: Inline, rows: Rows, *, largest: bool, number: float) -> fx.Node:
    """The value of rows with what no valid entry exceeds, or falls below, behind them.

    For integers that is the extreme of what the tensor holds: that of int64 does not fit the device, and that of int32 is
    exceeded where 64 bits are kept.

    Args:
        inline: of the op.
        rows: to fill.
        largest: nothing is larger, or nothing is smaller.
        number: what it is for floats.
    """
    x = val(rows.value)
    if x.dtype is torch.bool or x.dtype.is_floating_point:
        return filled(inline, rows, largest if x.dtype is torch.bool else number)
    if 0 in x.shape:
        return rows.value
    of_all = aten.amax.default if largest else aten.amin.default
    form = lambda t, n: aten.where.self(mask(t, n, rows.dim), t, of_all(t, list(range(t.dim()))))  # noqa: E731
    node: fx.Node = inline(form, rows.value, rows.length)
    return node


def _along(args: Any, kwargs: Any, place: int) -> int:
    dim, rank = args[place] if len(args) > place else kwargs.get("dim", -1), val(args[0].value).dim()
    return int(dim % rank)


def _sorted(inline: Inline, rows: Rows, *, descending: bool) -> tuple[fx.Node, fx.Node]:
    """Values and indices; equal values keep their order, so that pads come last."""
    number = -float("inf") if descending else float("nan")  # which sorts last
    whole = filled_by_extreme(inline, rows, largest=not descending, number=number)
    sort = aten.sort.stable
    values, indices = inline(lambda t: tuple(sort(t, stable=True, dim=rows.dim, descending=descending)), whole)
    return values, indices


def ordered(op: Any) -> Form:
    """`sort` and `argsort`."""
    place, both = (99 if op._overloadname == "stable" else 1), "argsort" not in str(op)

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        rows: Rows = args[0]
        if _along(args, kwargs, place) != rows.dim:
            return (several if both else same_op)(op)(inline, args, kwargs, dim)
        descending = bool(args[place + 1] if len(args) > place + 1 else kwargs.get("descending", False))
        found = [Rows(part, rows.dim, rows.length) for part in _sorted(inline, rows, descending=descending)]
        return tuple(found) if both else found[1]

    return form


def topk(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`topk(x, k, dim, largest, sorted)`: the first of all rows in order."""
    rows, count = args[0], args[1]
    if not isinstance(rows, Rows) or not isinstance(count, int):
        raise Refused("how many rows are taken is read from a tensor")
    if _along(args, kwargs, 2) != rows.dim:
        return several(aten.topk.default)(inline, args, kwargs, dim)
    if isinstance(rows.bound, int) and count > rows.bound:
        raise Refused(f"it takes {count} rows of at most {rows.bound}")
    largest = bool(args[3] if len(args) > 3 else kwargs.get("largest", True))
    few = inline(lambda n: aten.lt.Scalar(n, count), rows.length)
    inline.demand(few, RuntimeError("selected index k out of range"))
    parts = _sorted(inline, rows, descending=largest)
    return tuple(inline(lambda t: aten.slice.Tensor(t, rows.dim, 0, count), part) for part in parts)


def last_but_one(place: int, rank: int) -> int:
    """The dim of an operand of a matrix product that is summed over."""
    return rank - 1 if place == 0 else max(rank - 2, 0)


def product(op: Any, contracted: Callable[[int, int], int]) -> Form:
    """A matrix product: pads of the dim that is summed over are 0 on both sides; `contracted(place, rank)` is that dim."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        summed = [
            isinstance(arg, Rows) and arg.dim == contracted(place, val(arg.value).dim())
            for place, arg in enumerate(args)
        ]
        if not any(summed):
            return same_op(op)(inline, args, kwargs, dim)
        rows = [arg for arg in args if isinstance(arg, Rows)]
        if dim is not None or sum(summed) != 2 or len(rows) != 2 or str(rows[0].bound) != str(rows[1].bound):
            raise Refused("the dim of unknown length is summed over, and its operands may not be as long as each other")
        if not same_length(*rows):
            differ = inline(aten.ne.Tensor, rows[0].length, rows[1].length)
            inline.demand(differ, RuntimeError("the operands of a matrix product differ in size"))
        safe = [filled(inline, arg, 0) if isinstance(arg, Rows) else arg for arg in args]
        return inline(lambda *a: op(*a, **kwargs), *safe)

    return form


def normalised(op: Any) -> Form:
    """`softmax` and `log_softmax`: pads weigh nothing."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        rows: Rows = args[0]
        if args[1] % val(rows.value).dim() != rows.dim:
            return same_op(op)(inline, args, kwargs, dim)
        whole = filled(inline, rows, -float("inf"))
        return Rows(inline(lambda t, *rest: op(t, *rest, **kwargs), whole, *args[1:]), rows.dim, rows.length)

    return form


def place_of_largest(op: Any) -> Form:
    """`argmax` and `argmin`; of nothing they raise."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        rows, along = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
        if dim is not None:
            return same_op(op)(inline, args, kwargs, dim)
        if along is None and rows.dim != 0:
            raise Refused("places in a tensor are counted over an inner dim of unknown length")
        empty = inline(lambda n: aten.eq.Scalar(n, 0), rows.length)
        inline.demand(empty, IndexError(f"{op._schema.name.removeprefix('aten::')}(): Expected a non-empty tensor"))
        largest = "argmin" in str(op)
        whole = filled_by_extreme(inline, rows, largest=largest, number=float("inf") if largest else -float("inf"))
        place = inline(lambda t, *rest: op(t, *rest, **kwargs), whole, *args[1:])
        # Where all valid entries equal what stands behind them, any place among them will do.
        return inline(lambda i, n: aten.minimum.default(i, aten.sub.Tensor(n, 1)), place, rows.length)

    return form


def flipped(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`flip`."""
    rows, dims = args
    rank = val(rows.value).dim()
    others = [d for d in dims if d % rank != rows.dim]

    def back(t: Tensor, n: Tensor) -> Tensor:
        places = aten.sub.Tensor(aten.sub.Tensor(n, 1), aten.arange.default(t.shape[rows.dim]))
        return aten.index_select.default(t, rows.dim, aten.clamp.default(places, 0))  # type: ignore[no-any-return]

    value = rows.value if len(others) == len(dims) else inline(back, rows.value, rows.length)
    return Rows(inline(lambda t: aten.flip.default(t, others), value) if others else value, rows.dim, rows.length)


def attended(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`gaudicc::attention(q, k, v, mask, causal, scale)`: keys behind the valid ones are masked."""
    q, k, v, mask, causal, scale = args
    unknown = [arg.dim for arg in (q, k, v) if isinstance(arg, Rows)]
    if any(place != 2 for place in unknown) or isinstance(k, Rows) is not isinstance(v, Rows):
        raise Refused("attention is over another unknown dim than that of its tokens")
    if isinstance(k, Rows):
        first((k, v))
        if not causal:
            mask = inline(_valid_keys, _value(mask), k.value, k.length)
        elif not (
            isinstance(q, Rows) and same_length(q, k)
        ):  # otherwise keys behind the valid ones come later than any query
            raise Refused("causal attention has fewer keys than queries")
        k, v = filled(inline, k, 0), filled(inline, v, 0)
    made = inline(attention, _value(q), k, v, _value(mask), causal, scale)
    return made if dim is None else Rows(made, dim, q.length)


def _valid_keys(mask: Tensor | None, k: Tensor, length: Tensor) -> Tensor:
    valid = aten.view.default(aten.lt.Tensor(aten.arange.default(k.shape[2]), length), [1, 1, 1, -1])
    if mask is None:
        return valid  # type: ignore[no-any-return]
    if mask.dtype is torch.bool:
        return aten.logical_and.default(mask, valid)  # type: ignore[no-any-return]
    return aten.where.self(valid, mask, aten.full.default([], -float("inf"), dtype=mask.dtype))  # type: ignore[no-any-return]


def _value(arg: Any) -> Any:
    return arg.value if isinstance(arg, Rows) else arg


def einsum(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`einsum`: zeros behind the valid rows of operands whose unknown dim is summed over."""
    equation, operands = args[0].replace(" ", ""), list(args[1])
    if "..." in equation or "->" not in equation:
        raise Refused("its equation has an ellipsis, or does not name its result")
    taken, given = equation.split("->")
    terms = taken.split(",")
    found = first(operands)
    label = next(t[o.dim] for t, o in zip(terms, operands, strict=True) if isinstance(o, Rows))
    for term, operand in zip(terms, operands, strict=True):
        unknown = term[operand.dim] if isinstance(operand, Rows) else None
        if label in term and unknown != label:
            raise Refused("its operands have known and unknown lengths")
        if unknown not in (None, label) or term.count(label) > 1:
            raise Refused("one unknown length has two names in it")
    if label in given:
        made = inline(lambda *t: aten.einsum.default(args[0], list(t)), *values(operands))
        return Rows(made, given.index(label), found.length)
    zeroed = [filled(inline, o, 0) if isinstance(o, Rows) else o for o in operands]
    return inline(lambda *t: aten.einsum.default(args[0], list(t)), *zeroed)
