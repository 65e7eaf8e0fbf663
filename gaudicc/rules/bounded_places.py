"""Reading and writing by several index tensors, where what is indexed, the indices or what is written are of unknown length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from gaudicc.nodes import val
from gaudicc.rules import compaction
from gaudicc.rules.bounded import Inline, Refused, Rows, filled, first, mask, same_length, values
from gaudicc.rules.indexing import MASKS

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class _Places:
    """Indices of one call.

    Attributes:
        indices: one for each dim of what is indexed, None where the whole dim is meant.
        at: the dim of the result, counted from its end, that is as long as the indices of unknown length; None if there are none.
        outer: the dim of the result, counted from its end, of the unknown length of what is indexed; None if it has none, or it
            is indexed.
    """

    indices: list[Any]
    at: int | None
    outer: int | None

    @property
    def length(self) -> Rows | None:
        """The first index of unknown length, as long as all others."""
        return None if self.at is None else first(self.indices)


def read(inline: Inline, args: Any, dim: int | None) -> Any:
    """`x[i, None, j]`: pads of the indices read row 0."""
    x, indices = args[0], _unmasked(inline, list(args[1]))
    places = _places(inline, x, indices)
    table = values(x)
    safe = [filled(inline, item, 0) if isinstance(item, Rows) else item for item in places.indices]
    if any(_size(table, d) == 0 for d, item in enumerate(safe) if item is not None):
        raise Refused("a dim without elements is indexed")
    made = inline(lambda t, *parts: aten.index.Tensor(t, list(parts)), table, *safe)
    along = places.at if places.at is not None else places.outer
    if along is None:
        return made
    length = places.length or x
    return Rows(made, along % val(made).dim() if dim is None else dim, length.length)


def written(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`x[mask] = v` and `x[i, None, j] = v`: pads of the indices write to a row that is dropped."""
    x, indices, new, accumulate = args[0], list(args[1]), args[2], len(args) > 3 and bool(args[3])
    if len(indices) == 1 and is_mask(indices[0]) and not accumulate and not isinstance(x, Rows):
        return inline(compaction.written, x, _known(indices[0]), values(new))
    indices = _unmasked(inline, indices)
    places = _places(inline, x, indices)
    table = values(x)
    given = [d for d, item in enumerate(places.indices) if item is not None]
    if any(_size(table, d) == 0 for d in given):
        return replace(x) if isinstance(x, Rows) else table  # eager raises at any index, and no index is valid here
    places, value = _fitted(inline, places, x, new)
    made = _put(inline, table, places, value, accumulate)
    return Rows(made, x.dim, x.length) if isinstance(x, Rows) else made


def _known(index: Any) -> Any:
    if isinstance(index, Rows):
        raise Refused("a mask of unknown length writes, or is one of several indices")
    return index


def _unmasked(inline: Inline, indices: list[Any]) -> list[Any]:
    """The indices, with the places that a mask keeps instead of it."""
    masks = {_known(item) for item in indices if item is not None and is_mask(item)}
    if len(masks) > 1:
        raise Refused("several masks are indices together")
    kept = {item: inline(compaction.nonzero, item) for item in masks}
    made: list[Any] = []
    for item in indices:
        if item is None or not is_mask(item):
            made.append(item)
            continue
        places, length = kept[item]
        made += [Rows(column, 0, length) for column in inline(lambda p: tuple(aten.unbind.int(p, 1)), places)]
    return made


def _put(inline: Inline, table: fx.Node, places: _Places, value: fx.Node, accumulate: bool) -> fx.Node:
    rows = places.length
    along = next((d for d, item in enumerate(places.indices) if isinstance(item, Rows)), 0)
    parts = values(places.indices)
    others = [
        filled(inline, item, 0) if isinstance(item, Rows) and d != along else part
        for d, (item, part) in enumerate(zip(places.indices, parts, strict=True))
    ]
    if rows is None:
        node: fx.Node = inline(
            lambda t, v, *at: aten.index_put.default(t, list(at), v, accumulate), table, value, *others
        )
        return node

    def write(t: Tensor, v: Tensor, length: Tensor, *at: Any) -> Tensor:
        size: Any = t.shape[along]
        own = aten.where.self(aten.lt.Scalar(at[along], 0), aten.add.Tensor(at[along], size), at[along])
        own = aten.where.self(mask(own, length, rows.dim), own, aten.full.default([], size, dtype=own.dtype))
        row = [1 if d == along else length for d, length in enumerate(t.shape)]
        dump = aten.cat.default([t, aten.full.default(row, 0, dtype=t.dtype)], along)
        made = aten.index_put.default(dump, [*at[:along], own, *at[along + 1 :]], v, accumulate)
        return aten.slice.Tensor(made, along, 0, size)  # type: ignore[no-any-return]

    made: fx.Node = inline(write, table, value, rows.length, *others)
    return made


def _places(inline: Inline, x: Any, indices: list[Any]) -> _Places:
    """Where the dims of unknown length go, with indices of such a dim proved or demanded to be inside."""
    given = [d for d, item in enumerate(indices) if item is not None]
    ranks = [val(values(indices[d])).dim() for d in given]
    block = given[-1] - given[0] + 1 == len(given)
    behind = val(values(x)).dim() - len(given) - (given[0] if block else 0)
    rows = [item for item in indices if isinstance(item, Rows)]
    at = None
    if rows:
        ends = {item.dim - val(item.value).dim() for item in rows}
        if len(ends) > 1:
            raise Refused("its indices have their unknown lengths in different dims")
        at = ends.pop()
        first(rows)
        if any(not isinstance(indices[d], Rows) and _size(indices[d], at) != 1 for d in given):
            raise Refused("indices of known and unknown length are mixed")
        at -= behind
    outer = None
    if isinstance(x, Rows) and x.dim in given:
        indices = [_inside(inline, x, item) if d == x.dim else item for d, item in enumerate(indices)]
    elif isinstance(x, Rows):
        before = sum(d < x.dim for d in given) if block else 0
        rank = max(ranks)
        place = x.dim - sum(d < x.dim for d in given) + (rank if not block or before else 0)
        outer = place - (val(x.value).dim() - len(given) + rank)
    return _Places(indices, at, outer)


def _inside(inline: Inline, x: Rows, index: Any) -> Any:
    """An index into the dim of unknown length, from the front; the host raises where a valid entry is outside."""

    def outside(i: Tensor, n: Tensor, *length: Tensor) -> Tensor:
        wrong = aten.logical_or.default(aten.lt.Tensor(i, aten.neg.default(n)), aten.ge.Tensor(i, n))
        for own in length:
            wrong = aten.logical_and.default(wrong, mask(i, own, index.dim))
        return aten.any.default(wrong)  # type: ignore[no-any-return]

    def safe(i: Tensor, n: Tensor, t: Tensor) -> Tensor:
        front = aten.where.self(aten.lt.Scalar(i, 0), aten.add.Tensor(i, n), i)
        return aten.clamp.default(front, 0, t.shape[x.dim] - 1)  # type: ignore[no-any-return]

    own = (index.length,) if isinstance(index, Rows) else ()
    failed = inline(outside, values(index), x.length, *own)
    inline.demand(failed, IndexError(f"index is out of bounds for dimension {x.dim}"))
    made = inline(safe, values(index), x.length, x.value)
    return replace(index, value=made) if isinstance(index, Rows) else made


def _fitted(inline: Inline, places: _Places, x: Any, new: Any) -> tuple[_Places, fx.Node]:
    """Indices and what is written, equally long: one is cut where the other is shorter, and the host raises where they differ."""
    value = values(new)
    if isinstance(new, Rows) and new.dim - val(value).dim() == places.outer:
        if not same_length(new, x):
            raise Refused("what is written has another unknown length")
        return places, value
    if places.outer is not None and _size(value, places.outer) != 1:
        raise Refused("what is written has a known length where the other is unknown")
    if isinstance(new, Rows) and (places.at is None or new.dim - val(value).dim() != places.at):
        raise Refused("what is written has an unknown length where the indices have none")
    rows = places.length
    if rows is None or places.at is None or (_size(value, places.at) == 1 and not isinstance(new, Rows)):
        return places, value
    if isinstance(new, Rows) and same_length(new, rows):
        return places, value
    length = new.length if isinstance(new, Rows) else inline(lambda v: aten.full.default([], v.shape[places.at]), value)
    inline.demand(
        inline(aten.ne.Tensor, rows.length, length), RuntimeError("index_put_(): values and indices differ in length")
    )
    most, least = rows.bound, _size(value, places.at)
    if str(most) == str(least):
        return places, value
    if not isinstance(most, int) or not isinstance(least, int):
        raise Refused("what is written and the indices have different largest lengths")
    shared = min(most, least)
    value = inline(lambda v: aten.slice.Tensor(v, places.at, 0, shared), value)
    cut = [
        replace(item, value=inline(lambda t, d: aten.slice.Tensor(t, d, 0, shared), item.value, item.dim))
        if isinstance(item, Rows)
        else item
        for item in places.indices
    ]
    return replace(places, indices=cut), value


def _size(item: Any, dim: int) -> Any:
    """A size of an operand; 1 where it has no such dim."""
    shape = val(values(item)).shape
    return shape[dim] if -len(shape) <= dim < len(shape) else 1


def is_mask(item: Any) -> bool:
    """Whether an index chooses by True and False, its length known or not."""
    return val(values(item)).dtype in MASKS
