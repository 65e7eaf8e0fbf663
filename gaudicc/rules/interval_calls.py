"""One call of an op whose operands' intervals are known, as the forms of `interval_forms` ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rules.interval_forms import FORMS
from gaudicc.rules.intervals import ALL, FLAG, Interval, exactly, hull, multiply, whole

aten = torch.ops.aten
CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default, aten.to.other)

Known = Any
"""An interval, or one for each of several results."""


@dataclass(frozen=True)
class IntervalCall:
    """See `interval_forms.Call`.

    Attributes:
        node: the call.
        known: a node -> its interval.
        extent: a size, a number or an expression -> its interval.
    """

    node: fx.Node
    known: Callable[[fx.Node], Known]
    extent: Callable[[Any], Interval]

    def result(self) -> Known:
        """What the op makes of its operands; None where nothing is known."""
        if self.node.target in CASTS:
            source: Any = self.node.args[0]
            held = self._of(source)
            return whole(held) if val(source).is_floating_point() and not val(self.node).is_floating_point() else held
        form = FORMS.get(self.node.target)
        return None if form is None else form(self)

    def literal(self, name: str) -> Any:
        """The argument as it stands in the graph."""
        arguments = self.node.target._schema.arguments  # type: ignore[union-attr]
        for place, argument in enumerate(arguments):
            if argument.name == name:
                given = self.node.args[place] if place < len(self.node.args) else self.node.kwargs.get(name)
                return argument.default_value if given is None and argument.has_default_value() else given
        return None

    def of(self, name: str) -> Interval:
        """The interval of a tensor, number or size, or the hull of a list of them."""
        value = self.literal(name)
        return hull(map(self._of, value)) if isinstance(value, (list, tuple)) else self._of(value)

    def _of(self, value: Any) -> Interval:
        if isinstance(value, fx.Node):
            known = self.known(value)
            return hull(known) if isinstance(known, list) else known
        return exactly(value) if isinstance(value, (bool, int, float)) and value == value else ALL

    def size(self, name: str, dim: int) -> Interval:
        """Of the size of one dim of a tensor."""
        shape = val(self.literal(name)).shape
        return self.extent(shape[dim]) if shape else exactly(1)

    def entries(self, name: str, dims: Any = None) -> Interval:
        """Of the number of entries along some dims of a tensor; of all by default."""
        shape = val(self.literal(name)).shape
        chosen = [dims] if isinstance(dims, int) else dims
        return entries([shape[dim] for dim in chosen] if chosen and shape else shape, self.extent)


def held_by(tensor: torch.Tensor) -> Interval:
    """Of the values of a tensor that never changes."""
    if not tensor.numel() or tensor.is_meta or tensor.is_complex():
        return ALL
    if tensor.dtype is torch.bool:
        return FLAG
    low, high = (end.item() for end in tensor.detach().aminmax())
    return Interval(low, high) if low == low else ALL


def entries(sizes: Iterable[Any], extent: Callable[[Any], Interval]) -> Interval:
    """Of the product of sizes."""
    return reduce(multiply, map(extent, sizes), exactly(1))
