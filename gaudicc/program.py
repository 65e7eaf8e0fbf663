"""The Program: what a model computes, as a hierarchy of torch.fx graphs with symbolic shapes.

Capture makes it, passes rewrite it, lowering turns it into a Plan. A root graph calls *regions*: a
body that several identical layers share is one GraphModule, and each layer is a call site that binds its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from gaudicc.calling import Calling
from gaudicc.errors import GaudiccError, ModelRaisedError, ShapeError, Where
from gaudicc.graph_module import copy_graph
from gaudicc.nodes import is_op, op_name

if TYPE_CHECKING:
    from gaudicc.targets import Target


class InputKind(Enum):
    """What a placeholder of the root graph stands for."""

    USER = "input"
    WEIGHT = "weight"
    STATE = "state"
    CONSTANT = "constant"
    LENGTH = "logical length"


FOLDED = "constant."
"""How the sources of constants begin that passes made: nobody else holds them, so they never change."""


class OutputKind(Enum):
    """What an output of the root graph is for."""

    USER = "output"
    STATE = "new value of a state buffer"
    INPUT = "new value of an input that the model mutates"
    FLAG = "flag of the model's own asserts"
    LENGTH = "how many rows of an output are valid"


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
    """One output of the root graph.

    `target` names the state buffer or argument that it is written to; of a length, it is `user output:dim`; of a result that
    is a number, its type: `int`, `float` or `bool`.
    """

    kind: OutputKind
    target: str | None = None


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


_NEARBY = 4096
"""Combinations of smaller sizes that are looked at in place of one that a program does not stand for."""


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
        serves: of sizes within the ranges of the dimensions, by name, whether the program stands for them; None: for all.
            A model whose Python decides on sizes is one program for each side of its decisions.
        raising_at_zero: name of a dimension that was declared from 0 on -> what the model raises there; it starts at 1.
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
    serves: Callable[[Mapping[str, int]], bool] | None = None
    raising_at_zero: Mapping[str, Exception] = field(default_factory=dict)

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

    def served(self, wanted: Mapping[str, int]) -> dict[str, int] | None:
        """The sizes nearest below the wanted ones that the program stands for; None if none of the nearest is.

        Args:
            wanted: dimension name -> size, within the ranges.
        """
        spans = [range(wanted[dim.name], min(dim.low, wanted[dim.name]) - 1, -1) for dim in self.dimensions]
        names = [dim.name for dim in self.dimensions]
        nearby = (dict(zip(names, sizes, strict=True)) for sizes in islice(product(*spans), _NEARBY))
        return next((sizes for sizes in nearby if self.serves is None or self.serves(sizes)), None)

    def range_error(self, what: str, name: str, size: int, span: tuple[int, int]) -> GaudiccError:
        """What a call raises whose size is none that was declared, or is 0 where the model itself raises."""
        error = self.raising_at_zero.get(name)
        if size == 0 and error is not None:
            return ModelRaisedError(
                f"the model raises {type(error).__name__} where {name} is 0: {error}",
                where=Where(stage="the call"),
                hint="give it sizes that it takes",
            )
        return ShapeError(
            f"{what} is {size}, {name} runs from {span[0]} to {span[1]}",
            where=Where(stage="the call"),
            hint="raise the bound of this Dim in dynamic_shapes and compile again",
        )

    def copy(self) -> Program:
        """A copy with graphs of its own; weights, fake values and everything immutable are shared."""
        return replace(self, root=copy_graph(self.root), tensors=dict(self.tensors))

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
