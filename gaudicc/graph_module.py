"""Graphs as modules whose Python code is written when it is first asked for.

torch.fx writes the code of a GraphModule whenever its graph is set. A compile copies every graph for every pass and
runs few of them: writing code was a third of the time that a bucket took (measured).
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.graph import PythonCode


class LazyGraphModule(fx.GraphModule):
    """A GraphModule like any other, but `recompile` only says that the code is out of date."""

    def recompile(self) -> PythonCode:  # type: ignore[return]  # nobody reads the code of a graph in the making
        """Lets the next call, or the next look at `code`, write the code anew."""
        kind = type(self)
        kind.forward = LazyGraphModule.forward  # type: ignore[method-assign]  # every instance has a class of its own

    def forward(self, *args: Any) -> Any:
        """Writes the code and runs it."""
        self._write()
        return type(self).forward(self, *args)

    @property
    def code(self) -> str:
        """The graph as Python."""
        self._write()
        return super().code

    def __str__(self) -> str:
        self._write()
        return super().__str__()

    def _write(self) -> None:
        if type(self).forward is LazyGraphModule.forward:
            super().recompile()


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with nodes of its own, bodies included; fake values and all that is immutable are shared."""
    return _copy(module, {})


def copy_nodes(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with nodes of its own that calls the very same bodies."""
    return _with(module, dict(module.named_children()))


def _copy(module: fx.GraphModule, done: dict[int, fx.GraphModule]) -> fx.GraphModule:
    if id(module) not in done:
        children = {
            name: _copy(child, done) if isinstance(child, fx.GraphModule) else child
            for name, child in module.named_children()
        }
        done[id(module)] = _with(module, children)
    return done[id(module)]


def _with(module: fx.GraphModule, children: dict[str, Any]) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, values)
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    graph.output(fx.map_arg(output.args[0], values.__getitem__)).meta.update(output.meta)
    assert len(values) == len(module.graph.nodes) - 1, "a graph has exactly one output node"
    return LazyGraphModule(children, graph, module.__class__.__name__)
