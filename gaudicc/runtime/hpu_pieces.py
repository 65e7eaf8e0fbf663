"""First step of recording on a Gaudi: a segment becomes calls of flat graphs, one for each distinct region body.

Weights, state and constants are operands of a call, so that identical layers call one `Piece`. In lazy mode a call is one
sub-graph of a recorded graph, in compile mode one compiled function: either way equal pieces share a recipe. How many
layers one piece holds was decided by the pass `partition-layers`, which numbers them; without it, one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import call_region, writes
from gaudicc.runtime.cpu_flatten import Flat, as_meta, flatten
from gaudicc.runtime.device import Segment


@dataclass(frozen=True, eq=False)
class Piece:
    """One flat graph: ATen and kernels of the device, placeholders only, every node with `meta["val"]`.

    Attributes:
        name: of the region body, or `root`.
        graph: returns a tuple.
        structure: two pieces are the same if these are equal.
    """

    name: str
    graph: fx.Graph
    structure: Hashable

    @property
    def operands(self) -> list[fx.Node]:
        """The placeholders, in order."""
        return list(self.graph.find_nodes(op="placeholder"))

    @property
    def written(self) -> set[fx.Node]:
        """The placeholders that it writes to."""
        found = {node.args[0] for node in self.graph.nodes if writes(node)}
        return {node for node in self.operands if node in found}

    @property
    def results(self) -> tuple[Any, ...]:
        """Nodes or literals, in order."""
        return tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Name:
    """A value of a `DeviceProgram`; anything else in its place is a literal."""

    text: str


@dataclass(frozen=True)
class Call:
    """One piece applied to values.

    Attributes:
        piece: what is called.
        operands: a `Name` or a literal for each placeholder.
        results: the names of what it returns.
        subgraph: which sub-graph holds it, if several calls share one; otherwise one of its own does.
    """

    piece: Piece
    operands: tuple[Any, ...]
    results: tuple[Name, ...]
    subgraph: int | None = None


@dataclass
class DeviceProgram:
    """A segment as calls in order.

    Attributes:
        inputs: what each call of the segment gives.
        calls: carried out in order.
        outputs: the segment's outputs: a `Name` or a literal each.
        constants: values known now.
        metas: meta tensor of every value: sizes, strides and dtype.
    """

    inputs: tuple[Name, ...] = ()
    calls: list[Call] = field(default_factory=list)
    outputs: tuple[Any, ...] = ()
    constants: dict[Name, torch.Tensor] = field(default_factory=dict)
    metas: dict[Name, torch.Tensor] = field(default_factory=dict)

    @property
    def pieces(self) -> list[Piece]:
        """Each distinct piece once, in order of first call."""
        return list(dict.fromkeys(call.piece for call in self.calls))

    def run(self, values: dict[Name, Any], launch: Callable[[Call, list[Any]], tuple[Any, ...]]) -> None:
        """Carries out all calls.

        Args:
            values: name -> value for inputs, constants and whatever is bound; results are put in.
            launch: runs one call on the values of its operands.
        """
        for call in self.calls:
            operands = [values[each] if isinstance(each, Name) else each for each in call.operands]
            values.update(zip(call.results, launch(call, operands), strict=True))


Prepare = Callable[[Flat], None]


def split(segment: Segment, prepare: Prepare, *, together: bool = True) -> DeviceProgram:
    """Divides a segment into pieces.

    Args:
        segment: what to record.
        prepare: makes a flat graph ready for the device, in place.
        together: the layers of one sub-graph are one piece, as they are recorded; otherwise each is one of its own, and its
            calls say which sub-graph holds them.

    Raises:
        LoweringError: a node is not static, or mutates one of its arguments.
    """
    return _Splitter(segment, prepare, together).program


class _Splitter:
    def __init__(self, segment: Segment, prepare: Prepare, together: bool) -> None:
        self.program = DeviceProgram()
        self._root, self._prepare = segment.graph, prepare
        self._pieces: dict[Hashable, Piece] = {}
        self._flattened: dict[Hashable, tuple[Piece, list[torch.Tensor]]] = {}
        self._values: dict[fx.Node, Any] = {}
        self._shared: dict[int, Name] = {}
        group: list[fx.Node] = []
        part: Hashable = None
        for node in self._ordered():
            if node.op == "placeholder":
                self._values[node] = self._named(node.name, node.meta["val"])
            elif node.op == "output":
                self._close(group)
                outputs: Any = fx.map_arg(node.args[0], self._values.__getitem__)
                self.program.outputs = tuple(outputs)
            elif isinstance(node.meta.get("val"), (int, float, bool)):
                self._values[node] = node.meta["val"]
            elif node not in self._values and not self._is_body(node):
                if (own := _part(node, together)) != part:
                    self._close(group)
                    group, part = [], own
                group.append(node)
        given = [node for node in self._root.graph.find_nodes(op="placeholder") if node.name not in segment.bound]
        self.program.inputs = tuple(Name(node.name) for node in given)

    def _ordered(self) -> Iterator[fx.Node]:
        """The nodes in order, but the items of a tuple right behind it, so that no tuple leaves its piece."""
        for node in self._root.graph.nodes:
            if not (node.target is operator.getitem and isinstance(node.args[0], fx.Node)):
                yield node
                yield from (user for user in node.users if user.target is operator.getitem)

    def _is_body(self, node: fx.Node) -> bool:
        return node.op == "get_attr" and isinstance(operator.attrgetter(str(node.target))(self._root), fx.GraphModule)

    def _named(self, text: str, value: Any) -> Name:
        name = Name(text)
        self.program.metas[name] = as_meta(value)
        return name

    def _close(self, group: list[fx.Node]) -> None:
        """Makes a piece of some nodes of the root: what stands between two region calls, or the calls of one sub-graph."""
        calls = [node for node in group if node.target is call_region]
        if not group:
            return
        if len(calls) == 1:
            self._call(calls[0])
            return
        inside = set(group)
        reads = dict.fromkeys(arg for node in group for arg in node.all_input_nodes if arg not in inside)
        names = [node for node in reads if isinstance(self._values.get(node), Name)]
        results = [node for node in group if any(user not in inside for user in node.users)]
        results = [node for node in results if not isinstance(node.meta.get("val"), (tuple, list))]
        graph = fx.Graph()
        copies: dict[fx.Node, Any] = {}
        for node in names:
            copies[node] = graph.placeholder(node.name)
            copies[node].meta = dict(node.meta)
        for node in reads:
            if node not in copies:
                copies[node] = graph.node_copy(node) if self._is_body(node) else self._values[node]
        for node in group:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in results))
        name = f"{len(calls)} x {calls[0].args[0]}" if calls else "root"
        piece, constants = self._known(structure(graph), name, fx.GraphModule(dict(self._root.named_children()), graph))
        made = tuple(self._named(node.name, node.meta["val"]) for node in results)
        operands = (*map(self._constant, constants), *(self._values[node] for node in names))
        self.program.calls.append(Call(piece, operands, made))
        self._values.update(zip(results, made, strict=True))

    def _call(self, node: fx.Node) -> None:
        """Makes a piece of one region body."""
        name = str(node.args[0].target)  # type: ignore[union-attr]
        piece, constants = self._known(name, name, operator.attrgetter(name)(self._root))
        operands = fx.map_arg(node.args[1:], self._values.__getitem__)
        results = tuple(self._named(f"{node.name}.{i}", value) for i, value in enumerate(node.meta["val"]))
        number = node.meta.get("subgraph")
        self.program.calls.append(Call(piece, (*map(self._constant, constants), *operands), results, number))
        for user in node.users:
            self._values[user] = results[user.args[1]]  # type: ignore[index]

    def _known(self, key: Hashable, name: str, module: fx.GraphModule) -> tuple[Piece, list[torch.Tensor]]:
        """The piece of a graph, flattened once for all graphs of one key."""
        if key not in self._flattened:
            self._flattened[key] = self._piece(name, module)
        return self._flattened[key]

    def _piece(self, name: str, module: fx.GraphModule) -> tuple[Piece, list[torch.Tensor]]:
        flat = flatten(Segment(module, {}, {}))
        self._prepare(flat)
        for node in [node for node in flat.bound if not node.users]:
            flat.graph.erase_node(node)
        constants = [flat.bound[node] for node in flat.graph.find_nodes(op="placeholder") if node in flat.bound]
        key = structure(flat.graph)
        piece = self._pieces.setdefault(key, Piece(name, flat.graph, key))
        return piece, constants

    def _constant(self, tensor: torch.Tensor) -> Name:
        """One name per constant tensor."""
        if id(tensor) not in self._shared:
            self._shared[id(tensor)] = name = self._named(f"constant.{len(self._shared)}", tensor)
            self.program.constants[name] = tensor
        return self._shared[id(tensor)]


def _part(node: fx.Node, together: bool) -> Hashable:
    """What a node of the root is put into one piece with: None for all that is no region call."""
    call: Any = node.args[0] if node.target is operator.getitem else node
    if not (isinstance(call, fx.Node) and call.target is call_region):
        return None
    number: Hashable = call.meta.get("subgraph", call) if together else call
    return number


def structure(graph: fx.Graph) -> Hashable:
    """Everything that a recipe depends on: ops, wiring, numbers, shapes, strides and dtypes; names do not count."""
    numbers = {node: i for i, node in enumerate(graph.nodes)}

    def form(node: fx.Node) -> Hashable:
        wired = wiring(node.kwargs, numbers), describe(node.meta.get("val"))
        return (
            (node.op, *wired)
            if node.op == "placeholder"
            else (node.op, node.target, wiring(node.args, numbers), *wired)
        )

    return tuple(map(form, graph.nodes))


def wiring(value: Any, numbers: Mapping[fx.Node, int]) -> Hashable:
    """Arguments with a number in the place of each node, and each literal with its type."""
    if isinstance(value, fx.Node):
        return ("node", numbers[value])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *(wiring(each, numbers) for each in value))
    if isinstance(value, dict):
        return tuple((key, wiring(each, numbers)) for key, each in value.items())
    return type(value), repr(value)  # by repr: 0.0 is not -0.0, and nan is nan


def describe(value: Any) -> Hashable:
    """Shape, strides, dtype and device of a tensor; containers keep their form."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device.type
    if isinstance(value, (list, tuple)):
        return tuple(map(describe, value))
    return type(value), repr(value)
