"""The Program: what a model computes, as a hierarchy of torch.fx graphs with symbolic shapes.

Capture makes it, passes rewrite it, lowering turns it into a Plan. A root graph calls *regions*: a
body that several identical layers share is one GraphModule, and each layer is a call site that binds its own weights.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from gaudicc.errors import InputError, Where

if TYPE_CHECKING:
    from gaudicc.targets import Target


def call_region(body: fx.GraphModule, *operands: Any) -> tuple[Any, ...]:
    """Runs a region body; the only way one graph calls another.

    In a graph: `call_function(call_region, (get_attr body, *operands))`, a tuple taken apart by `getitem`.
    """
    result: tuple[Any, ...] = body(*operands)
    return result


class InputKind(Enum):
    """What a placeholder of the root graph stands for."""

    USER = "input"
    WEIGHT = "weight"
    STATE = "state"
    CONSTANT = "constant"
    LENGTH = "logical length"


class OutputKind(Enum):
    """What an output of the root graph is for."""

    USER = "output"
    STATE = "new value of a state buffer"
    INPUT = "new value of an input that the model mutates"
    FLAG = "flag of the model's own asserts"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One placeholder of the root graph.

    Attributes:
        name: the placeholder's name.
        kind: what is bound to it.
        source: qualified name of the weight or buffer, the path of the argument (`input_ids`, `cache[0][1]`), or the name
            of the dimension whose logical length it is.
    """

    name: str
    kind: InputKind
    source: str


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of the root graph; `target` names the state buffer, argument or flag that it is written to."""

    kind: OutputKind
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model's own signature.

    Attributes:
        name: its name.
        kind: one of `inspect.Parameter`'s kinds, by name (`POSITIONAL_OR_KEYWORD`).
        required: it has no default.
        default: the default, a plain value.
    """

    name: str
    kind: str
    required: bool = True
    default: Any = None


@dataclass(frozen=True)
class Calling:
    """How the model is called: from Python arguments to the root graph's user inputs and back.

    Attributes:
        in_spec: pytree of `(args, kwargs)` in the canonical form of the model's own signature.
        paths: path of every leaf of `in_spec`, in order.
        static: leaf index -> the value every call must have (numbers, strings, None).
        out_spec: pytree of the output.
        literals: leaf index of the output -> value, where an output is not a tensor.
        parameters: the model's own signature.
    """

    in_spec: pytree.TreeSpec
    paths: tuple[str, ...]
    static: Mapping[int, Any]
    out_spec: pytree.TreeSpec
    literals: Mapping[int, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()

    @cached_property
    def signature(self) -> inspect.Signature:
        """The model's signature as Python knows it."""
        return inspect.Signature([_parameter(entry) for entry in self.parameters])


def _parameter(entry: Parameter) -> inspect.Parameter:
    default = inspect.Parameter.empty if entry.required else entry.default
    return inspect.Parameter(entry.name, getattr(inspect.Parameter, entry.kind), default=default)


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The canonical form of a call: two calls that mean the same, by position, keyword or default, give the same.

    Parameters with a default go by keyword: wrappers that add arguments of their own (transformers' output recorders) look
    for them there, and would pass one twice that came by position.

    Raises:
        InputError: the arguments do not fit the signature.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the arguments do not fit the model: {error}", hint=f"its signature is {signature}"
        ) from error
    bound.apply_defaults()
    starred = any(p.kind is p.VAR_POSITIONAL and bound.arguments[p.name] for p in signature.parameters.values())
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.extend(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords.update(value)
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD and (starred or parameter.default is parameter.empty)
        ):
            positional.append(value)
        else:
            keywords[parameter.name] = value
    return tuple(positional), dict(sorted(keywords.items()))


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the inputs under which the program holds.

    Attributes:
        text: a Python expression over logical sizes, e.g. `input_ids.shape[1] <= 512`.
        reason: why it is there, with the user's source line if one is known.
    """

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dimension:
    """One symbolic size.

    Attributes:
        name: the user's name for it (`sequence`).
        symbol: its name in the graphs (`s27`).
        low: smallest value, inclusive.
        high: largest value, inclusive.
        positions: every `(user input name, dim)` that has this size.
    """

    name: str
    symbol: str
    low: int
    high: int
    positions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PadRecord:
    """How the host treats a padded program's outputs, and what was proved of it.

    Attributes:
        outputs: for every output of the root and each of its dims, the factors of that dim, outermost first: Python
            expressions (`+ - * // % min max`) over dimension names. On bucket sizes they give the physical size of a factor,
            on lengths the logical one; a dim of one factor is sliced, one of several is viewed as its factors first.
        inputs: for every user input and each of its dims, its size as such an expression.
        certificate: a `gaudicc.padding.PadCertificate`.
    """

    outputs: tuple[tuple[tuple[str, ...], ...], ...]
    inputs: tuple[tuple[str, ...], ...]
    certificate: Any = None


@dataclass
class Program:
    """What the model computes, with everything that must travel with the graph.

    Attributes:
        root: the root graph; its submodules are the unique region bodies.
        inputs: one spec per placeholder of the root, in order.
        outputs: one spec per output of the root, in order.
        tensors: source name -> weight, state buffer or constant. Shared with the model, never copied.
        calling: how Python arguments map to user inputs.
        dimensions: the symbolic sizes with their ranges.
        guards: conditions under which the program holds.
        target: the chip's table, once compile has chosen one.
        example: example values of the user inputs, by placeholder name (for numerics checks).
        notes: what capture wants the user to know (hooks found, functions rewritten).
        padded: set once the program is proved harmless to pad: symbols then mean physical sizes.
    """

    root: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    tensors: dict[str, torch.Tensor]
    calling: Calling
    dimensions: tuple[Dimension, ...] = ()
    guards: tuple[Guard, ...] = ()
    target: Target | None = None
    example: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    padded: PadRecord | None = None

    def graphs(self) -> Iterator[tuple[str, fx.GraphModule]]:
        """Yields every unique graph once: the bodies, innermost first, then the root under the name `root`."""
        seen: set[int] = set()
        yield from _bodies(self.root, seen)
        yield "root", self.root

    @property
    def bodies(self) -> dict[str, fx.GraphModule]:
        """The unique region bodies by name."""
        return {name: graph for name, graph in self.graphs() if graph is not self.root}

    def user_inputs(self) -> tuple[InputSpec, ...]:
        """The inputs given at each call, in order."""
        return tuple(spec for spec in self.inputs if spec.kind is InputKind.USER)

    def bound(self) -> dict[str, torch.Tensor]:
        """Placeholder name -> tensor for all that is bound once: weights, state and constants."""
        given = (InputKind.USER, InputKind.LENGTH)
        return {spec.name: self.tensors[spec.source] for spec in self.inputs if spec.kind not in given}

    def feed(self, user_inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """One value per placeholder of the root, in order.

        Args:
            user_inputs: placeholder name -> tensor, for every user input. A length that is left out is the size of the
                inputs themselves: nothing is pad.
        """
        values = {**self.bound(), **user_inputs}
        for spec in self.inputs:
            if spec.kind is InputKind.LENGTH and spec.name not in values:
                name, position = next(dim.positions[0] for dim in self.dimensions if dim.name == spec.source)
                values[spec.name] = torch.tensor(user_inputs[name].shape[position])
        return [values[spec.name] for spec in self.inputs]

    def copy(self) -> Program:
        """A copy with graphs of its own; weights, fake values and everything immutable are shared."""
        return replace(self, root=_copy_graph(self.root, {}), tensors=dict(self.tensors))

    def run(self, user_inputs: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Runs the program on CPU as it stands, node by node.

        Args:
            user_inputs: as for `feed`.

        Returns:
            All outputs of the root graph, state and flags included. Nothing is written to state.
        """
        with torch.no_grad():
            result: tuple[Any, ...] = self.root(*self.feed(user_inputs))
        return result

    def count_ops(self) -> dict[str, int]:
        """Op name -> number of call sites in the unique graphs."""
        counts: dict[str, int] = {}
        for _, graph in self.graphs():
            for node in graph.graph.nodes:
                if is_op(node):
                    counts[op_name(node)] = counts.get(op_name(node), 0) + 1
        return counts


def _bodies(graph: fx.GraphModule, seen: set[int]) -> Iterator[tuple[str, fx.GraphModule]]:
    for name, child in graph.named_children():
        if isinstance(child, fx.GraphModule) and id(child) not in seen:
            seen.add(id(child))
            yield from _bodies(child, seen)
            yield name, child


def _copy_graph(module: fx.GraphModule, done: dict[int, fx.GraphModule]) -> fx.GraphModule:
    if id(module) not in done:
        children = {
            name: _copy_graph(child, done) if isinstance(child, fx.GraphModule) else child
            for name, child in module.named_children()
        }
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(module.graph, values)
        old_output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
        graph.output(output).meta.update(old_output.meta)
        assert len(values) == len(module.graph.nodes) - 1, "a graph has exactly one output node"
        done[id(module)] = fx.GraphModule(children, graph, module.__class__.__name__)
    return done[id(module)]


def is_op(node: fx.Node) -> bool:
    """Whether a node computes with an ATen or gaudicc op (not a placeholder, getitem, region call or size arithmetic)."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def op_name(node: fx.Node) -> str:
    """`aten.mm`, `gaudicc.attention`, `getitem`: the target as printed; a default overload is left bare."""
    target = node.target
    if isinstance(target, str):
        return target
    name = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return name.removesuffix(".default")


_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def source_of(node: fx.Node) -> str | None:
    """The user's `file:line` that a node comes from: the innermost frame outside torch, or None."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    outside = [(file, line) for file, line in frames if "/torch/" not in f"/{file}"]
    if not outside:
        return None
    file, line = outside[-1]
    return f"{'/'.join(file.split('/')[-2:])}:{line}"


def module_of(node: fx.Node) -> str | None:
    """The path of the user's module that a node comes from, e.g. `model.layers.0.self_attn`, or None."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return None
    path = next(reversed(list(stack.values())))[0]
    path = re.sub(r"^L\['self'\]\.?", "", path)
    return None if path.startswith("_empty") else path or None  # torch marks nodes that it adds itself so


def where(node: fx.Node, stage: str | None = None) -> Where:
    """The place of a node, for error messages."""
    return Where(source=source_of(node), op=op_name(node), module=module_of(node), stage=stage)


def val(node: fx.Node) -> Any:
    """The fake value of a node: a FakeTensor with symbolic shape, a SymInt, or a tuple of these."""
    return node.meta["val"]


def output_of(graph: fx.Graph) -> fx.Node:
    """The output node of a graph."""
    output: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return output


def outputs_of(graph: fx.Graph) -> Sequence[Any]:
    """The output values (nodes or literals) of a graph, in order."""
    values = output_of(graph).args[0]
    return values if isinstance(values, (tuple, list)) else (values,)


def regions_called(graph: fx.Graph) -> list[tuple[fx.Node, str]]:
    """The region calls of a graph, in order: the call node and the body's name."""
    return [
        (node, str(node.args[0].target))
        for node in graph.nodes
        if node.op == "call_function" and node.target is call_region and isinstance(node.args[0], fx.Node)
    ]
