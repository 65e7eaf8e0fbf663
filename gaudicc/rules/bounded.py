"""Tensors of unknown length as tensors of their largest length and a count: what each op makes of such rows.

`Rows` stands for a tensor one dim of which is known from data only. Its valid part is a prefix of that dim; what lies behind
is anything, so that every op that would mix it with valid values masks it first, by `where`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gaudicc.nodes import val

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor of unknown length.

    Attributes:
        value: the node of the tensor of the largest length.
        dim: the dim whose length is unknown.
        length: the node of its length, int64 `[]`.
        symbol: the name of its length: equal lengths have equal names.
    """

    value: fx.Node
    dim: int
    length: fx.Node
    symbol: str = ""

    @property
    def bound(self) -> int:
        """The largest length."""
        return int(val(self.value).shape[self.dim])


@dataclass(frozen=True, slots=True)
class Number:
    """A number read from a tensor: the node of the tensor, of no dims, and the range that the program implies for it.

    The node is None where the number has no tensor and only its range is known.
    """

    node: fx.Node | None
    low: float = -float("inf")
    high: float = float("inf")


class Refused(Exception):
    """An op has no form on rows; the text says why."""


Inline = Callable[..., Any]
Form = Callable[[Inline, Any, Any, int | None], Any]
"""(inline, arguments with `Rows` in them, keyword arguments, dim of the result whose length is unknown) -> Rows or node."""


def mask(x: Tensor, length: Tensor, dim: int) -> Tensor:
    """Bool of the rank of `x`: which positions of a dim are valid."""
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    return aten.view.default(aten.lt.Tensor(aten.arange.default(x.shape[dim]), length), shape)  # type: ignore[no-any-return]


def filled(inline: Inline, rows: Rows, fill: Any) -> fx.Node:
    """The value of rows with `fill` behind the valid ones."""

    def fill_in(x: Tensor, length: Tensor) -> Tensor:
        other = aten.full.default([], fill, dtype=x.dtype)
        return aten.where.self(mask(x, length, rows.dim), x, other)  # type: ignore[no-any-return]

    node: fx.Node = inline(fill_in, rows.value, rows.length)
    return node


def same_op(op: Any) -> Form:
    """The op itself, on the largest length: for ops that leave rows apart."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        if dim is None:
            raise Refused("it has no result of unknown length")
        found = first(args)
        return Rows(inline(lambda *a: op(*a, **kwargs), *values(args)), dim, found.length)

    return form


def first(tree: Any) -> Rows:
    """The first rows among arguments.

    Raises:
        Refused: there are none, or their lengths differ.
    """
    found: list[Rows] = []
    _collect(tree, found)
    if not found or any(not _same_length(rows, found[0]) for rows in found):
        raise Refused("its operands have different unknown lengths")
    return found[0]


def _same_length(a: Rows, b: Rows) -> bool:
    return a.bound == b.bound and (a.length is b.length or (bool(a.symbol) and a.symbol == b.symbol))


def _collect(tree: Any, into: list[Rows]) -> None:
    if isinstance(tree, Rows):
        into.append(tree)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            _collect(item, into)


def values(tree: Any) -> Any:
    """Arguments with every `Rows` replaced by its value."""
    if isinstance(tree, Rows):
        return tree.value
    return type(tree)(map(values, tree)) if isinstance(tree, (list, tuple)) else tree
