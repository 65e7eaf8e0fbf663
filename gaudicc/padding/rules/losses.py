"""Losses over classes: pads are ignored as targets that the model says to ignore are."""

from __future__ import annotations

from typing import Any

from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import Pads, constant, mapped
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.alignment import aligned
from gaudicc.padding.rules.rule import Rule, operand


def _nll_loss(p: Padder, node: fx.Node) -> Claims:
    """(log-probabilities [N, C, ...], target [N, ...], weight, reduction, ignored target)."""
    x, target, ignored = operand(node, 0), operand(node, 1), operand(node, 4)
    rank = val(x).dim()
    if isinstance(ignored, fx.Node):
        raise p.refuse("the ignored target is computed")
    if rank > 1:
        x = p.compact(x, 1)  # a target counts classes
    rows = [dim for dim in range(rank) if dim != 1] if rank > 1 else []
    for place, dim in enumerate(rows):
        (x, target), _ = aligned(p, [x, target], [dim, place])
    target = p.fill(target, range(len(rows)), ignored, "its pads hold the ignored target")
    p.set_arg(0, x)
    p.set_arg(1, target)
    loss: list[Any] = [mapped(d, lambda c: constant(0)) for d in p.pads(target).dims]
    return Pads(tuple(loss) if val(node)[0].dim() else ()), Pads(())


RULES = (
    Rule(
        (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default),
        "targets that are ignored",
        "0 without a reduction",
        _nll_loss,
    ),
)
