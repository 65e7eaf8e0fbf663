"""Gather and scatter: pads of an index read something harmless, or write to a row that is dropped."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Factor, Kind, Pads, join, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression
from gaudicc.program import val
from gaudicc.rules.match import argument

_IN_RANGE = "pads of an index are 0, which is in range"
_DUMP = "pads of an index name a row that is dropped afterwards"


def _safe_index(p: Padder, index: fx.Node, size: Any) -> fx.Node:
    """An index that is in range of a dim wherever any of its dims is pad."""
    pads = p.pads(index)
    if pads.uniform is not None or _in_range(pads, size):
        return index
    return p.fill(index, pads.padded_dims, 0, _IN_RANGE)


def _in_range(pads: Pads, size: Any) -> bool:
    """Whether all pads hold constants that a dim of fixed size has."""
    contents = [c for dim in pads.padded_dims for c in pads.contents(dim)]
    bounded = not isinstance(size, torch.SymInt) and all(
        c.kind is Kind.CONSTANT and 0 <= c.value < size for c in contents
    )
    return bounded and (len(contents) < 2 or all(c.strong for c in contents))


def _copies(p: Padder, *pads: Pads) -> Content:
    """What picked rows hold: valid values, or pads of what they were picked from."""
    finite = all(c.finite for pad in pads for dim in range(len(pad.dims)) for c in pad.contents(dim))
    return FINITE if finite else GARBAGE


def _embedding(p: Padder, node: fx.Node) -> Claims:
    index = _safe_index(p, operand(node, 1), val(operand(node, 0)).shape[0])
    p.set_arg(1, index)
    table, rows = p.pads(operand(node, 0)), p.pads(index)
    if table.padded(0):
        p.set_arg(0, p.compact(operand(node, 0), 0))
    content = _copies(p, table)
    made = tuple(normal(mapped(d, lambda c: content), val(node).dtype) for d in rows.dims)
    return Pads((*made, *table.dims[1:]))


def _index_select(p: Padder, node: fx.Node) -> Claims:
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank)
    p.set_arg(0, p.compact(operand(node, 0), dim))
    index = _safe_index(p, operand(node, 2), val(operand(node, 0)).shape[dim])
    p.set_arg(2, index)
    pads = p.pads(operand(node, 0))
    content = _copies(p, Pads((pads.dims[dim],)))
    row: Dim = p.pads(index).dims[0] if p.pads(index).dims else p.dim(1)
    made = normal(mapped(row, lambda c: content), val(node).dtype)
    rest = [mapped(d, lambda c: c.weak) for d in pads.dims]
    return Pads((*rest[:dim], made, *rest[dim + 1 :]))


def _gather(p: Padder, node: fx.Node) -> Claims:
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank) if rank else 0
    x: Any = p.compact(operand(node, 0), dim) if rank else operand(node, 0)
    index: Any = operand(node, 2)
    for other in range(rank):
        if other != dim and p.pads(x).sizes(other) != p.pads(index).sizes(other):
            x, index = p.compact(x, other), p.compact(index, other)
    index = _safe_index(p, index, val(x).shape[dim] if rank else 1)
    p.set_arg(0, x)
    p.set_arg(2, index)
    pads = p.pads(index)
    content = _copies(p, p.pads(x))
    return Pads(tuple(normal(mapped(d, lambda c: content), val(node).dtype) for d in pads.dims))


def _index(p: Padder, node: fx.Node) -> Claims:
    """x[i, None, j]: negative entries count from the logical end of a padded dim."""
    x: Any = operand(node, 0)
    indices: list[Any] = list(operand(node, 1))
    _refuse_masks(p, indices)
    for dim, index in enumerate(indices):
        if index is not None:
            x = p.compact(x, dim)
    p.set_arg(0, x)
    source = p.pads(x)
    whole = [_reads_all(p, x, dim, index) for dim, index in enumerate(indices)]
    indices = [
        index if index is None or whole[dim] else _from_front(p, x, dim, _safe_index(p, index, val(x).shape[dim]))
        for dim, index in enumerate(indices)
    ]
    p.set_arg(1, indices)
    result = val(node)
    front = _broadcast_dims(p, [index for index in indices if index is not None])
    place = _place(indices)
    outer = [source.dims[d] for d in range(len(source.dims)) if d >= len(indices) or indices[d] is None]
    content = _copies(p, Pads(tuple(source.dims[d] for d, index in enumerate(indices) if index is not None)))
    inner = [normal(mapped(d, lambda c: content), result.dtype) for d in front]
    for dim, index in enumerate(indices):
        if (
            index is not None
            and whole[dim]
            and all(_one_reads(p, indices, dim, other) for other in range(len(indices)))
        ):
            at = len(front) - val(index).dim() + p.pads(index).iota
            if _only_there(p, indices, dim, at, len(front)):
                inner[at] = mapped(source.dims[dim], lambda c: c.weak)
    weak = [mapped(d, lambda c: c.weak) for d in outer]
    return Pads((*weak[:place], *inner, *weak[place:]))


def _one_reads(p: Padder, indices: list[Any], dim: int, other: int) -> bool:
    return indices[other] is None or other == dim or not isinstance(p.pads(indices[other]).iota, type(None))


def _only_there(p: Padder, indices: list[Any], dim: int, at: int, rank: int) -> bool:
    """Whether no other index varies along that dim of the result."""
    for other, index in enumerate(indices):
        if index is not None and other != dim:
            own = at - (rank - val(index).dim())
            if own >= 0 and expression(val(index).shape[own]) != 1:
                return False
    return True


def _reads_all(p: Padder, x: Any, dim: int, index: Any) -> bool:
    """Whether an index is 0, 1, ... over a whole dim, so that its pads read the dim's own."""
    along = None if index is None else p.pads(index).iota
    return along is not None and p.pads(index).sizes(along) == p.pads(x).sizes(dim)


def _refuse_masks(p: Padder, indices: list[Any]) -> None:
    if any(index is not None and val(index).dtype in (torch.bool, torch.uint8) for index in indices):
        raise p.refuse("a bool mask picks as many rows as data says; use where")


def _from_front(p: Padder, x: Any, dim: int, index: fx.Node) -> fx.Node:
    """Negative entries of an index into a padded dim, counted from the front."""
    pads = p.pads(x)
    if not pads.padded(dim) or p.pads(index).iota is not None:
        return index
    (size,) = (f.size for f in [Factor(expression(val(x).shape[dim]))])
    return p.emit(
        aten.where.self,
        p.emit(aten.lt.Scalar, index, 0),
        p.emit(aten.add.Tensor, index, p.resources.length(size)),
        index,
    )


def _broadcast_dims(p: Padder, indices: list[fx.Node]) -> list[Dim]:
    rank = max(val(index).dim() for index in indices)
    made: list[Dim] = []
    for i in range(rank):
        found: Dim = p.dim(1)
        for index in indices:
            own = i - (rank - val(index).dim())
            if own >= 0 and expression(val(index).shape[own]) != 1:
                layout = p.pads(index).dims[own]
                if expression(1) != found[0].size and tuple(f.size for f in found) != tuple(f.size for f in layout):
                    raise p.refuse("indices of different layouts")
                found = layout
        made.append(found)
    return made


def _place(indices: list[Any]) -> int:
    """Where the dims of the indices go: in the place of the first if they stand together, else in front."""
    given = [i for i, index in enumerate(indices) if index is not None]
    return given[0] if given[-1] - given[0] + 1 == len(given) else 0


def _dump_row(p: Padder, x: Any, dim: int) -> fx.Node:
    """The tensor with one more row at the end of a dim, for pads to be written to."""
    rank = val(x).dim()
    widths = [0] * (2 * rank)
    widths[2 * (rank - 1 - dim) + 1] = 1
    return p.raw(aten.constant_pad_nd.default, x, widths, 0)


def _dropped(p: Padder, node: fx.Node, dim: int, claims: Pads) -> Claims:
    rest = p.raw(aten.slice.Tensor, node, dim, 0, p.size_of(val(p.node).shape[dim]))
    p.claims[rest] = claims
    p.log("rewrite", "a row is added for pads to be written to, and dropped")
    return p.become(rest)


def _dumped_index(p: Padder, index: fx.Node, row: Any) -> fx.Node:
    """An index whose pads name the dump row, wherever any dim is pad."""
    pads = p.pads(index)
    mask = p.mask(val(index).dim(), {d: pads.sizes(d) for d in pads.padded_dims})
    p.log("mask", _DUMP)
    dump = p.resources.physical(expression(row))
    if isinstance(dump, int):
        dump = p.literal(dump, val(index).dtype)
    return p.raw(aten.where.self, mask, index, dump)


def _after_write(p: Padder, base: Pads, values: Pads | None, dtype: torch.dtype) -> Pads:
    """The base's claims, weakened by what may have been written into its pads."""
    content = FINITE if values is None else _copies(p, values)
    return Pads(tuple(normal(mapped(d, lambda c: join(c, content).weak), dtype) for d in base.dims))


def _index_put(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    indices: list[Any] = list(operand(node, 1))
    _refuse_masks(p, indices)
    for dim, index in enumerate(indices):
        if index is not None:
            x = p.compact(x, dim)
            indices[dim] = _from_front_any(p, x, dim, index)
    first = next(dim for dim, index in enumerate(indices) if index is not None)
    front = _broadcast_dims(p, [index for index in indices if index is not None])
    claims = _after_write(p, p.pads(x), p.pads(operand(node, 2)), val(node).dtype)
    if not any(f.content for d in front for f in d):
        p.node.args = (x, indices, *node.args[2:])
        p.rewriter.modified = True
        return claims
    # One index that varies along every padded dim names the dump row; the others are merely brought in range.
    sizes = [p.size_of(s) for s in torch.broadcast_shapes(*(val(i).shape for i in indices if i is not None))]
    wide = p.raw(aten.expand.default, indices[first], sizes)
    p.claims[wide] = Pads(tuple(mapped(d, lambda c: GARBAGE) for d in front))
    indices = [None if i is None else _safe_index(p, i, val(x).shape[d]) for d, i in enumerate(indices)]
    indices[first] = _dumped_index(p, wide, val(x).shape[first])
    written = p.raw(node.target, _dump_row(p, x, first), indices, *node.args[2:])
    return _dropped(p, written, first, claims)


def _from_front_any(p: Padder, x: Any, dim: int, index: fx.Node) -> fx.Node:
    """Like `_from_front`, for the first index too, whose dim grows by the dump row."""
    if p.pads(index).iota is not None:
        return index
    expr = expression(val(x).shape[dim])
    length = p.resources.length(expr) if expr.free_symbols else int(expr)
    return p.emit(aten.where.self, p.emit(aten.lt.Scalar, index, 0), p.emit(aten.add.Tensor, index, length), index)


def _scatter(p: Padder, node: fx.Node) -> Claims:
    """scatter, scatter_add, scatter_reduce: (x, dim, index, src or value)."""
    x: Any = operand(node, 0)
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank)
    index: Any = operand(node, 2)
    x = p.compact(x, dim)
    source: Any = operand(node, 3) if len(node.args) > 3 else None
    tensor = isinstance(source, fx.Node) and isinstance(val(source), torch.Tensor)
    for other in range(rank):
        layouts = {
            p.pads(t).sizes(other) for t in ([x, index, source] if tensor else [x, index]) if p.pads(t).uniform is None
        }
        if len(layouts) > 1:
            x = p.compact(x, other) if other != dim else x
            index = p.compact(index, other)
            source = p.compact(source, other) if tensor else source
    values = p.pads(source) if tensor else None
    claims = _after_write(p, p.pads(x), values, val(node).dtype)
    tail = (source, *node.args[4:]) if len(node.args) > 3 else ()
    if not p.pads(index).padded_dims:
        node.args = (x, dim, index, *tail)
        p.rewriter.modified = True
        return claims
    index = _dumped_index(p, index, val(x).shape[dim])
    written = p.raw(node.target, _dump_row(p, x, dim), dim, index, *tail, **node.kwargs)
    return _dropped(p, written, dim, claims)


def _index_write(p: Padder, node: fx.Node) -> Claims:
    """index_add, index_copy, index_fill: (x, dim, index, src)."""
    x: Any = operand(node, 0)
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank)
    index: Any = operand(node, 2)
    x = p.compact(x, dim)
    source: Any = operand(node, 3)
    values = p.pads(source)
    if values.dims and values.sizes(dim) != p.pads(index).sizes(0):
        source, index = p.compact(source, dim), p.compact(index, 0)
    claims = _after_write(p, p.pads(x), values, val(node).dtype)
    if not p.pads(index).padded_dims:
        node.args = (x, dim, index, source, *node.args[4:])
        p.rewriter.modified = True
        return claims
    index = _dumped_index(p, index, val(x).shape[dim])
    written = p.raw(node.target, _dump_row(p, x, dim), dim, index, source, *node.args[4:], **node.kwargs)
    return _dropped(p, written, dim, claims)


def _slice_scatter(p: Padder, node: fx.Node) -> Claims:
    """Only the valid part of the source is written; it begins at the logical start."""
    x: Any = operand(node, 0)
    source: Any = operand(node, 1)
    rank = val(node).dim()
    dim = wrap(int(argument(node, 2, "dim", 0)), rank)
    start, step = argument(node, 3, "start", 0) or 0, argument(node, 5, "step", 1)
    x, source = p.compact(x, dim), p.compact(source, dim)
    p.set_arg(0, x)
    p.set_arg(1, source)
    base, new = p.pads(x), p.pads(source)
    fixed = isinstance(start, int) and start >= 0
    if fixed and not new.padded(dim):
        return _after_write(p, base, new, val(node).dtype)
    whole = expression(val(source).shape[dim]) == expression(val(x).shape[dim])
    if whole and step == 1:
        return p.become(p.emit(aten.clone.default, source))
    if step != 1:
        raise p.refuse("a strided write of a padded source")
    begins: Any = start
    if not fixed:
        size = expression(val(x).shape[dim])
        length = p.resources.length(size) if size.free_symbols else int(size)
        begins = (
            p.value(start)
            if isinstance(start, fx.Node)
            else p.raw(aten.add.Tensor, length, start)
            if isinstance(length, fx.Node)
            else length + start
        )
    place = p.raw(aten.sub.Tensor, p.resources.iota(expression(val(x).shape[dim])), begins)
    extent = expression(val(source).shape[dim])
    length = p.resources.length(extent) if extent.free_symbols else p.resources.scalar(extent)
    inside = p.raw(aten.logical_and.default, p.raw(aten.ge.Scalar, place, 0), p.raw(aten.lt.Tensor, place, length))
    shape = [1] * rank
    shape[dim] = -1
    rows = p.select_rows(source, dim, p.clamp_to(place, extent), p.pads(x).dims[dim])
    mixed = p.raw(aten.where.self, p.raw(aten.view.default, inside, shape), rows, x)
    p.claims[mixed] = _after_write(p, base, new, val(node).dtype)
    p.log("mask", "only the valid part of the source is written")
    return p.become(mixed)


def _search(p: Padder, node: fx.Node) -> Claims:
    """searchsorted: pads of the sorted sequence sort last."""
    rank = val(operand(node, 0)).dim()
    dtype = val(operand(node, 0)).dtype
    p.fill_arg(
        0,
        [rank - 1],
        float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max,
        "pads of the sorted values sort last",
    )
    sought = p.pads(operand(node, 1))
    if rank > 1 and any(p.pads(operand(node, 0)).sizes(d) != sought.sizes(d) for d in range(rank - 1)):
        raise p.refuse("sequences and values of different layouts")
    # Counting from the right would count pads that equal the value sought; the length bounds it.
    raw = p.raw(node.target, *node.args, **node.kwargs)
    size = expression(val(operand(node, 0)).shape[rank - 1])
    dims = tuple(mapped(d, lambda c: GARBAGE) for d in sought.dims)
    bounded = p.raw(aten.minimum.default, raw, p.resources.length(size)) if size.free_symbols else raw
    if size.free_symbols and val(bounded).dtype != val(node).dtype:
        bounded = p.raw(aten._to_copy.default, bounded, dtype=val(node).dtype)
    p.claims[bounded] = Pads(dims)
    return p.become(bounded)


RULES = (
    Rule((aten.embedding.default,), "0 in the pads of the index", "rows of the table: finite", _embedding),
    Rule((aten.index_select.default,), "0 in the pads of the index", "picked rows", _index_select),
    Rule((aten.gather.default,), "0 in the pads of the index", "picked values", _gather),
    Rule(
        (aten.index.Tensor, aten._unsafe_index.Tensor),
        "0 in the pads of indices, unless they are 0, 1, ...; negative ones count from the logical end; masks refused",
        "picked values; those of the dim where an index is 0, 1, ...",
        _index,
    ),
    Rule(
        (aten.index_put.default,),
        "pads of the index write to a row that is dropped",
        "the base's, or finite",
        _index_put,
    ),
    Rule(
        (aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.scatter_reduce.two),
        "pads of the index write to a row that is dropped",
        "the base's, or finite",
        _scatter,
    ),
    Rule(
        (aten.index_add.default, aten.index_copy.default, aten.index_fill.int_Scalar),
        "pads of the index write to a row that is dropped",
        "the base's, or finite",
        _index_write,
    ),
    Rule(
        (aten.slice_scatter.default,),
        "only the valid part of the source is written",
        "the base's, or finite",
        _slice_scatter,
    ),
    Rule(
        (aten.searchsorted.Tensor,),
        "pads of the sorted values sort last, and results are bounded by the length",
        "garbage",
        _search,
    ),
)
