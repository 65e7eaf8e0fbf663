"""Gather and its kin: pads of an index read something harmless."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.extremes import fill_extreme_arg
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Kind, Pads, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument

_IN_RANGE = "pads of an index are 0, which is in range"


def safe_index(p: Padder, index: fx.Node, size: Any) -> fx.Node:
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


def copies(p: Padder, *pads: Pads) -> Content:
    """What picked rows hold: valid values, or pads of what they were picked from."""
    finite = all(c.finite for pad in pads for dim in range(len(pad.dims)) for c in pad.contents(dim))
    return FINITE if finite else GARBAGE


def _embedding(p: Padder, node: fx.Node) -> Claims:
    index = safe_index(p, operand(node, 1), val(operand(node, 0)).shape[0])
    p.set_arg(1, index)
    table, rows = p.pads(operand(node, 0)), p.pads(index)
    if table.padded(0):
        p.set_arg(0, p.compact(operand(node, 0), 0))
    content = copies(p, table)
    made = tuple(normal(mapped(d, lambda c: content), val(node).dtype) for d in rows.dims)
    return Pads((*made, *table.dims[1:]))


def _index_select(p: Padder, node: fx.Node) -> Claims:
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank)
    p.set_arg(0, p.compact(operand(node, 0), dim))
    index = safe_index(p, operand(node, 2), val(operand(node, 0)).shape[dim])
    p.set_arg(2, index)
    pads = p.pads(operand(node, 0))
    content = copies(p, Pads((pads.dims[dim],)))
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
    index = safe_index(p, index, val(x).shape[dim] if rank else 1)
    p.set_arg(0, x)
    p.set_arg(2, index)
    pads = p.pads(index)
    content = copies(p, p.pads(x))
    return Pads(tuple(normal(mapped(d, lambda c: content), val(node).dtype) for d in pads.dims))


def _index(p: Padder, node: fx.Node) -> Claims:
    """x[i, None, j]: negative entries count from the logical end of a padded dim."""
    x: Any = operand(node, 0)
    indices: list[Any] = list(operand(node, 1))
    refuse_masks(p, indices)
    for dim, index in enumerate(indices):
        if index is not None:
            x = p.compact(x, dim)
    p.set_arg(0, x)
    source = p.pads(x)
    whole = [_reads_all(p, x, dim, index) for dim, index in enumerate(indices)]
    indices = [
        index if index is None or whole[dim] else from_front(p, x, dim, safe_index(p, index, val(x).shape[dim]))
        for dim, index in enumerate(indices)
    ]
    p.set_arg(1, indices)
    result = val(node)
    front = broadcast_dims(p, [index for index in indices if index is not None])
    place = index_place(indices)
    outer = [source.dims[d] for d in range(len(source.dims)) if d >= len(indices) or indices[d] is None]
    content = copies(p, Pads(tuple(source.dims[d] for d, index in enumerate(indices) if index is not None)))
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


def refuse_masks(p: Padder, indices: list[Any]) -> None:
    """Refuses bool indices."""
    if any(index is not None and val(index).dtype in (torch.bool, torch.uint8) for index in indices):
        raise p.refuse("a bool mask picks as many rows as data says; use where")


def from_front(p: Padder, x: Any, dim: int, index: fx.Node) -> fx.Node:
    """Negative entries of an index into a padded dim, counted from the front."""
    pads = p.pads(x)
    if not pads.padded(dim) or p.pads(index).iota is not None:
        return index
    length = p.resources.length(expression(val(x).shape[dim]))
    made = p.emit(aten.where.self, p.emit(aten.lt.Scalar, index, 0), p.emit(aten.add.Tensor, index, length), index)
    own = p.pads(index)
    if all(c.kind is Kind.CONSTANT and c.value >= 0 for d in own.padded_dims for c in own.contents(d)):
        p.claims[made] = Pads(own.dims)  # what is not negative stays
    return safe_index(p, made, val(x).shape[dim])


def broadcast_dims(p: Padder, indices: list[fx.Node]) -> list[Dim]:
    """The layout of indices broadcast together."""
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


def index_dims(p: Padder, x: fx.Node, indices: list[Any], front: list[Dim]) -> list[Dim]:
    """The layout of `x[indices]`; `front`: of the indices together."""
    source, place = p.pads(x).dims, index_place(indices)
    outer = [d for i, d in enumerate(source) if i >= len(indices) or indices[i] is None]
    return [*outer[:place], *front, *outer[place:]]


def index_place(indices: list[Any]) -> int:
    """Where the dims of the indices go: in the place of the first if they stand together, else in front."""
    given = [i for i, index in enumerate(indices) if index is not None]
    return given[0] if given[-1] - given[0] + 1 == len(given) else 0


def _search(p: Padder, node: fx.Node) -> Claims:
    """searchsorted: pads of the sorted sequence sort last."""
    rank = val(operand(node, 0)).dim()
    dtype = val(operand(node, 0)).dtype
    ordered = fill_extreme_arg(
        p,
        0,
        [rank - 1],
        float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max,
        "pads of the sorted values sort last",
    )
    sought = p.pads(operand(node, 1))
    if rank > 1 and any(ordered.sizes(d) != sought.sizes(d) for d in range(rank - 1)):
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


def _bucketize(p: Padder, node: fx.Node) -> Claims:
    """Bucketize is searchsorted with its operands swapped."""
    x, boundaries = operand(node, 0), operand(node, 1)
    return p.become(p.emit(aten.searchsorted.Tensor, boundaries, x, **node.kwargs))


def _one_hot(p: Padder, node: fx.Node) -> Claims:
    """one_hot with the number of classes given: pads of the index name a class that there is."""
    classes = argument(node, 1, "num_classes", -1)
    if isinstance(classes, int) and classes < 0:
        raise p.refuse("the largest value says how many classes there are; give num_classes")
    index = safe_index(p, operand(node, 0), val(node).shape[-1])
    p.set_arg(0, index)
    return Pads((*(mapped(d, lambda c: GARBAGE) for d in p.pads(index).dims), p.dim(val(node).shape[-1])))


def _grid_sampler(p: Padder, node: fx.Node) -> Claims:
    """Places in a plane are parts of its size: a plane with pads would be another one."""
    planes, places = p.pads(operand(node, 0)), p.pads(operand(node, 1))
    if any(planes.padded(dim) for dim in (2, 3)):
        raise p.refuse("it samples a plane that has pads")
    batch, height, width = (mapped(d, lambda c: GARBAGE) for d in places.dims[:-1])
    return Pads((batch, mapped(planes.dims[1], lambda c: GARBAGE), height, width))


RULES = (
    Rule((aten.embedding.default,), "0 in the pads of the index", "rows of the table: finite", _embedding),
    Rule((aten.index_select.default,), "0 in the pads of the index", "picked rows", _index_select),
    Rule((aten.one_hot.default,), "0 in the pads of the index", "garbage", _one_hot),
    Rule((aten.gather.default,), "0 in the pads of the index", "picked values", _gather),
    Rule(
        (aten.grid_sampler_2d.default,),
        "nothing; pads of a plane refused",
        "garbage",
        _grid_sampler,
    ),
    Rule(
        (aten.index.Tensor, aten._unsafe_index.Tensor),
        "0 in the pads of indices, unless they are 0, 1, ...; negative ones count from the logical end; masks refused",
        "picked values; those of the dim where an index is 0, 1, ...",
        _index,
    ),
    Rule(
        (aten.searchsorted.Tensor,),
        "pads of the sorted values sort last, and results are bounded by the length",
        "garbage",
        _search,
    ),
    Rule((aten.bucketize.Tensor,), "as searchsorted", "garbage", _bucketize),
)
