"""Values that are several in a row: which dims views keep, and readers of some rows that wait for no more than these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from gaudicc.fake_values import fake_mode_of, fakes
from gaudicc.nodes import CALLS, val
from gaudicc.rewriter import Rewriter, strides_text
from gaudicc.rules.match import argument

aten = torch.ops.aten
# Marks what stands for something that lay otherwise in memory, until its readers are typed anew.
_MOVED = "moved"


def _view_dim(node: fx.Node, dim: int, found: Mapping[fx.Node, int]) -> int | None:
    """Leading sizes, that of the cut among them, stay what they are."""
    old, new = val(node.args[0]).shape, val(node).shape  # type: ignore[arg-type]
    same: bool = old[: dim + 1] == new[: dim + 1]
    return dim if same else None


def transposed_dim(node: fx.Node, dim: int, found: Mapping[fx.Node, int]) -> int | None:
    """Where a transpose puts a dim; the same way back."""
    dims: list[int] = [int(each) % val(node).dim() for each in node.args[1:3]]  # type: ignore[arg-type]
    one, other = dims
    return {one: other, other: one}.get(dim, dim)


def _along_dim(node: fx.Node, dim: int, found: Mapping[fx.Node, int]) -> int | None:
    """What takes or joins along another dim; of several operands all are cut alike."""
    return dim if _along(node) != dim and {found.get(arg) for arg in node.all_input_nodes} == {dim} else None


def _along(node: fx.Node) -> int:
    args: Any = node.args
    rank: int = val(node).dim()
    return int(args[1] if len(args) > 1 else 0) % rank


MOVES: dict[Any, Callable[[fx.Node, int, Mapping[fx.Node, int]], int | None]] = {
    aten.view.default: _view_dim, aten.transpose.int: transposed_dim,
    aten.slice.Tensor: _along_dim, aten.cat.default: _along_dim,
}  # fmt: skip
"""Op -> (call, dim of its operands, dims that are cut) -> the same dim of its result; None if it does not stay one."""


def read_parts(rewriter: Rewriter) -> None:
    """Lets what takes some rows of a concatenation read the parts that hold them, and wait for no others.

        %3 = aten.cat([%1, %2], 1); %4 = aten.slice(aten.transpose(%3, 1, 2), 2, 0, 512)
        ->
        %4 = aten.transpose(%1, 1, 2)

    Strides change with it, so that readers are typed anew.
    """
    known: dict[Any, fx.Node] = {}
    for node in rewriter.graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        source: Any = node.args[0]
        dim = argument(node, 1, "dim", 0) % val(source).dim()
        rows = range(val(source).shape[dim])[argument(node, 2, "start") : argument(node, 3, "end")]
        if argument(node, 4, "step", 1) == 1 and _is_joined(source, dim) and not _handed_out(node):
            replace_view(rewriter, node, _rows_of(rewriter, known, source, dim, (rows.start, rows.stop), node))
    retype(rewriter)


def retype(rewriter: Rewriter) -> None:
    """Gives all that reads what lies otherwise than before the strides that it has by now."""
    changed = {node for node in rewriter.graph.nodes if node.meta.pop(_MOVED, False)}
    with fake_mode_of(rewriter.graph), torch.no_grad(), enable_python_dispatcher():
        for node in rewriter.graph.nodes:
            if changed.isdisjoint(node.all_input_nodes):
                continue
            if node.op == "output" or node.target in CALLS:
                rewriter.restrided = True  # the other side has to be typed anew, too
                continue
            made = rewriter.results.of(node.target, fakes(node.args), fakes(node.kwargs))
            before, node.meta["val"] = node.meta["val"], made
            if not strides_text(before) or strides_text(before) != strides_text(node.meta["val"]):
                changed.add(node)


def replace_view(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Lets readers of `old` read `new`, whose dims lie in the same order but without the gaps that `old` may have.

    What is handed out of the graph keeps its layout, which the other side knows.
    """
    if _handed_out(old):
        rewriter.replace(old, new)
        return
    new.meta[_MOVED] = val(old).stride() != val(new).stride() or new.meta.get(_MOVED, False)
    rewriter.modified = True
    old.replace_all_uses_with(new)
    rewriter.graph.erase_node(old)


def _handed_out(node: fx.Node) -> bool:
    return any(user.target in (*CALLS, "output") for user in node.users)


def _is_joined(node: fx.Node, dim: int) -> bool:
    """Whether a value is several in a row along a dim, or a view of such a one."""
    if node.target is aten.cat.default and _along(node) == dim:
        return True
    source = _source_dim(node, dim)
    return source is not None and any(_is_joined(part, source) for part in node.all_input_nodes)


def split_products(rewriter: Rewriter) -> None:
    """One product per piece that is taken of its result: what waits for the first piece runs under the others.

        %3 = aten.linear(%x, %w); %4 = aten.slice(%3, 2, 0, 3072); %5 = aten.slice(%3, 2, 3072, 6144)
        ->
        %6 = aten.slice(%w, 0, 0, 3072); %4 = aten.linear(%x, %6); ...

    Strides change with it: `retype` the graph.
    """
    for node in list(fused_products(rewriter.graph)):
        for piece, (low, high) in _pieces(node):
            x, *weights = (arg for arg in node.args if arg is not None)
            parts = [rewriter.emit(aten.slice.Tensor, weight, 0, low, high, like=node) for weight in weights]
            replace_view(rewriter, piece, rewriter.emit(node.target, x, *parts, like=node))
        for user in list(node.users):
            rewriter.graph.erase_node(user)
        rewriter.graph.erase_node(node)


def fused_products(graph: fx.Graph) -> Iterator[fx.Node]:
    """Products of which nothing is read but pieces that lie beside each other."""
    for node in graph.find_nodes(op="call_function", target=aten.linear.default):
        known = sorted({columns for _, columns in _pieces(node)})
        if len(known) > 1 and all(one[1] <= other[0] for one, other in pairwise(known)):
            yield node


def _pieces(node: fx.Node) -> list[tuple[fx.Node, tuple[int, int]]]:
    """(What is taken of a value's last dim, first and last column) for all that reads it; none if it is read otherwise."""
    found = list[tuple[fx.Node, tuple[int, int]]]()
    last = val(node).dim() - 1
    for user in node.users:
        args: Any = user.args
        position = _DIM_OF_PIECES.get(user.target, len(args))
        if position >= len(args) or args[position] not in (-1, last):
            return []
        if user.target is aten.slice.Tensor:
            columns = range(val(node).shape[-1])[argument(user, 2, "start") : argument(user, 3, "end")]
            if argument(user, 4, "step", 1) != 1 or not columns:
                return []
            found.append((user, (columns.start, columns.stop)))
            continue
        sizes = [piece.shape[-1] for piece in user.meta["val"]]
        ends = list(accumulate(sizes))
        for item in user.users:
            index: Any = item.args[1]
            found.append((item, (ends[index] - sizes[index], ends[index])))
    return found


_DIM_OF_PIECES: dict[Any, int] = {aten.slice.Tensor: 1, aten.split.Tensor: 2, aten.split_with_sizes.default: 2}
"""Op that takes pieces of a value -> the position of the dim among its arguments."""


def _rows_of(
    rewriter: Rewriter, known: dict[Any, fx.Node], node: fx.Node, dim: int, rows: tuple[int, int], like: fx.Node
) -> fx.Node:
    """Some rows of a value, made of the parts that hold them where it is made of parts."""
    if rows == (0, val(node).shape[dim]):
        return node
    if (node, dim, rows) not in known:
        part_of, target = partial(_rows_of, rewriter, known, like=like), node.target
        args: Any
        if not _is_joined(node, dim):
            target, args = aten.slice.Tensor, (node, dim, *rows)
        elif target is aten.cat.default and _along(node) == dim:
            args = (_parts_with(node, dim, rows, part_of), dim)
        else:
            args = fx.map_arg(node.args, partial(part_of, dim=_source_dim(node, dim), rows=rows))
            if target is aten.view.default:
                args = (args[0], [rows[1] - rows[0] if i == dim else n for i, n in enumerate(args[1])])
        # A concatenation lays out what it joins; one part that lies so already needs none.
        alone = target is aten.cat.default and len(args[0]) == 1 and val(args[0][0]).is_contiguous()
        known[node, dim, rows] = args[0][0] if alone else rewriter.emit(target, *args, like=like)
    return known[node, dim, rows]


def _parts_with(node: fx.Node, dim: int, rows: tuple[int, int], part_of: Callable[..., fx.Node]) -> list[fx.Node]:
    """The operands of a concatenation that hold some rows, or what they hold of them."""
    found, first = list[fx.Node](), 0
    for part in node.args[0]:  # type: ignore[union-attr]
        size = val(part).shape[dim]  # type: ignore[arg-type]
        inside = (max(0, rows[0] - first), min(size, rows[1] - first))
        if inside[0] < inside[1]:
            found.append(part_of(part, dim=dim, rows=inside))
        first += size
    return found


def _source_dim(node: fx.Node, dim: int) -> int | None:
    """The dim of its operands that a dim of a view, or of a concatenation along another, is."""
    if node.target is aten.permute.default:
        args: Any = node.args
        source: int = args[1][dim] % val(node).dim()
        return source
    return MOVES[node.target](node, dim, dict.fromkeys(node.all_input_nodes, dim)) if node.target in MOVES else None
