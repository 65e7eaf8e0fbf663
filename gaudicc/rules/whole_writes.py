"""Rows and windows written through views of a buffer, as caches in pages are, become rows of the whole buffer."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import RESHAPES, argument, calls, same_sizes

aten = torch.ops.aten
_WRITES = (aten.index_put.default, aten.index_copy.default)


def write_whole(rewriter: Rewriter) -> Iterator[str]:
    """Rewrites every write into a view of a placeholder, or of what such a write gives.

    That is `index_put` and `index_copy` into views that merge the first dims and into selections of the first dim, and
    `slice_scatter` into slices of other dims. Yields the names of the placeholders.
    """
    for node in calls(rewriter.graph, *_WRITES, aten.slice_scatter.default):
        root = _root(node.args[0])
        written = _window(rewriter, node) or node
        if written.target not in _WRITES:
            continue  # a slice that is no window of rows
        while written.args[0] is not root and (whole := _wider(rewriter, written)) is not None:
            written = whole
        if written is not node and written.args[0] is root and root.op == "placeholder":
            yield root.name


def _root(node: Any) -> fx.Node:
    """What a view is one of, in the end."""
    while isinstance(node, fx.Node) and (node.target in RESHAPES or _selected(node)):
        base, _ = _selected(node) or (node.args[0], 0)
        node = base
    return node  # type: ignore[no-any-return]


def _is_buffer(root: fx.Node) -> bool:
    return root.op == "placeholder" or root.target in _WRITES


def _selected(node: Any) -> tuple[fx.Node, int] | None:
    """The tensor whose first dim a node selects from, and where."""
    if node.target is aten.select.int and node.args[1] == 0 and isinstance(node.args[2], int):
        return node.args[0], node.args[2]
    if node.target is operator.getitem and node.args[0].target is aten.unbind.int:
        unbound, place = node.args
        return (unbound.args[0], place) if argument(unbound, 1, "dim", 0) == 0 else None
    return None


def _wider(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """The same write one view further out, if it can be written so; all that reads `node` reads a view of it."""
    indices, values = _indices(node), node.args[-1] if node.target is aten.index_copy.default else node.args[2]
    view: Any = node.args[0]
    if indices is None or not _is_buffer(_root(view)):
        return None
    outer = _outer(rewriter, node, view, indices)
    if outer is None:
        return None
    more = node.args[3:] if node.target is aten.index_put.default else ()
    selected = _selected(view)
    base = selected[0] if selected else view.args[0]
    whole = rewriter.emit(aten.index_put.default, base, outer, values, *more, like=node)
    for user in list(node.users):
        if _undoes(user, node, base, selected):
            rewriter.replace(user, whole)
    if node.users:
        again = (aten.select.int, 0, selected[1]) if selected else (view.target, *view.args[1:])
        rewriter.replace(node, rewriter.emit(again[0], whole, *again[1:], like=node))
    return whole


def _indices(node: fx.Node) -> list[Any] | None:
    """Indices of a write that names rows of the first dim."""
    if node.target is aten.index_copy.default:
        _, dim, index, _ = node.args
        return [index] if dim == 0 and val(index).dim() == 1 else None  # type: ignore[arg-type]
    indices: Any = list(node.args[1])  # type: ignore[arg-type]
    whole_numbers = all(index is None or not val(index).dtype.is_floating_point for index in indices)
    plain = whole_numbers and all(index is None or val(index).dtype is not torch.bool for index in indices)
    return indices if plain and indices[0] is not None else None


def _outer(rewriter: Rewriter, node: fx.Node, view: fx.Node, indices: Sequence[Any]) -> list[Any] | None:
    """Indices of the tensor that `view` is of."""
    if selected := _selected(view):
        return [rewriter.emit(aten.full.default, [], selected[1], dtype=torch.int64, like=node), *indices]
    merged = _merged(val(view.args[0]).shape, val(view).shape)  # type: ignore[arg-type]
    if not merged:
        return None
    split: list[Any] = []
    rest = indices[0]
    for size in reversed(merged):
        split.insert(0, rewriter.emit(aten.remainder.Scalar, rest, size, like=node))
        rest = rewriter.emit(aten.div.Tensor_mode, rest, size, rounding_mode="floor", like=node)
    return [rest, *split, *indices[1:]]


def _merged(base: Sequence[Any], seen: Sequence[Any]) -> tuple[int, ...]:
    """The numbers of rows behind the first dim that a view merges with it, none if it does something else."""
    count = len(base) - len(seen)
    inner = base[1 : count + 1]
    if count < 1 or not seen or not same_sizes(base[count + 1 :], seen[1:]) or not all(type(n) is int for n in inner):
        return ()
    return tuple(inner) if same_sizes([base[0] * math.prod(inner)], seen[:1]) and 0 not in inner else ()


def _undoes(user: fx.Node, node: fx.Node, base: Any, selected: tuple[fx.Node, int] | None) -> bool:
    """Whether a user puts the written rows back where the view took them from."""
    if selected:
        return user.target is aten.select_scatter.default and user.args == (base, node, 0, selected[1])
    return user.target in RESHAPES and user.args[0] is node and same_sizes(val(user).shape, val(base).shape)


def _window(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """A `slice_scatter` into a slice that is put back by another, as one `index_put`: what replaces the outer one."""
    starts: dict[int, Any] = {}
    base, inner = node.args[0], node
    if node.target is not aten.slice_scatter.default or not _is_buffer(_root(base)):
        return None
    while inner.target is aten.slice_scatter.default:
        dim, start, end, step = (argument(inner, i, n, d) for i, n, d in zip(range(2, 6), _SLICE, _ALL, strict=True))
        place = dim % val(base).dim()  # type: ignore[arg-type]
        if step != 1 or place in starts or (isinstance(start, int) and start < 0):
            return None
        starts[place] = start or 0
        source: Any = inner.args[1]
        if source.target is aten.slice_scatter.default and not _is_slice(
            source.args[0], inner.args[0], dim, start, end
        ):
            return None
        inner = source
    if len(starts) == 1:
        return None
    given: Any = inner.args[1] if inner.target is aten.copy.default else inner
    source = given if same_sizes(val(given).shape, val(inner).shape) and val(given).dtype == val(inner).dtype else inner
    dims = sorted(starts)
    indices: list[Any] = [None] * (dims[-1] + 1)
    for place, dim in enumerate(dims):
        size = val(source).shape[dim]
        count = size if isinstance(size, int) else rewriter.emit(aten.sym_size.int, source, dim, like=node)
        rows = rewriter.emit(aten.arange.default, count, device=val(source).device, like=node)
        rows = rows if starts[dim] == 0 else rewriter.emit(aten.add.Tensor, rows, starts[dim], like=node)
        behind = len(dims) - 1 - place
        indices[dim] = rewriter.emit(aten.view.default, rows, [-1] + [1] * behind, like=node) if behind else rows
    if dims[-1] - dims[0] + 1 > len(dims):  # the dims of indices that stand apart come first
        order = [*dims, *(dim for dim in range(val(source).dim()) if dim not in dims)]
        source = rewriter.emit(aten.permute.default, source, order, like=node)
    whole = rewriter.emit(aten.index_put.default, base, indices, source, like=node)
    rewriter.replace(node, whole)
    return whole


_SLICE, _ALL = ("dim", "start", "end", "step"), (0, None, None, 1)


def _is_slice(node: Any, of: Any, *window: Any) -> bool:
    """Whether a node is this slice of a tensor, or of one that is the same slice of the same tensor."""
    if node.target is not aten.slice.Tensor:
        return False
    found = tuple(argument(node, i, n, d) for i, n, d in zip(range(1, 4), _SLICE, _ALL, strict=False))
    same = node.args[0] is of or (of.target is aten.slice.Tensor and _is_slice(node.args[0], of.args[0], *of.args[1:]))
    return same and found == window
