"""First step of recording on the CPU: a segment and its region bodies become one flat graph.

Everything that is known when recording happens is taken out of the graph here: region calls, sizes, checks of
metadata, and values that depend on nothing (`arange`, `full`).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from gaudicc.errors import LoweringError, Where
from gaudicc.nodes import call_loop
from gaudicc.runtime.cpu_loop import Loop
from gaudicc.runtime.device import Segment

HOIST_LIMIT = 1 << 24  # bytes; a larger constant is cheaper to compute again than to keep
_aten = torch.ops.aten
_KNOWN: dict[Any, Any] = {}
_MOST_KNOWN = 4096
_DROPPED = frozenset({_aten._assert_tensor_metadata.default})
_FILLED = {_aten.zeros_like.default: 0, _aten.ones_like.default: 1}  # they read a shape, no data
_IDENTITIES = frozenset({_aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default})


@dataclass(slots=True)
class Flat:
    """One straight-line graph.

    `meta["val"]` of every tensor node is a meta tensor: sizes and strides, no data, no fake mode.

    Attributes:
        graph: placeholders, then calls, then the output node, whose argument is the flat tuple of outputs.
        inputs: placeholders that every call passes, in order.
        bound: placeholder -> tensor that never moves.
        state: placeholder of a state buffer -> index of the output that is its new value.
        expected: the values the outputs must have: meta tensors (size, stride, dtype) or constants.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    inputs: list[fx.Node] = field(default_factory=list)
    bound: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    state: dict[fx.Node, int] = field(default_factory=dict)
    expected: list[Any] = field(default_factory=list)

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The output node's flat argument."""
        return tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]

    def bind(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """Adds a placeholder for a tensor that is known now."""
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        node.meta["val"] = as_meta(tensor)
        self.bound[node] = tensor
        return node


def as_meta(value: Any) -> Any:
    """The same sizes, strides and dtype without data; containers keep their structure."""
    if isinstance(value, torch.Tensor):
        if any(not isinstance(n, int) for n in (*value.shape, *value.stride())):
            raise LoweringError(f"a tensor of shape {list(value.shape)} is not static", where=Where(stage="record"))
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return tuple(as_meta(item) for item in value)
    return value


def byte_extent(value: torch.Tensor) -> int:
    """Bytes from the first to the last element of a tensor, strides included."""
    if value.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return (last + 1) * value.element_size()


def is_dense(value: torch.Tensor) -> bool:
    """Whether a tensor's elements fill its extent without gaps or overlaps."""
    return byte_extent(value) == value.numel() * value.element_size() and 0 not in [
        stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1
    ]


def propagate(node: fx.Node) -> None:
    """Computes `meta["val"]` of a call from its arguments'; layers repeat, so that most calls were computed before."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    kwargs = {key: "meta" if key == "device" else value for key, value in kwargs.items()}
    key = (node.target, _key(args), _key(list(kwargs.items())))
    if key not in _KNOWN:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = as_meta(node.target(*args, **kwargs))  # type: ignore[operator]
    node.meta["val"] = _KNOWN[key]


def _key(value: Any) -> Any:
    """What a meta kernel's result depends on; the types tell 1, 1.0 and True apart."""
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    if isinstance(value, slice):
        return slice, value.start, value.stop, value.step
    return type(value), value


def flatten(segment: Segment) -> Flat:
    """Inlines region bodies and takes out what is known already.

    Raises:
        LoweringError: a node is not static, or mutates one of its arguments.
    """
    flat = Flat()
    environment: dict[fx.Node, Any] = {}
    for placeholder in segment.graph.graph.find_nodes(op="placeholder"):
        node = flat.graph.placeholder(placeholder.name)
        environment[placeholder] = node
        if placeholder.name in segment.bound:
            tensor = segment.bound[placeholder.name]
            flat.bound[node], node.meta["val"] = tensor, as_meta(tensor)
            if placeholder.name in segment.constants:
                node.meta["hoisted"] = True
        else:
            node.meta["val"] = as_meta(placeholder.meta["val"])
            flat.inputs.append(node)
        if placeholder.name in segment.state:
            flat.state[node] = segment.state[placeholder.name]
    outputs = _inline(flat, segment.graph, environment)
    flat.graph.output(outputs)
    original = segment.graph.graph.output_node().args[0]
    flat.expected = [as_meta(o.meta["val"]) if isinstance(o, fx.Node) else o for o in original]  # type: ignore[union-attr]
    flat.graph.eliminate_dead_code(_is_impure)
    return flat


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or node.meta.get("val") is None


def _inline(flat: Flat, module: fx.GraphModule, environment: dict[fx.Node, Any]) -> tuple[Any, ...]:
    """Copies `module` into the flat graph; `environment` already maps its placeholders."""
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return tuple(fx.map_arg(node.args[0], environment.__getitem__))
        if node.op == "get_attr":
            environment[node] = _attribute(flat, module, node)
        elif node.op == "call_function":
            environment[node] = _copy_call(flat, node, environment)
        else:
            raise LoweringError(f"a segment holds only calls of functions, not {node.op}", where=_where(node))
    raise LoweringError("a graph without an output node", where=Where(stage="record"))


def _attribute(flat: Flat, module: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = operator.attrgetter(str(node.target))(module)
    return flat.bind(node.name, value) if isinstance(value, torch.Tensor) else value


def _copy_call(flat: Flat, node: fx.Node, environment: dict[fx.Node, Any]) -> Any:
    target: Any = node.target
    value = node.meta.get("val")
    args: Any
    args, kwargs = fx.map_arg((node.args, node.kwargs), environment.__getitem__)
    if target in _DROPPED:
        return None
    if getattr(target, "__name__", "") == "call_region":
        body, *operands = args
        inner = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
        return _inline(flat, body, inner)
    if target is call_loop:
        body, limit, trips, carried, *operands = args
        target, args = Loop(body, limit, carried), (trips, *operands)
    if target is operator.getitem and isinstance(args[0], tuple):
        return args[0][args[1]]
    if target in _IDENTITIES:
        return args[0]
    if isinstance(value, (int, float, bool)):
        return value
    if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
        raise LoweringError("a segment must be functional", where=_where(node))
    copied = flat.graph.create_node("call_function", target, args, kwargs, name=node.name)
    copied.meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
    copied.meta["val"] = as_meta(value)
    return _hoist(flat, copied, value)


def _hoist(flat: Flat, node: fx.Node, value: Any) -> fx.Node:
    """Computes a call now if it depends on nothing but numbers and other values hoisted before.

    Args:
        flat: the graph so far.
        node: the call, in it.
        value: what the call gives, as captured: its device too.
    """
    sources, target = node.all_input_nodes, node.target
    if not isinstance(value, torch.Tensor) or not isinstance(target, torch._ops.OpOverload):
        return node
    known = target in _FILLED or all("hoisted" in n.meta for n in sources)
    if torch.Tag.nondeterministic_seeded in target.tags or not known:
        return node
    if value.numel() * value.element_size() > HOIST_LIMIT or target._schema.name.startswith("aten::empty"):
        return node
    if target in _FILLED:
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        made.fill_(_FILLED[target])
    else:
        args, kwargs = fx.map_arg((node.args, node.kwargs), flat.bound.__getitem__)
        made = target(*args, **kwargs)
    constant = flat.bind(node.name, made)
    constant.meta["hoisted"] = True
    flat.graph.erase_node(node)
    return constant


def _where(node: fx.Node) -> Where:
    trace = node.meta.get("stack_trace") or ""
    last = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    return Where(source=last[-1] if last else None, op=str(node.target), stage="record")
