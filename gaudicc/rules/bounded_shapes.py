"""Sizes of unknown length: made, repeated, viewed and expanded, as the largest length and a count."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from gaudicc.nodes import val
from gaudicc.rules import compaction
from gaudicc.rules.bounded import Form, Inline, Number, Refused, Rows, filled, fixed, promised, same_op, values
from gaudicc.rules.bounded_indexing import sliced, to_rows

aten = torch.ops.aten


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


def repeated_alike(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`repeat_interleave(x, n, dim)`, `n` a number: so many times as many rows, or wider ones."""
    x, count = args[:2]
    along = args[2] if len(args) > 2 else None
    if not isinstance(x, Rows) or not isinstance(count, int):
        raise Refused("how often a row is repeated is read from a tensor")
    if along is None and val(x.value).dim() > 1:
        raise Refused("rows of unknown length are repeated one element after the other")
    place = (along or 0) % val(x.value).dim()

    def repeat(t: Tensor) -> Tensor:
        wide = aten.unsqueeze.default(t, place + 1)
        copies = aten.expand.default(wide, [*t.shape[: place + 1], count, *t.shape[place + 1 :]])
        return aten.reshape.default(copies, [*t.shape[:place], t.shape[place] * count, *t.shape[place + 1 :]])  # type: ignore[no-any-return]

    length = x.length if place != x.dim else inline(lambda n: aten.mul.Tensor(n, count), x.length)
    return Rows(inline(repeat, x.value), x.dim, length)


def repeated(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`repeat_interleave(repeats)`, where the program says how large the repeats can be."""
    repeats = filled(inline, args[0], 0) if isinstance(args[0], Rows) else args[0]
    high = inline.range_of(repeats)[1]
    if isinstance(args[0], Rows) and args[0].total is not None:
        size = args[0].total
    elif isinstance(kwargs.get("output_size"), int):
        size = kwargs["output_size"]
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


def counted_from(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`arange(start, n)`, `n` read from a tensor."""
    start, end = args
    if not isinstance(start, int) or not isinstance(end, Number) or end.node is None:
        raise Refused("where it begins is read from a tensor")
    node = inline(lambda n: aten.sub.Tensor(n, start), end.node)
    number = Number(node, end.low - start, end.high - start, end.promised - start)
    rows: Rows = counted(aten.arange.default)(inline, [number], kwargs, dim)
    return replace(rows, value=inline(lambda t: aten.add.Tensor(t, start), rows.value))


def reshaped(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`view` and `reshape`: what stands before the dim of unknown length is left alone, so that valid rows stay in front."""
    rows, shape = args[0], inline.shape
    if not isinstance(rows, Rows):
        raise Refused("a dim of unknown length is merged or split")
    if dim is None:
        return _of_known_sizes(inline, rows, args[1])
    x = val(rows.value)
    if not statically_known_true(math.prod(x.shape[: rows.dim]) == math.prod(shape[:dim])):
        raise Refused("a dim of unknown length is merged with what stands before it")
    if str(shape[dim]) == rows.symbol:
        return Rows(_sized(inline, aten.reshape.default, rows, args[1]), dim, rows.length)
    inner, wanted = (math.prod(map(fixed, sizes[at + 1 :])) for sizes, at in ((x.shape, rows.dim), (shape, dim)))
    most = fixed(rows.bound) * inner
    if not wanted or most % wanted:
        raise Refused("a dim of unknown length is split")
    whole = [*map(fixed, shape[:dim]), most // wanted, *shape[dim + 1 :]]
    value = inline(lambda t: aten.reshape.default(t, whole), rows.value)
    return Rows(value, dim, inline(lambda n: _scaled(n, inner, wanted), rows.length))


def _of_known_sizes(inline: Inline, rows: Rows, sizes: Any) -> Any:
    """Rows that must be as many as these sizes hold: the first so many, and the host raises where they are not."""
    before, after = (
        math.prod(part) for part in (val(rows.value).shape[: rows.dim], val(rows.value).shape[rows.dim + 1 :])
    )
    most, wanted = rows.bound * after, math.prod(inline.shape)
    if not statically_known_true(before == 1):
        raise Refused("a dim of unknown length is merged with what stands before it")
    if not statically_known_true(most >= wanted):
        raise Refused("its result may be longer than all its rows")
    differs = inline(lambda n, *s: aten.ne.Scalar(aten.mul.Tensor(n, after), math.prod(s)), rows.length, *sizes)
    inline.demand(differs, RuntimeError(f"shape '{list(inline.shape)}' is invalid for as many rows as data chose"))
    flat = inline(lambda t: aten.reshape.default(t, [-1]), rows.value)
    return inline(lambda t, *s: aten.reshape.default(aten.slice.Tensor(t, 0, 0, math.prod(s)), list(s)), flat, *sizes)


def _scaled(length: Tensor, by: int, over: int) -> Tensor:
    return aten.div.Tensor_mode(aten.mul.Tensor(length, by), over, rounding_mode="floor")  # type: ignore[no-any-return]


def narrowed(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`narrow(x, dim, start, length)` where `x`, `start` or `length` is known from data only; `start` may be a tensor."""
    x, along, start, length = args
    if isinstance(start, fx.Node):
        start = Number(inline(lambda t: aten.reshape.default(t, []), start))
    table = x.value if isinstance(x, Rows) else x
    along %= val(table).dim()
    here = not isinstance(x, Rows) or x.dim == along
    if not here and isinstance(start, int) and isinstance(length, int):
        return same_op(aten.narrow.default)(inline, args, kwargs, dim)
    size = fixed(val(table).shape[along])
    total = x.length if isinstance(x, Rows) and here else inline(lambda: aten.full.default([], size, dtype=torch.int64))
    first, count = (item.node if isinstance(item, Number) else item for item in (start, length))
    outside = inline(lambda n, a, b: aten.gt.Tensor(aten.add.Tensor(_held(b), _held(a)), n), total, first, count)
    inline.demand(outside, RuntimeError("narrow(): start + length exceeds the size of the dim"))
    if not isinstance(length, int):
        if start != 0:
            raise Refused("where it begins and how long it is are both read from a tensor")
        return sliced(inline, [x, along, 0, length], {}, dim)

    def rows(t: Tensor, begin: Any, n: Tensor) -> Tensor:
        begin = aten.where.self(aten.lt.Scalar(_held(begin), 0), aten.add.Tensor(n, begin), begin)
        places = aten.add.Tensor(aten.arange.default(length), begin)
        return aten.index_select.default(t, along, aten.clamp.default(places, 0, size - 1))  # type: ignore[no-any-return]

    value = inline(rows, table, first, total)
    return value if here else Rows(value, x.dim, x.length)


def _held(number: Any) -> Tensor:
    return number if isinstance(number, Tensor) else aten.full.default([], number, dtype=torch.int64)


def expanded(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`expand` of rows, or of a known tensor to as many copies as data says."""
    if not isinstance(args[0], Rows):
        return counted(aten.expand.default, 1)(inline, args, kwargs, dim)
    if dim is None:
        raise Refused("it has no result of unknown length")
    return Rows(_sized(inline, aten.expand.default, args[0], args[1]), dim, args[0].length)


def _sized(inline: Inline, op: Any, rows: Rows, sizes: Any) -> Any:
    """`op(rows, sizes)`, with the largest length for the unknown one."""
    given = [
        None if str(size) == rows.symbol else size if isinstance(size, int) else sizes[i]
        for i, size in enumerate(inline.shape)
    ]
    if any(isinstance(size, Number) for size in given):
        raise Refused("its result has another unknown length")

    def sized(t: Tensor, *known: Any) -> Tensor:
        return op(t, [t.shape[rows.dim] if size is None else size for size in known])  # type: ignore[no-any-return]

    return inline(sized, rows.value, *given)
