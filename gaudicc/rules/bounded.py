"""Tensors of unknown length as tensors of their largest length and a count: what each op makes of such rows.

`Rows` stands for a tensor one dim of which is known from data only. Its valid part is a prefix of that dim; what lies behind
is anything, so that every op that would mix it with valid values masks it first, by `where`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

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
        total: what its entries, counts, add up to at most, where that is known.
    """

    value: fx.Node
    dim: int
    length: fx.Node
    symbol: str = ""
    total: int | None = None

    @property
    def bound(self) -> Any:
        """The largest length: a number, or a size that is dynamic."""
        return val(self.value).shape[self.dim]


@dataclass(frozen=True, slots=True)
class Number:
    """A number read from a tensor: the node of the tensor, of no dims, and the range that the program implies for it.

    The node is None where the number has no tensor and only its range is known. `promised` is the most that the user says it
    is, by `torch._check`: it has to be checked where it is relied on.
    """

    node: fx.Node | None
    low: float = -float("inf")
    high: float = float("inf")
    promised: float = float("inf")


class Refused(Exception):
    """An op has no form on rows; the text says why."""


def fixed(size: Any) -> int:
    """A size that is a number.

    Raises:
        Refused: it is dynamic.
    """
    if isinstance(size, torch.SymInt):
        raise Refused("it meets sizes that are dynamic besides")
    return int(size)


def ends(size: Any) -> tuple[float, float]:
    """The smallest and the largest value of a size, infinity where nothing bounds it."""
    if not isinstance(size, torch.SymInt):
        return float(size), float(size)
    known = size.node.shape_env.bound_sympy(size.node.expr)
    low, high = (float(end) if end.is_Integer else float("inf") for end in (known.lower, known.upper))
    return low if low < float("inf") else -low, high


class Inline(Protocol):
    """What forms build their nodes with."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Traces a function of tensors, and puts its ops where the op stood."""

    promised: float
    """The largest length of the result that the user promised, by `torch._check`; infinity if none."""

    shape: Sequence[Any]
    """The shape of the result, as torch knows it; of several results, of the first."""

    def is_at_most(self, size: Any) -> bool:
        """Whether torch knows that the unknown length of the result is this at most."""

    def range_of(self, node: fx.Node) -> tuple[float, float]:
        """The smallest and the largest value that a tensor can hold."""

    def demand(self, failed: fx.Node, error: Exception) -> None:
        """Has the host raise what the op would have raised, where a bool of no dims is True."""


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


def several(op: Any) -> Form:
    """An op with several results that leaves rows apart."""

    def form(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
        if dim is None:
            raise Refused("it has no result of unknown length")
        made = inline(lambda *a: tuple(op(*a, **kwargs)), *values(args))
        return tuple(Rows(part, dim, first(args).length) for part in made)

    return form


def promised(inline: Inline, length: fx.Node, otherwise: str, most: float | None = None) -> int:
    """The largest length that the user promised; the host raises if it is more.

    Args:
        inline: of the op.
        length: int64 `[]`.
        otherwise: why the op is refused if nothing is promised.
        most: what is promised, if not of the op's result.

    Raises:
        Refused: nothing is promised.
    """
    size = inline.promised if most is None else most
    if not 0 <= size < 2**31:
        raise Refused(otherwise)
    failed = inline(lambda n: aten.gt.Scalar(n, int(size)), length)
    inline.demand(failed, RuntimeError(f"a length is promised to be at most {int(size)}, and is more"))
    return int(size)


def first(tree: Any) -> Rows:
    """The first rows among arguments.

    Raises:
        Refused: there are none, or their lengths differ.
    """
    found: list[Rows] = []
    _collect(tree, found)
    if not found or any(not same_length(rows, found[0]) for rows in found):
        raise Refused("its operands have different unknown lengths")
    return found[0]


def fit_known_length(inline: Inline, args: Any) -> Any:
    """Cuts operands of unknown length to the known length of another one; the host raises where it is not theirs.

    Raises:
        Refused: they could be shorter than that.
    """
    fitted = list(args)
    for place, rows in enumerate(args):
        if not isinstance(rows, Rows):
            continue
        back = rows.dim - val(rows.value).dim()
        for arg in args:
            shape = val(arg).shape if isinstance(arg, fx.Node) and isinstance(val(arg), Tensor) else ()
            if len(shape) >= -back and str(shape[back]) not in ("1", str(rows.bound)):
                fitted[place] = _cut(inline, rows, arg, len(shape) + back)
    return fitted


def _cut(inline: Inline, rows: Rows, other: fx.Node, at: int) -> Rows:
    known = val(other).shape[at]
    if not statically_known_true(rows.bound >= known):
        raise Refused("its operands have known and unknown lengths")
    differs = inline(lambda n, t: aten.ne.Scalar(n, t.shape[at]), rows.length, other)
    inline.demand(differs, RuntimeError("a length that depends on data is not that of the other operand"))
    value = inline(lambda x, t: aten.slice.Tensor(x, rows.dim, 0, t.shape[at]), rows.value, other)
    return replace(rows, value=value)


def same_length(a: Rows, b: Rows) -> bool:
    """Whether two tensors are as long as each other whatever the data."""
    return str(a.bound) == str(b.bound) and (a.length is b.length or (bool(a.symbol) and a.symbol == b.symbol))


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


def number_dtype(node: fx.Node, args: list[Any]) -> torch.dtype:
    """The dtype in which an op computes with the number among its arguments: that of its result, unless it compares."""
    dtype: torch.dtype = val(node).dtype
    if dtype is not torch.bool:
        return dtype
    number = next(val(arg.node).dtype for arg in args if isinstance(arg, Number) and arg.node is not None)
    tensor = next(val(arg) for arg in values(args) if isinstance(arg, fx.Node))
    return torch.result_type(tensor, 0.0 if number.is_floating_point else number is torch.bool or 0)
