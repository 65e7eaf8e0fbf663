"""Indexing, selecting and writing by what is of unknown length, on largest lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from gaudicc.nodes import val
from gaudicc.rules import bounded_places, compaction
from gaudicc.rules.bounded import Form, Inline, Number, Refused, Rows, ends, filled, first, fixed, same_op

aten = torch.ops.aten


def nonzero(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Rows:
    """`nonzero(x)`."""
    x = filled(inline, args[0], 0) if isinstance(args[0], Rows) else args[0]
    return Rows(*to_rows(inline(compaction.nonzero, x)))


def to_rows(pair: Any) -> tuple[fx.Node, int, fx.Node]:
    """Rows and their number, as the first arguments of `Rows`."""
    return pair[0], 0, pair[1]


def index(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`x[...]` by a bool mask, or by indices of unknown length."""
    x, indices = args[0], list(args[1])
    given = [item for item in indices if item is not None]
    alone = len(given) == 1 and bounded_places.is_mask(given[0])
    if (
        alone
        and indices[0] is None
        and not any(isinstance(item, Rows) for item in (x, given[0]))
        and val(given[0]).dim() == 1
    ):
        along = indices.index(given[0])
        position, length = inline(compaction.places, given[0])
        return Rows(inline(lambda t, p: aten.index_select.default(t, along, p), x, position), along, length)
    if alone and indices[0] is not None:
        if isinstance(x, Rows) or isinstance(given[0], Rows):
            if not (isinstance(x, Rows) and isinstance(given[0], Rows) and x.dim == given[0].dim == 0):
                raise Refused("the mask and what it selects from have different unknown dims")
            return Rows(*to_rows(inline(compaction.selected, x.value, filled(inline, given[0], False))))
        return Rows(*to_rows(inline(compaction.selected, x, given[0])))
    return bounded_places.read(inline, args, dim)


def masked_select(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Rows:
    """`masked_select(x, mask)`."""
    if any(isinstance(arg, Rows) for arg in args):
        raise Refused("rows of unknown length are selected from")
    flat = inline(lambda x, m: tuple(aten.reshape.default(t, [-1]) for t in torch.broadcast_tensors(x, m)), *args)
    return Rows(*to_rows(inline(compaction.selected, *flat)))


def index_add(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`index_add(x, dim, index, source)`: what is not valid adds 0 to the first row."""
    x, along, at, source = args[:4]
    if isinstance(x, Rows) or not isinstance(source, Rows) or source.dim != along % val(x).dim():
        raise Refused("the source must have the unknown length in the dim of the index, the target a known one")
    source_node = filled(inline, source, 0)
    if isinstance(at, Rows):
        at_node = filled(inline, at, 0)
    else:  # the source is as long as the index, or eager would raise
        at_node = at
        differs = inline(lambda i, n: aten.ne.Scalar(n, i.shape[0]), at, source.length)
        inline.demand(differs, RuntimeError("index_add(): the source is not as long as the index"))
        source_node = inline(lambda s, i: aten.slice.Tensor(s, source.dim, 0, i.shape[0]), source_node, at)
    return inline(lambda t, i, s: aten.index_add.default(t, along, i, s, **kwargs), x, at_node, source_node)


def picked(op: Any) -> Form:
    """`index_select`, `embedding`: rows of a known tensor by an index of unknown length."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        if op is aten.index_select.default and isinstance(args[0], Rows) and not isinstance(args[2], Rows):
            return _picked_rows(inline, *args)
        if isinstance(args[0], Rows) or dim is None:
            raise Refused("rows of unknown length are indexed")
        found = first(args)
        safe = [filled(inline, arg, 0) if isinstance(arg, Rows) else arg for arg in args]
        return Rows(inline(lambda *a: op(*a, **kwargs), *safe), dim, found.length)

    return form


def _picked_rows(inline: Inline, x: Rows, along: int, at: fx.Node) -> fx.Node:
    """Rows of a tensor of unknown length by an index of known length."""
    if along % val(x.value).dim() != x.dim:
        raise Refused("an inner dim is indexed")
    outside = inline(
        lambda i, n: aten.any.default(aten.logical_or.default(aten.lt.Scalar(i, 0), aten.ge.Tensor(i, n))), at, x.length
    )
    inline.demand(outside, IndexError("index out of range in self"))

    def pick(t: Tensor, i: Tensor) -> Tensor:
        safe = aten.clamp.default(i, 0, t.shape[x.dim] - 1)
        return aten.index_select.default(t, x.dim, safe)  # type: ignore[no-any-return]

    node: fx.Node = inline(pick, x.value, at)
    return node


def selected_by(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`x.select(dim, i)`, where `i` is read from a tensor, or `x` is as long as data says."""
    x, along, at = args
    if isinstance(at, int) and isinstance(x, Rows) and along % val(x.value).dim() == x.dim:
        at = Number(inline(lambda: aten.full.default([], at, dtype=torch.int64)), at, at)
    if not isinstance(at, Number):
        return same_op(aten.select.int)(inline, args, kwargs, dim)
    table, size = _indexed(inline, x, along, at)

    def pick(t: Tensor, i: Tensor, n: Any) -> Tensor:
        row = aten.index_select.default(t, along, _from_front(i, n))
        return aten.squeeze.dim(row, along)  # type: ignore[no-any-return]

    picked = inline(pick, table, at.node, size)
    return picked if dim is None else Rows(picked, dim, first(args).length)


def written_at(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`select_scatter(x, row, dim, i)`, where `i` is read from a tensor: a ring buffer."""
    x, row, along, at = args
    if not isinstance(at, Number):
        return same_op(aten.select_scatter.default)(inline, args, kwargs, dim)
    if isinstance(row, Rows):
        raise Refused("what is written has an unknown length")
    table, size = _indexed(inline, x, along, at)

    def put(t: Tensor, r: Tensor, i: Tensor, n: Any) -> Tensor:
        return aten.index_copy.default(t, along, _from_front(i, n), aten.unsqueeze.default(r, along))  # type: ignore[no-any-return]

    written = inline(put, table, row, at.node, size)
    return written if dim is None else Rows(written, dim, first(args).length)


def _indexed(inline: Inline, x: Any, along: int, at: Number) -> tuple[fx.Node, Any]:
    """What a number indexes, and how long it is: an int, or a tensor of no dims; the host raises where the number is outside."""
    table = x.value if isinstance(x, Rows) else x
    size = val(table).shape[along]
    if isinstance(x, Rows) and along % val(table).dim() == x.dim:
        least, length, named = 0, x.length, ""
    elif isinstance(size, torch.SymInt):
        length = inline(lambda t: aten.full.default([], t.shape[along], dtype=torch.int64), table)
        least, named = int(ends(size)[0]), ""
    else:
        least, length, named = size, size, f" for size {size}"
    if not isinstance(size, torch.SymInt) and not size:
        raise Refused("a dim without elements is indexed")
    if not -least <= at.low <= at.high < least:
        outside = inline(lambda i, n: torch.logical_or(i < -n, i >= n), at.node, length)
        inline.demand(outside, IndexError(f"select(): index out of range{named} at dimension {along}"))
    return table, length


def _from_front(i: Tensor, size: Any) -> Tensor:
    """An index as one of at least 0, in a tensor of one element, inside also where the host is about to raise."""
    i = aten.where.self(aten.lt.Scalar(i, 0), aten.add.Tensor(i, size), i).reshape([1])
    return torch.minimum(i, size - 1).clamp(min=0) if isinstance(size, Tensor) else i.clamp(0, size - 1)


def pieces(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`split_with_sizes(x, sizes, dim)`, sizes read from tensors: each piece is moved to the front."""
    x, sizes, along = args[0], args[1], args[2] if len(args) > 2 else 0
    if not all(isinstance(size, Number) for size in sizes):
        raise Refused("it is split by sizes of which only some are read")
    whole = x.value if isinstance(x, Rows) else x
    along %= val(whole).dim()
    if isinstance(x, Rows) and x.dim != along:
        raise Refused("rows of unknown length are split along another dim")
    lengths = [size.node for size in sizes]
    ends = [
        inline(lambda *n: aten.sum.default(aten.stack.default(list(n))), *lengths[: i + 1]) for i in range(len(sizes))
    ]
    if isinstance(x, Rows):
        wrong = inline(aten.ne.Tensor, x.length, ends[-1])
    else:
        wrong = inline(lambda t, n: aten.ne.Scalar(n, t.shape[along]), x, ends[-1])
    inline.demand(wrong, RuntimeError("split_with_sizes expects split_sizes to sum to the size of the dim"))

    def piece(t: Tensor, end: Tensor, length: Tensor) -> Tensor:
        places = aten.add.Tensor(aten.arange.default(t.shape[along]), aten.sub.Tensor(end, length))
        safe = aten.clamp.default(places, 0, t.shape[along] - 1)
        return aten.index_select.default(t, along, safe)  # type: ignore[no-any-return]

    made = [inline(piece, whole, *entry) for entry in zip(ends, lengths, strict=True)]
    return tuple(Rows(part, along, length) for part, length in zip(made, lengths, strict=True))


def sliced(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`x[start:end]` where `x`, `start` or `end` is known from data only."""
    given: list[Any] = [*args, *(0, None, None, 1)[len(args) - 1 :]]
    x, along, start, end, step = given
    node = x.value if isinstance(x, Rows) else x
    along %= val(node).dim()
    if isinstance(x, Rows) and along != x.dim:
        return same_op(aten.slice.Tensor)(inline, args, kwargs, dim)
    if step != 1:
        raise Refused("it takes every so many rows")
    size = val(node).shape[along]
    end = None if isinstance(end, int) and statically_known_true(end >= size) and not isinstance(x, Rows) else end
    end = None if isinstance(end, int) and end > 2**62 else end
    total = (
        x.length
        if isinstance(x, Rows)
        else inline(lambda t: aten.full.default([], t.shape[along], dtype=torch.int64), x)
    )

    def place(position: Any, n: Tensor) -> Tensor:
        if not isinstance(position, Tensor):
            position = aten.full.default([], position, dtype=torch.int64)
        wrapped = aten.where.self(aten.lt.Scalar(position, 0), aten.add.Tensor(position, n), position)
        return aten.minimum.default(aten.clamp.default(wrapped, 0), n)  # type: ignore[no-any-return]

    def span(n: Tensor, first_: Any, last: Any) -> tuple[Tensor, Tensor]:
        begin = place(first_, n)
        return begin, aten.clamp.default(aten.sub.Tensor(n if last is None else place(last, n), begin), 0)

    ends = [item.node if isinstance(item, Number) else item for item in (start or 0, end)]
    begin, length = inline(span, total, *ends)
    if isinstance(start or 0, int) and (start or 0) >= 0:
        stop = int(end.high) if isinstance(end, Number) and end.low >= 0 and end.high < 2**31 else end
        stop = stop if isinstance(stop, int) else None  # as many less than the largest length as less than the length
        value = inline(lambda t: aten.slice.Tensor(t, along, start or 0, stop), node)
        if dim is None and isinstance(end, int):  # so few that torch knows all of them are valid
            return value
    else:
        value = inline(lambda t, b: aten.index_select.default(t, along, _shifted(b, fixed(size))), node, begin)
    return Rows(value, along, length)


def _shifted(begin: Tensor, size: int) -> Tensor:
    return aten.clamp.default(aten.add.Tensor(aten.arange.default(size), begin), 0, max(size - 1, 0))  # type: ignore[no-any-return]


def scattered(op: Any) -> Form:
    """`scatter`, `scatter_add`, `scatter_reduce`: known entries into rows of unknown length."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        x, along, at, *rest = args
        if not isinstance(x, Rows) or any(isinstance(arg, (Rows, Number)) for arg in (at, *rest)):
            raise Refused("what is written, or where, is of unknown length")
        if val(at).numel() and along % val(x.value).dim() != x.dim:
            raise Refused("it writes along another dim than the one of unknown length")
        outside = inline(lambda i, n: aten.any.default(aten.ge.Tensor(i, n)), at, x.length)
        inline.demand(outside, RuntimeError(f"{op._schema.name.removeprefix('aten::')}(): an index is out of bounds"))
        safe = inline(lambda i, t: aten.clamp.default(i, None, t.shape[x.dim] - 1), at, x.value)
        return Rows(inline(lambda t, *a: op(t, along, *a, **kwargs), x.value, safe, *rest), x.dim, x.length)

    return form
