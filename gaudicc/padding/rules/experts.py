"""Products of rows with the weight of their group: rows are apart from each other, pads go to group 0 and stay pads."""

from __future__ import annotations

from typing import Any

from torch import fx

from gaudicc.kernels import grouped_linear
from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, mapped, normal
from gaudicc.padding.padder import Claims, Padder
from gaudicc.padding.rules.indexing import safe_index
from gaudicc.padding.rules.rule import Rule, operand


def _grouped_linear(p: Padder, node: fx.Node) -> Claims:
    rows: Any = operand(node, 0)
    weight, group = p.pads(operand(node, 1)), operand(node, 2)
    if p.pads(rows).padded(1) or any(weight.padded(dim) for dim in range(3)):
        raise p.refuse("a dynamic number or width of experts")
    if p.pads(rows).sizes(0) != p.pads(group).sizes(0):
        rows, group = p.compact(rows, 0), p.compact(group, 0)
    group = safe_index(p, group, val(operand(node, 1)).shape[0])
    p.set_arg(0, rows)
    p.set_arg(2, group)
    finite = all(c.finite for dim in range(3) for c in weight.contents(dim))
    made = mapped(p.pads(rows).dims[0], lambda c: FINITE if finite and c.finite else GARBAGE)
    return Pads((normal(made, val(node).dtype), p.dim(val(node).shape[1])))


RULES = (Rule((grouped_linear,), "0 in the pads of the group", "finite where the row was", _grouped_linear),)
