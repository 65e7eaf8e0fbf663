"""What a pass changed: graphs that are another computation than before, and the nodes in them that are.

Checks look only at these. Passes get a copy whose nodes share their fake values with the original, so that a node that was
left alone is recognised by name, call and the very values it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx

from gaudicc.program import Program
from gaudicc.rewriter import shape_text, strides_text

_SHOWN = ("engine", "branch", "subgraph", "band", "stack_trace", "nn_module_stack")


def alike(old: fx.GraphModule, new: fx.GraphModule) -> bool:
    """Whether two graphs read the same: names, calls, types, engines and source lines."""
    if old is new:
        return True
    if len(old.graph.nodes) != len(new.graph.nodes):
        return False
    return all(_alike(*pair) for pair in zip(old.graph.nodes, new.graph.nodes, strict=True))


def _alike(old: fx.Node, new: fx.Node) -> bool:
    if not _same_call(old, new):
        return False
    a, b = old.meta.get("val"), new.meta.get("val")
    same = a is b or (shape_text(a), strides_text(a)) == (shape_text(b), strides_text(b))
    return same and all(old.meta.get(key) == new.meta.get(key) for key in _SHOWN)


def changed_nodes(old: fx.GraphModule | None, new: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of a graph that were not there before, or make or read another value than before.

    Args:
        old: the graph before; None: there was none.
        new: the graph now.
    """
    known = {} if old is None else {node.name: node for node in old.graph.nodes}
    fresh: set[fx.Node] = set()
    for node in new.graph.nodes:
        before = known.get(node.name)
        kept = before is not None and before.meta.get("val") is node.meta.get("val") and _same_call(before, node)
        if not kept or not fresh.isdisjoint(node.all_input_nodes):
            yield node
        if not kept:
            fresh.add(node)


def _same_call(old: fx.Node, new: fx.Node) -> bool:
    same = old.name == new.name and old.op == new.op and old.target == new.target
    return same and _literal((old.args, old.kwargs)) == _literal((new.args, new.kwargs))


def _literal(value: Any) -> Any:
    """An argument with nodes by name; the type keeps `1`, `1.0` and `True` apart."""
    if isinstance(value, fx.Node):
        return fx.Node, value.name
    if isinstance(value, (tuple, list)):
        return tuple(map(_literal, value))
    if isinstance(value, dict):
        return tuple((key, _literal(item)) for key, item in value.items())
    if isinstance(value, slice):
        return slice, _literal((value.start, value.stop, value.step))
    return type(value), str(value)


def touched_graphs(before: Program, after: Program) -> list[fx.GraphModule]:
    """The graphs of a program that read otherwise than before."""
    old = dict(before.graphs())
    return [module for name, module in after.graphs() if name not in old or not alike(old[name], module)]


def called_otherwise(before: Program, after: Program) -> bool:
    """Whether a program takes or gives something else than before."""
    return (before.inputs, before.outputs) != (after.inputs, after.outputs)


def share(before: Program, after: Program, *, modified: bool) -> tuple[Program, list[fx.GraphModule]]:
    """Lets the program after a pass share every graph that reads the same as before; returns it with the graphs that differ.

    Args:
        before: what the pass was given a copy of.
        after: what it returned.
        modified: whether it says that it changed a graph.
    """
    changed_inputs = called_otherwise(before, after)
    if not modified and not changed_inputs:
        return replace(after, root=before.root), []
    touched = touched_graphs(before, after)
    if not touched and not changed_inputs:
        return replace(after, root=before.root), []
    kept, old = {id(module) for module in touched}, dict(before.graphs())
    for name, module in after.bodies.items():
        if id(module) not in kept and not list(module.named_children()):
            _swap(after.root, name, old[name])
    return after, touched


def _swap(module: fx.GraphModule, name: str, body: fx.GraphModule) -> None:
    for child_name, child in list(module.named_children()):
        if child_name == name:
            setattr(module, name, body)
        elif isinstance(child, fx.GraphModule):
            _swap(child, name, body)
