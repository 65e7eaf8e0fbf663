"""Bundle: one graph <-> JSON. Nodes in order, each with its call, its fake value and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from gaudicc.bundle import literals, values
from gaudicc.bundle.allowed import ARITY, REGION_CALLS, name_of, resolve
from gaudicc.bundle.item import Item
from gaudicc.bundle.sizes import SizeReader, SizeWriter
from gaudicc.nodes import CALLS, call_loop, module_of, op_name, operands_of, outputs_of, source_of
from gaudicc.targets.model import Engine

_SOURCE = re.compile(r'[^"\r\n]{1,1024}:\d{1,9}')
_REMARKS = ("value", "source", "module", "engine", "subgraph", "branch")
_ENGINES = {engine.value: engine for engine in Engine}


def encode(module: fx.GraphModule, bodies: Mapping[int, int], sizes: SizeWriter) -> dict[str, object]:
    """A graph as JSON.

    Args:
        module: the graph.
        bodies: id of a region body -> its number in the file.
        sizes: collects symbols.

    Raises:
        TypeError: the graph holds what no bundle can hold; the message names the node.
    """
    return {
        "bodies": {
            name: bodies[id(child)] for name, child in module.named_children() if isinstance(child, fx.GraphModule)
        },
        "nodes": [_encode_node(node, sizes) for node in module.graph.nodes if node.op != "output"],
        "outputs": literals.encode(tuple(outputs_of(module.graph))),
    }


def _encode_node(node: fx.Node, sizes: SizeWriter) -> dict[str, object]:
    try:
        return {"name": node.name, **_encode_call(node), **_encode_remarks(node, sizes)}
    except TypeError as problem:
        raise TypeError(f"{op_name(node)} ({source_of(node) or node.name}): {problem}") from problem


def _encode_call(node: fx.Node) -> dict[str, object]:
    if node.op == "placeholder":
        return {"input": str(node.target)}
    if node.op == "get_attr":
        return {"body": str(node.target)}
    name = name_of(node.target) if node.op == "call_function" else None
    if name is None:
        raise TypeError(f"{node.op} of {node.target} cannot be saved")
    call: dict[str, object] = {"call": name, "args": [literals.encode(arg) for arg in node.args]}
    if node.kwargs:
        call["kwargs"] = {key: literals.encode(arg) for key, arg in node.kwargs.items()}
    return call


def _encode_remarks(node: fx.Node, sizes: SizeWriter) -> dict[str, object]:
    remarks: dict[str, object] = {}
    if "val" in node.meta:
        remarks["value"] = values.encode(node.meta["val"], sizes)
    if source := source_of(node):
        remarks["source"] = source
    if path := module_of(node):
        remarks["module"] = path
    if isinstance(engine := node.meta.get("engine"), Engine):
        remarks["engine"] = engine.value
    if (number := node.meta.get("subgraph")) is not None:
        remarks["subgraph"] = number
    if (rank := node.meta.get("branch")) is not None:
        remarks["branch"] = rank
    return remarks


def decode(item: Item, bodies: Sequence[fx.GraphModule], sizes: SizeReader) -> fx.GraphModule:
    """A graph from JSON.

    Args:
        item: the JSON.
        bodies: the graphs that came before it, which alone it may call.
        sizes: rebuilds sizes and fake values.

    Raises:
        BundleError: the JSON is no graph.
    """
    fields = item.fields(("bodies", "nodes", "outputs"))
    module = fx.GraphModule({}, fx.Graph())
    for name, number in fields["bodies"].entries().items():
        attribute = Item(name, number.place).identifier()
        if hasattr(module, attribute):
            number.fail(f"a body cannot be named {name!r}")
        module.add_module(attribute, bodies[number.index(len(bodies), "body")])
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in fields["nodes"].items():
        _decode_node(entry, module, graph, nodes, sizes)
    outputs = literals.decode(fields["outputs"], nodes)
    if not isinstance(outputs, tuple) or any(_is_body(output) for output in outputs):
        fields["outputs"].fail("the outputs of a graph are a tuple of values")
    graph.output(outputs)
    try:
        module.graph = graph
    except (SyntaxError, RuntimeError, ValueError) as problem:  # names that are plain but collide, such as `self`
        item.fail(f"no code can be made of this graph: {problem}")
    return module


def _decode_node(
    item: Item, module: fx.GraphModule, graph: fx.Graph, nodes: dict[str, fx.Node], sizes: SizeReader
) -> None:
    fields = item.fields(("name",), ("input", "body", "call", "args", "kwargs", *_REMARKS))
    name = fields["name"].identifier()
    if name in nodes:
        item.fail(f"the name {name!r} is taken by another node")
    if sum(kind in fields for kind in ("input", "body", "call")) != 1:
        item.fail("a node is an input, a body or a call")
    if "call" in fields:
        node = _decode_call(fields, graph, nodes, name)
    elif {"args", "kwargs"} & fields.keys():
        item.fail("only calls have arguments")
    elif "body" in fields:
        attribute = fields["body"].identifier()
        if attribute not in dict(module.named_children()):
            fields["body"].fail(f"the graph has no body {attribute!r}")
        node = graph.create_node("get_attr", attribute, name=name)
    else:
        if any(other.op != "placeholder" for other in nodes.values()):
            item.fail("inputs come before all other nodes")
        node = graph.create_node("placeholder", fields["input"].identifier(), name=name)
    node.name = name  # fx renames what shadows a builtin, such as `input`; capture keeps those names, and so do we
    _decode_remarks(fields, node, sizes)
    if node.target in CALLS:
        _check_region_call(item, node, module)
    nodes[name] = node


def _decode_call(fields: Mapping[str, Item], graph: fx.Graph, nodes: Mapping[str, fx.Node], name: str) -> fx.Node:
    target = resolve(fields["call"])
    args = tuple(literals.decode(arg, nodes) for arg in fields["args"].items()) if "args" in fields else ()
    kwargs = {}
    for key, arg in fields["kwargs"].entries().items() if "kwargs" in fields else ():
        kwargs[Item(key, arg.place).identifier()] = literals.decode(arg, nodes)
    takes_bodies = fields["call"].text() in REGION_CALLS or fields["call"].text().startswith("higher_order.")
    if not takes_bodies and any(_is_body(arg) for arg in (*args, *kwargs.values())):
        fields["call"].fail("a body can only be called")
    _check_signature(fields["call"], target, args, kwargs)
    return graph.create_node("call_function", target, args, kwargs, name=name)


def _check_signature(item: Item, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if (name := item.text()) in ARITY and (len(args) != ARITY[name] or kwargs):
        item.fail(f"{name} takes {ARITY[name]} arguments")
    if not isinstance(target, torch._ops.OpOverload):
        return
    schema = target._schema
    positional = [arg for arg in schema.arguments if not arg.kwarg_only]
    known = {arg.name for arg in schema.arguments[len(args) :]}
    needed = {arg.name for arg in schema.arguments[len(args) :] if not arg.has_default_value()}
    if len(args) > len(positional) or not kwargs.keys() <= known or not needed <= kwargs.keys():
        item.fail(f"the arguments do not fit {schema}")


def _check_region_call(item: Item, node: fx.Node, module: fx.GraphModule) -> None:
    if (
        len(node.args) < (4 if node.target is call_loop else 1)
        or node.kwargs
        or not _is_body(node.args[0])
        or any(_is_body(arg) for arg in node.args[1:])
    ):
        item.fail("a region call has a body and then operands")
    body = getattr(module, str(node.args[0].target))  # type: ignore[union-attr]
    inputs = sum(other.op == "placeholder" for other in body.graph.nodes)
    given = len(operands_of(node)) + (node.target is call_loop)  # the number of the trip is no operand
    if given != inputs:
        item.fail(f"the body has {inputs} inputs, the call gives {given}")
    if node.target is call_loop and not _is_loop(node, len(outputs_of(body.graph))):
        item.fail("a loop has a limit, a number of trips or None, and a number of carried operands")
    value = node.meta.get("val")
    if value is not None and (not isinstance(value, tuple) or len(value) != len(outputs_of(body.graph))):
        item.fail(f"the body has {len(outputs_of(body.graph))} outputs, and the call another number of values")


def _is_loop(node: fx.Node, results: int) -> bool:
    limit, trips, carried = node.args[1:4]
    plain = isinstance(carried, int) and 0 <= carried <= min(results, len(operands_of(node)))
    if limit is None:  # data ends it
        return plain and 0 < results == carried and isinstance(trips, (int, type(None)))
    return plain and isinstance(limit, (int, fx.Node)) and (trips is None or isinstance(trips, fx.Node))


def _is_body(arg: object) -> bool:
    return isinstance(arg, fx.Node) and arg.op == "get_attr"


def _decode_remarks(fields: Mapping[str, Item], node: fx.Node, sizes: SizeReader) -> None:
    if "value" in fields:
        node.meta["val"] = values.decode(fields["value"], sizes)
    if "source" in fields:
        source = fields["source"].text()
        if not _SOURCE.fullmatch(source):
            fields["source"].fail(f"{source[:80]!r} is no file:line")
        file, _, line = source.rpartition(":")
        node.meta["stack_trace"] = f'  File "{file}", line {line}'
    if "module" in fields:
        path = fields["module"].text()
        node.meta["nn_module_stack"] = {path: (path, "")}
    if "engine" in fields:
        node.meta["engine"] = _ENGINES[fields["engine"].choice(_ENGINES, "engine")]
    if "subgraph" in fields:
        node.meta["subgraph"] = fields["subgraph"].integer()
    if "branch" in fields:
        node.meta["branch"] = fields["branch"].integer()
