"""Views, factories and picks that keep rows apart (see `independence`): where the rows are afterwards."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.independence import Rows, Rule, State, Walk
from gaudicc.padding.rules.rule import operand, wrap
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument

aten = torch.ops.aten


def plain(w: Walk, node: fx.Node, value: Any) -> State:
    """The state of an operand whose values are read: not one of row numbers."""
    state = w.of(value)
    if isinstance(state, Rows) and state.numbers:
        raise w.refuse(node, "the numbers of rows are used as values")
    return state


def rank_of(value: Any) -> int:
    """Number of dims of an operand."""
    return int(val(value).dim())


def _view(w: Walk, node: fx.Node) -> State:
    """Row-major order is kept: the rows are in the dim that begins where theirs began."""
    x: Any = operand(node, 0)
    if (state := w.of(x)) is None:
        return None
    before = sympy.Mul(*map(expression, val(x).shape[: state.dim]))
    shape = [expression(size) for size in val(node).shape]
    for dim, size in enumerate(shape):
        if w.counts(size) and sympy.expand(sympy.Mul(*shape[:dim]) - before) == 0:
            return Rows(dim, state.numbers)
    raise w.refuse(node, f"rows of {w.name} are merged behind another dim")


def _permute(w: Walk, node: fx.Node) -> State:
    state, rank = w.of(operand(node, 0)), val(node).dim()
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [wrap(int(dim), rank) for dim in operand(node, 1)]
    else:
        given: Any = (0, 1) if node.target is aten.t.default else node.args[1:3]
        a, b = (wrap(int(dim), rank) for dim in given)
        order[a], order[b] = order[b], order[a]
    return None if state is None else Rows(order.index(state.dim), state.numbers)


def _unsqueeze(w: Walk, node: fx.Node) -> State:
    state, at = w.of(operand(node, 0)), wrap(int(operand(node, 1)), val(node).dim())
    return None if state is None else Rows(state.dim + (state.dim >= at), state.numbers)


def _squeeze(w: Walk, node: fx.Node) -> State:
    state, rank = w.of(operand(node, 0)), rank_of(operand(node, 0))
    given = argument(node, 1, "dim")
    chosen = {wrap(int(dim), rank) for dim in (given if isinstance(given, (list, tuple)) else [given])}
    source = val(operand(node, 0)).shape
    gone = [dim for dim in chosen if not isinstance(source[dim], torch.SymInt) and source[dim] == 1]
    return None if state is None else Rows(state.dim - sum(dim < state.dim for dim in gone), state.numbers)


def _expand(w: Walk, node: fx.Node) -> State:
    """Copies are the same for all rows, also as many as there are rows."""
    state = w.of(operand(node, 0))
    if state is None:
        return w.by_shape(node)
    return Rows(state.dim + val(node).dim() - rank_of(operand(node, 0)), state.numbers)


def _constant(w: Walk, node: fx.Node) -> State:
    """Factories of one value; only the shape may count rows."""
    shape = _SHAPE_AT[node.target]
    w.refuse_values(node, shapes=(shape,), names=("size",))
    return w.by_shape(node)


def _constant_like(w: Walk, node: fx.Node) -> State:
    w.refuse_values(node)
    state = w.of(operand(node, 0))
    return None if state is None else Rows(state.dim)


def _arange(w: Walk, node: fx.Node) -> State:
    if not w.dims_with_rows(val(node)):
        w.refuse_values(node)
        return None
    start = 0 if node.target is aten.arange.default else operand(node, 0)
    step = argument(node, 2, "step", 1) if node.target is aten.arange.start_step else 1
    if start != 0 or step != 1 or not w.is_number_of_rows(val(node).shape[0]):
        raise w.refuse(node, "it counts the rows")
    return Rows(0, numbers=True)


def _index(w: Walk, node: fx.Node) -> State:
    """Rows are picked by their own number only; other dims by what is the same for all, or by a row's own."""
    x: Any = operand(node, 0)
    indices: Any = operand(node, 1)
    state = plain(w, node, x)
    chosen = [i for i, index in enumerate(indices) if index is not None]
    if any(val(indices[i]).dtype in (torch.bool, torch.uint8) for i in chosen):
        raise w.refuse(node, "a mask picks as many as it is true")
    backs = {made.dim - rank_of(indices[i]) for i in chosen if (made := w.of(indices[i])) is not None}
    own = state is not None and state.dim in chosen
    numbered = own and getattr(w.of(indices[state.dim]), "numbers", False)
    if own and not (numbered and w.is_number_of_rows(val(x).shape[state.dim])):
        raise w.refuse(node, "it picks rows")
    if any(getattr(w.of(indices[i]), "numbers", False) for i in chosen if not own or i != state.dim):
        raise w.refuse(node, "the numbers of rows are used as values")
    if len(backs) > 1 or (backs and state is not None and not own):
        raise w.refuse(node, "rows of one operand meet rows of another")
    rank = max(rank_of(indices[i]) for i in chosen)
    together = chosen == list(range(chosen[0], chosen[-1] + 1))
    front = chosen[0] if together else 0
    if backs:
        return Rows(front + rank + backs.pop())
    if state is None:
        return None
    before = sum(dim < state.dim for dim in chosen)
    kept = state.dim - before
    return Rows(kept if together and state.dim < front else kept + rank)


_SHAPE_AT: dict[Any, int] = {
    aten.zeros.default: 0, aten.ones.default: 0, aten.full.default: 0, aten.scalar_tensor.default: -1,
    aten.new_zeros.default: 1, aten.new_ones.default: 1, aten.new_full.default: 1,
}  # fmt: skip
RULES: dict[Any, Rule] = {
    **dict.fromkeys(_SHAPE_AT, _constant),
    **dict.fromkeys((aten.zeros_like.default, aten.ones_like.default, aten.full_like.default), _constant_like),
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step), _arange),
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), _view),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _permute),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), _squeeze),
    aten.unsqueeze.default: _unsqueeze, aten.expand.default: _expand, aten.index.Tensor: _index,
}  # fmt: skip
