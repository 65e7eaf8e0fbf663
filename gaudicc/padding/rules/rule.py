"""What a padding rule is: ops, what they demand of pads, what they leave in them, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaudicc.padding.padder import Claims, Padder
from gaudicc.rules.match import argument

Function = Callable[[Padder, fx.Node], Claims]


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        ops: the op overloads it is for, e.g. `aten.sum.dim_IntList`.
        demand: what the pads of operands must hold, as printed in the docs.
        result: what the pads of results hold.
        function: inserts what is demanded before the node, and gives the claims on its results.
    """

    ops: tuple[Any, ...]
    demand: str
    result: str
    function: Function


def operand(node: fx.Node, index: int) -> Any:
    """A positional argument, of which the schema says what it is."""
    return node.args[index]


def overload(node: fx.Node) -> torch._ops.OpOverload:
    """The op of a call that has a rule."""
    assert isinstance(node.target, torch._ops.OpOverload), "rules are asked for ops only"
    return node.target


def wrap(dim: int, rank: int) -> int:
    """A dim counted from the front."""
    return dim + rank if dim < 0 else dim


def dims_argument(node: fx.Node, index: int, name: str, rank: int) -> list[int]:
    """A list-of-dims argument, counted from the front; None and [] mean all."""
    given = argument(node, index, name)
    if given is None or given == []:
        return list(range(rank))
    return [wrap(int(dim), rank) for dim in (given if isinstance(given, (list, tuple)) else [given])]
