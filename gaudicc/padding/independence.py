"""Which rows of a model's results depend on which rows of its inputs: a size whose rows never meet may be divided over calls.

Padding asks what pads may do to what is valid; here valid rows are asked the same of each other. A size such as the batch is
followed through the graph: every tensor is either the same for all rows, or has the rows in one of its dims. An op that mixes
rows, counts them or that no rule knows ends the proof.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.errors import PaddingError
from gaudicc.nodes import call_loop, call_region, op_name, operands_of, outputs_of, val, where
from gaudicc.padding.parts import Divisible
from gaudicc.padding.sizes import expression
from gaudicc.program import InputKind, OutputKind, Program


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor that has the rows in one of its dims.

    Attributes:
        dim: the dim, whose size is the followed one times a number or other sizes; a row is a block of it.
        numbers: every element is the number of its row, which is another one where the rows are divided.
    """

    dim: int
    numbers: bool = False


State = Any  # Rows; None: the same for all rows; or a tuple of these, of an op with several results
Rule = Callable[["Walk", fx.Node], State]


def divisible(program: Program, name: str) -> Divisible:
    """Proves that a call equals several calls on parts of its rows, their results one behind the other.

    Args:
        program: symbolic, and not padded yet: masks count rows.
        name: of the dimension.

    Raises:
        PaddingError: an op mixes the rows or has no rule, or the model has state; names the user's line.
    """
    dimension = next(dim for dim in program.dimensions if dim.name == name)
    if any(spec.kind is InputKind.STATE for spec in program.inputs):
        raise PaddingError(
            "a model with state is called once for all rows", hint="give it a bucket that holds the call"
        )
    if any(spec.kind is not OutputKind.USER for spec in program.outputs):
        raise PaddingError("the model does more than return results", hint="give it a bucket that holds the call")
    walk = Walk(dimension.symbol, name)
    placeholders = [node for node in program.root.graph.nodes if node.op == "placeholder"]
    given = tuple(walk.by_shape(node) for node in placeholders)
    results = walk.through(program.root, given)
    users = {spec.name for spec in program.user_inputs()}
    inputs = (state for node, state in zip(placeholders, given, strict=True) if node.name in users)
    return Divisible(name, dimension.low, tuple(map(_dim, inputs)), tuple(map(_dim, results)))


def divisible_sizes(program: Program) -> tuple[Divisible, ...]:
    """All sizes over which a call may be divided.

    Raises:
        PaddingError: there is none; says why of the first one.
    """
    found, refused = [], []
    for dim in program.dimensions:
        try:
            found.append(divisible(program, dim.name))
        except PaddingError as error:
            refused.append(error)
    if refused and not found:
        raise refused[0]
    return tuple(found)


def _dim(state: State) -> int | None:
    return state.dim if isinstance(state, Rows) else None


class Walk:
    """Follows the rows of one size through a program.

    Args:
        symbol: the size's symbol.
        name: the dimension's name, for messages.
    """

    def __init__(self, symbol: str, name: str) -> None:
        self.symbol = symbol
        self.name = name
        self.states: dict[fx.Node, State] = {}
        self._bodies: dict[tuple[str, tuple[State, ...]], tuple[State, ...]] = {}

    def through(self, module: fx.GraphModule, given: Sequence[State]) -> tuple[State, ...]:
        """The states of a graph's results, given those of its placeholders."""
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        outside, self.states = self.states, dict(zip(placeholders, given, strict=True))
        for node in module.graph.nodes:
            if node.op == "call_function" and _tensors(val(node)):
                self.states[node] = self._judged(module, node)
        results = tuple(self.of(value) for value in outputs_of(module.graph))
        self.states = outside
        return results

    def _judged(self, module: fx.GraphModule, node: fx.Node) -> State:
        from gaudicc.padding.row_rules import rule_of  # which are written in terms of this walk

        if node.target is operator.getitem:
            return self.states[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.target is call_region:
            return self._called(module, node, tuple(map(self.of, operands_of(node))))
        if node.target is call_loop:
            return self._looped(module, node)
        rule = rule_of(node.target)
        if rule is None:
            raise self.refuse(node, "no rule says whether rows stay apart")
        state = rule(self, node)
        states = state if isinstance(state, tuple) else [state] * len(_tensors(val(node)))
        for made, value in zip(states, _tensors(val(node)), strict=True):
            self._check(node, made, value)
        return tuple(states) if isinstance(val(node), (tuple, list)) else state

    def _called(self, module: fx.GraphModule, node: fx.Node, given: tuple[State, ...]) -> tuple[State, ...]:
        body = str(node.args[0].target)  # type: ignore[union-attr]
        key = (body, given)
        if key not in self._bodies:
            self._bodies[key] = self.through(getattr(module, body), given)
        return self._bodies[key]

    def _looped(self, module: fx.GraphModule, node: fx.Node) -> tuple[State, ...]:
        """Every trip hands on what it was given, rows where they were; what it stacks has a dim before them."""
        self.refuse_values(node, shapes=(0,))  # the body is no value
        given, carried = tuple(map(self.of, operands_of(node))), int(node.args[3])  # type: ignore[arg-type]
        if any(self.of(arg) is not None for arg in node.args[1:3]):
            raise self.refuse(node, "the number of trips is another one for other rows")
        results = self._called(module, node, (None, *given))
        if results[:carried] != given[:carried]:
            raise self.refuse(node, "a trip hands on rows where it was given none, or elsewhere")
        stacks = (None if state is None else Rows(state.dim + 1) for state in results[carried:])
        return (*results[:carried], *stacks)

    def _check(self, node: fx.Node, state: State, value: torch.Tensor) -> None:
        """The size is where the rows are, as a factor, and nowhere else."""
        found = self.dims_with_rows(value)
        if _dim(state) is None and not found:
            return
        if [_dim(state)] != found or not self._is_factor(value.shape[found[0]]):
            raise self.refuse(node, f"rows of {self.name} meet")

    def _is_factor(self, size: Any) -> bool:
        rest = [factor for factor in sympy.Mul.make_args(expression(size)) if str(factor) != self.symbol]
        return not self.counts(sympy.Mul(*rest))

    # -- what rules ask --------------------------------------------------------------------------------------------

    def of(self, value: Any) -> State:
        """The state of an operand; numbers and weights are the same for all rows."""
        return self.states.get(value) if isinstance(value, fx.Node) else None

    def counts(self, size: Any) -> bool:
        """Whether the followed size is in a size."""
        return any(str(symbol) == self.symbol for symbol in expression(size).free_symbols)

    def is_number_of_rows(self, size: Any) -> bool:
        """Whether a size is the followed one itself."""
        return str(expression(size)) == self.symbol

    def dims_with_rows(self, value: torch.Tensor) -> list[int]:
        """The dims of a tensor whose sizes hold the followed one."""
        return [dim for dim, size in enumerate(value.shape) if self.counts(size)]

    def by_shape(self, node: fx.Node) -> State:
        """The state of a tensor of which every row is made alike: an input, or one constant.

        Raises:
            PaddingError: several of its dims hold the size.
        """
        found = self.dims_with_rows(val(node)) if isinstance(val(node), torch.Tensor) else []
        if len(found) > 1:
            raise self.refuse(node, f"{self.name} is the size of several dims")
        return Rows(found[0]) if found else None

    def refuse(self, node: fx.Node, reason: str) -> PaddingError:
        """The end of the proof, to be raised."""
        return PaddingError(
            f"a call is not divided over {self.name}: {op_name(node)}: {reason}", where=where(node, "the proof")
        )

    def refuse_values(self, node: fx.Node, *, shapes: Iterable[int] = (), names: Iterable[str] = ()) -> None:
        """Demands that no argument but those that are shapes reads the size as a value.

        Args:
            node: the call.
            shapes: positions of the arguments that are shapes.
            names: names of the keyword arguments that are.
        """
        given = [arg for i, arg in enumerate(node.args) if i not in shapes]
        given += [arg for name, arg in node.kwargs.items() if name not in names]
        for leaf in _leaves(given):
            size = val(leaf) if isinstance(leaf, fx.Node) else None
            if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) and self.counts(size.node.expr):
                raise self.refuse(node, f"the number of rows is used as a value ({leaf.name})")


def is_inert(node: fx.Node) -> bool:
    """Dropout at inference draws nothing."""
    return node.target is torch.ops.aten.dropout.default and not node.args[2]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor)]
