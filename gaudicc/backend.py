"""`torch.compile(model, backend="gaudicc")`: Dynamo's graphs through the same compiler.

Found by entry point, so users need no import. Dynamo hands over a graph whose weights are inputs; they are bound once, and
each set of shapes met is compiled when it is first called, with the real arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.traceback import preserve_node_meta

from gaudicc.compiled import CompiledModel
from gaudicc.compiler import compile
from gaudicc.errors import InputError

_OPTIONS = ("target", "device", "verify", "on_unsupported", "branches", "passes")


def gaudicc(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend as Dynamo calls it.

    Args:
        graph: Dynamo's graph.
        example_inputs: its inputs, fake where they are not weights; not used, since the first call brings real ones.
        options: `target`, `device`, `verify`, `on_unsupported`, `branches`, `passes`: as for `gaudicc.compile`.
        mode: accepted and ignored: transformers passes `reduce-overhead`, which is what a recorded graph is anyway.

    Returns:
        A function of the graph's inputs.

    Raises:
        InputError: an option is unknown.
    """
    del example_inputs, mode
    if unknown := sorted(set(options or {}) - set(_OPTIONS)):
        raise InputError(f"unknown option {unknown[0]!r}", hint=f"the options are {', '.join(_OPTIONS)}")
    call: Callable[..., Any] = torch.compiler.disable(_Dispatcher(graph, dict(options or {})))
    return call


class _Dispatcher:
    """Compiles a Dynamo graph once per set of input types, and keeps each for its shape."""

    def __init__(self, graph: fx.GraphModule, options: dict[str, Any]) -> None:
        self._graph = graph
        self._numbers = _take_numbers(graph)
        self._options = options
        self._compiled: dict[Any, tuple[tuple[Any, ...], CompiledModel]] = {}

    def __call__(self, *inputs: Any) -> Any:
        inputs = tuple(value.item() if i in self._numbers else value for i, value in enumerate(inputs))
        key = tuple(_key(value) for value in inputs)
        weights = tuple(value for value in inputs if _is_weight(value))
        known = self._compiled.get(key)
        if known is None or any(a is not b for a, b in zip(known[0], weights, strict=True)):
            known = self._compiled[key] = (weights, self._compile(inputs))
        with torch.no_grad():
            return known[1](*[value for value in inputs if not _is_weight(value)])

    def _compile(self, inputs: Sequence[Any]) -> CompiledModel:
        module = _BoundGraph(self._graph, inputs)
        rest = tuple(value for value in inputs if not _is_weight(value))
        # The caller goes on reading its static buffers (a cache) itself, so their state is written through.
        return compile(module, rest, **self._options, own_state=False)


def _take_numbers(graph: fx.GraphModule) -> set[int]:
    """Lets the Python floats that Dynamo hands over as tensors (an eps, with dynamic sizes) be numbers again.

    Returns:
        Their positions. A call with another number is compiled anew; tensors of the model are left alone.
    """
    found = set()
    for index, node in enumerate(node for node in graph.graph.nodes if node.op == "placeholder"):
        reads = list(node.users)
        if not getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False):
            continue
        if all((user.op, user.target) == ("call_method", "item") for user in reads):
            found.add(index)
            for read in reads:
                read.replace_all_uses_with(node)
                graph.graph.erase_node(read)
    graph.recompile()
    return found


class _BoundGraph(nn.Module):
    """Dynamo's graph with its weights and static buffers as attributes, so that capture sees them for what they are."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> None:
        super().__init__()
        self._interpreter = fx.Interpreter(graph)
        self._names: list[str | None] = []
        for index, value in enumerate(inputs):
            name = f"input_{index}" if _is_weight(value) else None
            self._names.append(name)
            if isinstance(value, nn.Parameter):
                self.register_parameter(str(name), value)
            elif name is not None:
                self.register_buffer(name, value)
        self.eval()

    def forward(self, *inputs: Any) -> Any:
        """Runs the graph node by node, so that each captured op carries the source line Dynamo recorded."""
        feed = iter(inputs)
        values = [next(feed) if name is None else getattr(self, name) for name in self._names]
        with preserve_node_meta():
            return self._interpreter.run(*values)


def _is_weight(value: Any) -> bool:
    """Whether an input keeps its storage from call to call: a parameter, or a tensor that its owner marked so."""
    return isinstance(value, nn.Parameter) or getattr(value, "_dynamo_static_input_type", None) is not None


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return type(value), value
