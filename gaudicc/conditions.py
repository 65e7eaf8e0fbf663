"""What is known of the conditions in a graph where one of them holds, or does not, and which values follow from that."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val

aten = torch.ops.aten
_NOT = frozenset({aten.logical_not.default, aten.bitwise_not.default})
_AND = frozenset({aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor})
_OR = frozenset({aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor})
_WHERE = aten.where.self


def is_condition(value: object) -> bool:
    """Whether a value is a node that says yes or no: bool, one element."""
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(known, torch.Tensor) and known.dtype is torch.bool and known.numel() == 1


def conditions_of(graph: fx.Graph) -> list[fx.Node]:
    """The conditions that a graph selects by, in order of first use."""
    return list(dict.fromkeys(n.args[0] for n in graph.nodes if n.target is _WHERE and is_condition(n.args[0])))


class Facts:
    """Conditions whose value is known because that of one of them is given.

    Args:
        condition: bool, one element.
        holds: its value.
    """

    def __init__(self, condition: fx.Node, holds: bool) -> None:
        self._known: dict[fx.Node, bool | None] = {}
        self._given: dict[fx.Node, bool] = {}
        self._note(condition, holds)
        self._known.clear()

    def value(self, condition: Any) -> bool | None:
        """What a condition is; None: either."""
        if not is_condition(condition):
            return None
        if condition in self._given:
            return self._given[condition]
        if condition not in self._known:
            self._known[condition] = self._computed(condition)
        return self._known[condition]

    def chosen(self, node: fx.Node) -> fx.Node | None:
        """Which operand a node's value is equal to, laid out in memory as it may be; None: none that is known."""
        found = self._chosen(node)
        return found if isinstance(found, fx.Node) and _convertible(val(found), val(node)) else None

    def resolved(self, node: fx.Node) -> fx.Node:
        """The first node whose value, of the same type and layout, this one's is."""
        while (found := self.chosen(node)) is not None and same_type(val(found), val(node)):
            node = found
        return node

    def _note(self, condition: Any, holds: bool) -> None:
        """Notes a value and what follows from it for what it is computed from."""
        if not is_condition(condition) or condition in self._given:
            return
        self._given[condition] = holds
        target, args = condition.target, condition.args
        if target in _NOT:
            self._note(args[0], not holds)
        elif target in _AND or target in _OR:
            neutral = target in _AND  # and(True, x) is x, or(False, x) is x
            for one, other in (args[:2], args[1::-1]):
                if holds is neutral or self.value(other) is neutral:
                    self._note(one, holds)

    def _computed(self, condition: fx.Node) -> bool | None:
        target, args = condition.target, condition.args
        if target in _NOT:
            inner = self.value(args[0])
            return None if inner is None else not inner
        if target in _AND or target in _OR:
            neutral, values = target in _AND, [self.value(arg) for arg in args[:2]]
            if (not neutral) in values:
                return not neutral
            return neutral if values == [neutral, neutral] else None
        return None

    def _chosen(self, node: fx.Node) -> Any:
        if node.target is _WHERE:
            holds = self.value(node.args[0])
            return None if holds is None else node.args[1 if holds else 2]
        if node.target in _AND or node.target in _OR:
            neutral = node.target in _AND
            for one, other in (node.args[:2], node.args[1::-1]):
                if (known := self.value(one)) is not None:
                    return other if known is neutral else one
        return None


def same_type(one: Any, other: Any) -> bool:
    """Whether two fake tensors have the same dtype, shape and strides."""
    return _convertible(one, other) and one.shape == other.shape and one.stride() == other.stride()


def _convertible(one: Any, other: Any) -> bool:
    """Whether `one` becomes `other` by being broadcast and laid out anew."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)) or one.dtype is not other.dtype:
        return False
    same = one.shape == other.shape and one.stride() == other.stride()
    return same or (one.dim() <= other.dim() and other.is_contiguous())
