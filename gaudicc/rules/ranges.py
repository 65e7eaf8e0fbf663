"""The range of the values of a tensor, as far as the ops that made it say; asked for one tensor at a time."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from gaudicc.rules.bounded import ends
from gaudicc.rules.interval_calls import CASTS, IntervalCall, Known, held_by
from gaudicc.rules.interval_forms import FORMS
from gaudicc.rules.intervals import ALL, FLAG, INF, Interval

aten = torch.ops.aten
_CONDITIONS = (operator.ge, operator.eq, torch.sym_ite, aten.item.default, aten._local_scalar_dense.default)
"""What stands between a bool tensor and the check that it holds: `ite(item(t), 1, 0) >= 1`."""
_AT_MOST = {aten.le.Tensor: 0, aten.lt.Tensor: 1, aten.le.Scalar: 0, aten.lt.Scalar: 1}


def promises_of(graph: fx.Graph) -> dict[fx.Node, float]:
    """The most that tensors of no dims hold where the program goes on: what `torch._check` was told, and raises otherwise."""
    found: dict[fx.Node, float] = {}
    for check in graph.find_nodes(op="call_function", target=aten._assert_scalar.default):
        condition = check.args[0]
        while isinstance(condition, fx.Node) and condition.target in _CONDITIONS and not condition.kwargs:
            condition = condition.args[0]
        if isinstance(condition, fx.Node) and condition.target in _AT_MOST:
            held, limit = condition.args[:2]
            most = limit.args[0] if isinstance(limit, fx.Node) and limit.target is aten.scalar_tensor.default else limit
            if isinstance(held, fx.Node) and isinstance(most, int):
                found[held] = min(most - _AT_MOST[condition.target], found.get(held, INF))
    return found


@dataclass
class Ranges:
    """The smallest and the largest value that tensors of a graph can hold, NaN apart.

    Attributes:
        constants: placeholder name -> tensor, for what never changes.
        promised: tensor -> the most that the user says it holds.
    """

    constants: Mapping[str, torch.Tensor]
    promised: Mapping[fx.Node, float] = field(default_factory=dict)
    _known: dict[fx.Node, Known] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Interval:
        """Of one tensor; operands first, without recursion: graphs are deep."""
        waiting = [node]
        while waiting:
            missing = [arg for arg in self._read(waiting[-1]) if arg not in self._known]
            if missing:
                waiting += missing
                continue
            known = waiting.pop()
            self._known[known] = self._result(known)
        found: Interval = self._known[node]
        return found

    def _read(self, node: fx.Node) -> list[fx.Node]:
        followed = node.target in FORMS or node.target in CASTS or node.target is operator.getitem
        return node.all_input_nodes if followed else []

    def _result(self, node: fx.Node) -> Known:
        value, found = node.meta.get("val"), None
        if not isinstance(value, (torch.Tensor, tuple, list)):
            return _extent(value)
        if node.op != "call_function":
            found = held_by(self.constants[node.name]) if node.name in self.constants else None
        elif node.target is operator.getitem:
            whole, place = cast(tuple[fx.Node, int], node.args)
            source = self._known[whole]
            found = source if isinstance(source, Interval) else source[place]
        else:
            found = IntervalCall(node, lambda arg: self._known.get(arg, ALL), _extent).result()
        if found is None:
            found = ALL
        if isinstance(value, torch.Tensor) and isinstance(found, Interval):
            found = found.cut(FLAG) if value.dtype is torch.bool else found
            found = Interval(found.low, min(found.high, self.promised.get(node, INF)))
        return found


def _extent(size: Any) -> Interval:
    return Interval(*ends(size)) if isinstance(size, (int, torch.SymInt)) else ALL
