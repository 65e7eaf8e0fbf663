"""Capture, after export: one traced trip between the marks of `loop_marks.py` becomes the body of a loop."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from gaudicc.capture.loop_marks import UNTIL_DATA_ENDS, begin_loop, end_loop
from gaudicc.capture.same_graph import graph_text
from gaudicc.errors import DynamicControlFlowError
from gaudicc.fake_values import fake_mode_of
from gaudicc.nodes import call_loop, op_name, val, where
from gaudicc.rewriter import drop_dead_nodes

aten = torch.ops.aten
_READS = (aten.item.default, aten._local_scalar_dense.default)
_CHECKS = (aten._assert_scalar.default,)
_PLAIN_NUMBER = "a number that differs from trip to trip of a loop as a plain number"
_TENSOR_FORMS: dict[Any, Callable[..., Any]] = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.floordiv: aten.floor_divide.default,
    operator.mod: aten.remainder.Tensor,
    operator.neg: aten.neg.default,
}


def outline_loops(root: fx.GraphModule) -> None:
    """Turns the trips of a graph into loops over bodies of their own, which become submodules of `root`."""
    begins: list[fx.Node] = []
    for node in list(root.graph.nodes):
        if node.target is begin_loop:
            begins.append(node)
        elif node.target is end_loop:
            _outline(root, begins.pop(), node)
    drop_dead_nodes(root.graph)


def refusal_of_loops(module: fx.GraphModule) -> DynamicControlFlowError | None:
    """Why a trip cannot be a body, where an op takes a number that differs from trip to trip as a plain one."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    try:
        outline_loops(fx.GraphModule(dict(module.named_children()), graph))
    except DynamicControlFlowError as error:
        return error if _PLAIN_NUMBER in error.what else None
    return None


def _outline(root: fx.GraphModule, begin: fx.Node, end: fx.Node) -> None:
    carried, trips = cast(list[fx.Node], begin.args[0]), begin.args[1]
    given = {int(cast(Any, user.args[1])): user for user in begin.users}
    for item in given.values():
        _drop_copies(item)
    inside = _dependent(root.graph, begin, end)
    results = [*cast(list[fx.Node], end.args[1]), *cast(list[fx.Node], end.args[2])]
    read = dict.fromkeys(arg for node in inside for arg in node.all_input_nodes if arg not in inside)
    read.update(dict.fromkeys(node for node in results if node not in inside))
    shared = [node for node in read if node is not begin and node not in given.values() and node.op != "get_attr"]
    body = _body(root, begin, [given.get(i) for i in range(len(carried) + 1)], shared, inside, results)
    operands = [node.args[0] if _is_number_read_before(node, inside) else node for node in shared]
    name = _name_of(root, body)
    for user in end.users:
        _drop_copies(user)
    with root.graph.inserting_before(end):
        attribute = root.graph.get_attr(name)
        limit = None if trips == UNTIL_DATA_ENDS else trips
        call = root.graph.call_function(call_loop, (attribute, limit, None, len(carried), *carried, *operands))
    call.meta = {**end.meta, "val": tuple(val(end))}
    end.replace_all_uses_with(call)
    root.graph.erase_node(end)
    for node in [*reversed(inside), *given.values(), begin]:
        if node.users:
            raise DynamicControlFlowError(
                "what one trip of a loop over a dynamic size computes is used outside of it",
                where=where(next(iter(node.users))),
                hint="carry it in a variable that has its shape and dtype before the loop, or append it to a list",
            )
        root.graph.erase_node(node)


def _dependent(graph: fx.Graph, begin: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes of a trip: what depends on the number of the trip or on what it was handed."""
    found: dict[fx.Node, None] = {begin: None}
    for node in graph.nodes:
        if node is end:
            break
        if any(arg in found for arg in node.all_input_nodes):
            found[node] = None
    return [node for node in found if node is not begin and node not in begin.users]


def _drop_copies(item: fx.Node) -> None:
    """`copy(old, item)`, with which tracing writes to a tensor around the loop, is the item."""
    for user in list(item.users):
        if user.target is aten.copy.default and user.args[1] is item:
            old, new = val(cast(fx.Node, user.args[0])), val(item)
            if old.dtype == new.dtype and str(old.shape) == str(new.shape):
                user.replace_all_uses_with(item)
                user.graph.erase_node(user)


def _body(
    root: fx.GraphModule,
    begin: fx.Node,
    given: list[fx.Node | None],
    shared: list[fx.Node],
    inside: list[fx.Node],
    results: list[fx.Node],
) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for i, (item, value) in enumerate(zip(given, val(begin), strict=True)):
        placeholder = graph.placeholder("trip" if not i else f"carried_{i - 1}")
        placeholder.meta = {"val": value}
        if item is not None:
            values[item] = placeholder
    numbers: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(shared):
        read = cast(fx.Node, node.args[0]) if _is_number_read_before(node, inside) else node
        placeholder = graph.placeholder(f"operand_{i}")
        placeholder.meta = {"val": val(read)}
        (values if read is node else numbers)[node] = placeholder
    children: dict[str, Any] = {}
    for node in inside:
        for attribute in node.all_input_nodes:
            if attribute.op == "get_attr" and attribute not in values:
                children[str(attribute.target)] = getattr(root, str(attribute.target))
                values[attribute] = graph.get_attr(str(attribute.target))
        if not _number(graph, node, values, numbers):
            values[node] = graph.node_copy(node, lambda arg: values[arg])
    graph.output(tuple(values[node] for node in results))
    body = fx.GraphModule(children, graph)
    drop_dead_nodes(graph)
    body.recompile()
    return body


def _is_number_read_before(node: fx.Node, inside: list[fx.Node]) -> bool:
    """Whether a node is an integer that was read from a tensor, and a trip but computes with it: then it takes the tensor."""
    if node.target not in _READS or not isinstance(val(node), torch.SymInt):
        return False
    source, users = val(cast(fx.Node, node.args[0])), [user for user in node.users if user in inside]
    computes = all(user.target in _TENSOR_FORMS or user.target is aten.scalar_tensor.default for user in users)
    return computes and source.dtype is torch.int64 and source.dim() == 0


def _number(graph: fx.Graph, node: fx.Node, values: dict[fx.Node, fx.Node], numbers: dict[fx.Node, fx.Node]) -> bool:
    """Takes in a node that has to do with the number of the trip as a plain number; it stays a tensor of no dims."""
    if node.target in _READS:
        numbers[node] = values[cast(fx.Node, node.args[0])]
        return True
    if not any(arg in numbers for arg in node.all_input_nodes):
        return False
    if node.target in _CHECKS and str(node.args[-1]).startswith("Runtime assertion failed"):
        return True  # torch's own: the number of a trip is in range
    if isinstance(node.meta.get("val"), torch.SymBool):
        numbers[node] = numbers[next(arg for arg in node.all_input_nodes if arg in numbers)]  # read by such checks only
        return True
    if node.target is aten.scalar_tensor.default:
        values[node] = numbers[cast(fx.Node, node.args[0])]
        return True
    form = _TENSOR_FORMS.get(node.target)
    if form is None:
        raise DynamicControlFlowError(
            f"{op_name(node)} takes {_PLAIN_NUMBER}",
            where=where(node),
            hint="index tensors with it, or compute with it and tensors",
        )
    numbers[node] = _arithmetic(graph, form, node, values, numbers)
    return True


def _arithmetic(
    graph: fx.Graph, form: Any, node: fx.Node, values: dict[fx.Node, fx.Node], numbers: dict[fx.Node, fx.Node]
) -> fx.Node:
    mode = fake_mode_of(node.graph)

    def tensor(arg: Any) -> fx.Node:
        if arg in numbers:
            return numbers[arg]
        made = graph.call_function(
            aten.full.default, ([], values[arg] if isinstance(arg, fx.Node) else arg), {"dtype": torch.int64}
        )
        with mode:
            made.meta = {**node.meta, "val": torch.empty((), dtype=torch.int64)}
        return made

    result = graph.call_function(form, tuple(map(tensor, node.args)))
    with mode:
        result.meta = {**node.meta, "val": torch.empty((), dtype=torch.int64)}
    return result


def _name_of(root: fx.GraphModule, body: fx.GraphModule) -> str:
    """The name of a body in the root; an equal one that is there already is shared."""
    children = dict(root.named_children())
    for name, other in children.items():
        if isinstance(other, fx.GraphModule) and _text(other) == _text(body):
            return name
    name = next(n for n in ("loop", *(f"loop_{i}" for i in range(2, 10_000))) if n not in children)
    root.add_submodule(name, body)
    return name


def _text(body: fx.GraphModule) -> tuple[list[str], list[str]]:
    """What a body computes, and how its operands are laid out."""
    operands = (val(node) for node in body.graph.find_nodes(op="placeholder"))
    return graph_text(body), [str(value.stride()) for value in operands if isinstance(value, torch.Tensor)]
