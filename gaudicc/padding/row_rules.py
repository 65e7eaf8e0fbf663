"""Ops that keep rows apart (see `independence`): where the rows of their results are, given where those of operands are."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc import kernels
from gaudicc.nodes import val
from gaudicc.padding import row_views
from gaudicc.padding.independence import Rows, Rule, State, Walk, is_inert
from gaudicc.padding.row_views import plain, rank_of
from gaudicc.padding.rules.pointwise import pointwise
from gaudicc.padding.rules.rule import operand, overload, wrap
from gaudicc.rules.match import argument

aten = torch.ops.aten


def rule_of(op: Any) -> Rule | None:
    """The rule of an op; None: the proof ends there."""
    return _RULES.get(op) or (_broadcast if isinstance(op, torch._ops.OpOverload) and pointwise(op) else None)


def _broadcast(w: Walk, node: fx.Node) -> State:
    """Element by element, dims aligned at the right."""
    if torch.Tag.nondeterministic_seeded in overload(node).tags and not is_inert(node):
        raise w.refuse(node, "a random stream is another one in another call")
    w.refuse_values(node)
    return _aligned(w, node, [arg for arg in node.all_input_nodes if isinstance(val(arg), torch.Tensor)])


def _aligned(w: Walk, node: fx.Node, operands: list[fx.Node]) -> State:
    backs = {state.dim - rank_of(arg) for arg in operands if (state := plain(w, node, arg)) is not None}
    if len(backs) > 1:
        raise w.refuse(node, "rows of one operand meet rows of another")
    result = val(node)[0] if isinstance(val(node), (tuple, list)) else val(node)
    return Rows(result.dim() + backs.pop()) if backs else None


def _along_other_dims(w: Walk, node: fx.Node) -> State:
    """Ops that work along the dims that they name; reduced dims may go."""
    w.refuse_values(node)
    operands = [arg for arg in node.all_input_nodes if isinstance(val(arg), torch.Tensor)]
    state = plain(w, node, operands[0])
    if any(plain(w, node, arg) != state or rank_of(arg) != rank_of(operands[0]) for arg in operands[1:]):
        raise w.refuse(node, "rows of one operand meet rows of another")
    if state is None:
        return None
    rank = rank_of(operands[0])
    given = _named(node, "dim") if _has(node, "dim") else _named(node, "dims")
    every = given is None or given == []
    dims = (
        range(rank) if every else [wrap(int(d), rank) for d in (given if isinstance(given, (list, tuple)) else [given])]
    )
    if state.dim in dims:
        raise w.refuse(node, f"it works along the rows of {w.name}")
    result = val(node)[0] if isinstance(val(node), (tuple, list)) else val(node)
    gone = sum(dim < state.dim for dim in dims) if result.dim() < rank else 0
    return Rows(state.dim - gone)


def _has(node: fx.Node, name: str) -> bool:
    return any(given.name == name for given in overload(node)._schema.arguments)


def _named(node: fx.Node, name: str) -> Any:
    schema = overload(node)._schema.arguments
    index = next(i for i, given in enumerate(schema) if given.name == name)
    return argument(node, index, name, schema[index].default_value)


def _index_select(w: Walk, node: fx.Node) -> State:
    w.refuse_values(node)
    state, dim = plain(w, node, operand(node, 0)), wrap(int(operand(node, 1)), rank_of(operand(node, 0)))
    picked = plain(w, node, operand(node, 2))
    if state is not None and (state.dim == dim or picked is not None):
        raise w.refuse(node, "it picks rows")
    return state if picked is None else Rows(dim)


def _product(w: Walk, node: fx.Node) -> State:
    """Matrix products: batch dims aligned at the right, or the rows of the left or columns of the right factor."""
    w.refuse_values(node)
    *added, left, right = (arg for arg in node.args if isinstance(arg, fx.Node) and isinstance(val(arg), torch.Tensor))
    if min(rank_of(left), rank_of(right)) < 2:
        raise w.refuse(node, "a product with a vector")
    backs = set()
    for factor, contracted in ((left, -1), (right, -2)):
        if (state := plain(w, node, factor)) is not None:
            backs.add(state.dim - rank_of(factor))
            if state.dim - rank_of(factor) == contracted:
                raise w.refuse(node, f"it sums over the rows of {w.name}")
    both = w.of(left) is not None and w.of(right) is not None
    if len(backs) > 1 or (both and max(backs) >= -2):
        raise w.refuse(node, "rows of one operand meet rows of another")
    made = Rows(val(node).dim() + backs.pop()) if backs else None
    for term in added:
        state = plain(w, node, term)
        if state is not None and (made is None or state.dim - rank_of(term) != made.dim - val(node).dim()):
            raise w.refuse(node, "rows of one operand meet rows of another")
    return made


def _linear(w: Walk, node: fx.Node) -> State:
    w.refuse_values(node)
    state = plain(w, node, operand(node, 0))
    if any(w.of(arg) is not None for arg in node.args[1:]):
        raise w.refuse(node, "the weight has rows")
    if state is not None and state.dim == rank_of(operand(node, 0)) - 1:
        raise w.refuse(node, f"it sums over the rows of {w.name}")
    return state


def _first_dim_only(w: Walk, node: fx.Node) -> State:
    w.refuse_values(node, shapes=(3,) if node.target is aten.native_group_norm.default else ())
    states = [plain(w, node, arg) for arg in node.all_input_nodes if isinstance(val(arg), torch.Tensor)]
    if any(state is not None and state.dim != 0 for state in states):
        raise w.refuse(node, f"rows of {w.name} are not in the first dim")
    first = states[0]
    if first is None and any(state is not None for state in states):
        raise w.refuse(node, "the first operand has no rows, another has")
    return first


def _weighted(w: Walk, node: fx.Node) -> State:
    """Ops that treat each element of the first dim alike, by weights: convolutions, norms over groups."""
    if any(w.of(arg) is not None for arg in node.all_input_nodes[1:]):
        raise w.refuse(node, "a weight has rows")
    return _first_dim_only(w, node)


def _normalised(w: Walk, node: fx.Node) -> State:
    """Norms over the last dims."""
    w.refuse_values(node)
    x = operand(node, 0)
    state = plain(w, node, x)
    if any(w.of(arg) is not None for arg in node.all_input_nodes if arg is not x):
        raise w.refuse(node, "a weight has rows")
    shape = operand(node, 1)
    if state is not None and state.dim >= rank_of(x) - (len(shape) if isinstance(shape, (list, tuple)) else 1):
        raise w.refuse(node, f"it works along the rows of {w.name}")
    return state


def _filled_up(w: Walk, node: fx.Node) -> State:
    """constant_pad_nd: other dims become longer."""
    w.refuse_values(node)
    state, widths = plain(w, node, operand(node, 0)), list(operand(node, 1))
    back = -1 if state is None else val(node).dim() - 1 - state.dim
    if state is not None and any(width != 0 for width in widths[2 * back : 2 * back + 2]):
        raise w.refuse(node, f"it works along the rows of {w.name}")
    return state


def _embedding(w: Walk, node: fx.Node) -> State:
    w.refuse_values(node)
    if w.of(operand(node, 0)) is not None:
        raise w.refuse(node, "the table has rows")
    return plain(w, node, operand(node, 1))


def _grouped(w: Walk, node: fx.Node) -> State:
    if w.of(operand(node, 1)) is not None:
        raise w.refuse(node, "the weight has rows")
    states = {plain(w, node, operand(node, 0)), plain(w, node, operand(node, 2))}
    if states - {None, Rows(0)} or len(states) > 1:
        raise w.refuse(node, "rows of one operand meet rows of another")
    return states.pop()


def _with_sinks(w: Walk, node: fx.Node) -> State:
    if w.of(operand(node, 6)) is not None:
        raise w.refuse(node, "the sinks have rows")
    return _first_dim_only(w, node)


_ALONG = (
    aten._softmax.default, aten.softmax.int, aten._log_softmax.default, aten.log_softmax.int, aten.cumsum.default,
    aten.cumprod.default, aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.any.dim,
    aten.any.dims, aten.all.dim, aten.all.dims, aten.prod.dim_int, aten.argmax.default, aten.argmin.default,
    aten.max.dim, aten.min.dim, aten.var.correction, aten.std.correction, aten.var_mean.correction,
    aten.logsumexp.default, aten.linalg_vector_norm.default, aten.topk.default, aten.sort.default, aten.sort.stable,
    aten.argsort.default, aten.argsort.stable, aten.select.int, aten.slice.Tensor, aten.cat.default,
    aten.gather.default, aten.flip.default, aten.roll.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int,
)  # fmt: skip
_RULES: dict[Any, Rule] = {
    **row_views.RULES,
    **dict.fromkeys(_ALONG, _along_other_dims),
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default), _product),
    **dict.fromkeys((aten.addmm.default, aten.baddbmm.default), _product),
    **dict.fromkeys((aten.layer_norm.default, aten.native_layer_norm.default), _normalised),
    **dict.fromkeys((aten.convolution.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _weighted),
    **dict.fromkeys((aten.group_norm.default, aten.native_group_norm.default), _weighted),
    kernels.rms_norm: _normalised, kernels.attention: _first_dim_only,
    kernels.sink_attention: _with_sinks,
    kernels.grouped_linear: _grouped, aten.linear.default: _linear,
    aten.index_select.default: _index_select, aten.embedding.default: _embedding,
    aten.constant_pad_nd.default: _filled_up,
}  # fmt: skip
