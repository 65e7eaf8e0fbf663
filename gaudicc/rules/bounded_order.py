"""What mixes the valid rows of a tensor of unknown length: sorting, selecting, contracting, normalising; pads stay behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from gaudicc.nodes import val
from gaudicc.rules.bounded import Form, Inline, Refused, Rows, filled, same_length, same_op, several

aten = torch.ops.aten


def extreme(dtype: torch.dtype, *, largest: bool) -> Any:
    """What sorts behind, or before, all values of a dtype; floats sort NaN last."""
    if dtype is torch.bool:
        return largest
    if dtype.is_floating_point:
        return float("nan") if largest else -float("inf")
    return torch.iinfo(dtype).max if largest else torch.iinfo(dtype).min


def _along(args: Any, kwargs: Any, place: int) -> int:
    dim, rank = args[place] if len(args) > place else kwargs.get("dim", -1), val(args[0].value).dim()
    return int(dim % rank)


def _sorted(inline: Inline, rows: Rows, *, descending: bool) -> tuple[fx.Node, fx.Node]:
    """Values and indices; equal values keep their order, so that pads come last."""
    whole = filled(inline, rows, extreme(val(rows.value).dtype, largest=not descending))
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
        dtype, largest = val(rows.value).dtype, "argmin" in str(op)
        fill = float("inf") if largest and dtype.is_floating_point else extreme(dtype, largest=largest)
        return inline(lambda t, *rest: op(t, *rest, **kwargs), filled(inline, rows, fill), *args[1:])

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
