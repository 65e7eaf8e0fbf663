"""Sinks of attention as models write them: one more column of scores, which only the softmax sees."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rules.match import argument, aten, same_sizes, through_casts

_NOT = (aten.bitwise_not.default, aten.logical_not.default)
_FILLED = (aten.full.default, aten.full_like.default, aten.scalar_tensor.default)


def is_cut(node: fx.Node) -> bool:
    """Whether a node takes a range of the last dim."""
    return node.target is aten.slice.Tensor and argument(node, 1, "dim", 0) in (-1, val(node).dim() - 1)


def without_sink(logits: fx.Node, kept: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The scores of the keys, and of the sink as `[1, heads, 1, 1]`, of a softmax that is cut behind.

    Args:
        logits: what the softmax sees, with or without its maximum subtracted.
        kept: the cut of the softmax, or of what rounds it.

    Returns:
        None if what is cut off is no column that each head has one number for.
    """
    joined = through_casts(unshifted(logits))
    if joined.target is not aten.cat.default or argument(joined, 1, "dim", 0) not in (-1, 3):
        return None
    parts = cast(list[fx.Node], joined.args[0])
    first = argument(kept, 2, "start") or 0
    if len(parts) != 2 or first not in (0, 1) or argument(kept, 4, "step", 1) != 1:
        return None
    scores, column = parts if first == 0 else reversed(parts)
    if not same_sizes(val(column).shape[-1:], (1,)) or not same_sizes(val(kept).shape, val(scores).shape):
        return None
    sink = _of_heads(column)
    return None if sink is None else (scores, sink)


def unshifted(logits: fx.Node) -> fx.Node:
    """Looks through the subtraction of a row's maximum, which a softmax does by itself."""
    source = through_casts(logits)
    if source.target is not aten.sub.Tensor or len(source.args) != 2 or source.kwargs:
        return logits
    plain, top = source.args
    if not isinstance(plain, fx.Node) or not isinstance(top, fx.Node):
        return logits
    made = top.args[0] if top.target is operator.getitem and top.args[1] == 0 else top
    if (
        not isinstance(made, fx.Node)
        or made.target not in (aten.max.dim, aten.amax.default)
        or made.args[0] is not plain
    ):
        return logits
    dims = argument(made, 1, "dim", ())
    along = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    last = val(plain).dim() - 1
    return plain if along in ([-1], [last]) and argument(made, 2, "keepdim", False) else logits


def _of_heads(column: fx.Node) -> fx.Node | None:
    """What a column repeats for every row and sequence, `[1, heads, 1, 1]`."""
    node = through_casts(column)
    while not same_sizes(val(node).shape, (1, val(column).shape[1], 1, 1)):
        if node.target not in (aten.expand.default, aten.repeat.default, aten.clone.default):
            return None
        node = through_casts(cast(fx.Node, node.args[0]))
        if val(node).dim() != 4:
            return None
    return node


def chosen_keys(scores: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """(Scores, mask, whether True lets a key through) of scores that are replaced by the lowest number where a mask says so.

    Only beside a sink is that as good as minus infinity: a row without any key would else be the mean of all values.
    """
    filled = filled_keys(scores)
    return filled[:3] if filled and filled[3] <= torch.finfo(val(scores).dtype).min else None


def filled_keys(scores: fx.Node) -> tuple[fx.Node, fx.Node, bool, float] | None:
    """(Scores, mask, whether True lets a key through, the number) of scores that a number replaces where a mask says so."""
    if scores.target is aten.where.self:
        mask, source, fill = cast(Any, scores.args)
        filled = fill.target in _FILLED and argument(
            fill, 0 if fill.target is aten.scalar_tensor.default else 1, "fill_value"
        )
        return (source, mask, True, filled) if _is_number(filled) and _spans(source, scores) else None
    if scores.target is aten.masked_fill.Scalar:
        source, mask, number = cast(Any, scores.args)
        hides = mask.target not in _NOT
        mask = mask if hides else mask.args[0]
        fits = _is_number(number) and _spans(source, scores) and val(mask).dtype == torch.bool
        return (source, mask, not hides, float(number)) if fits else None
    return None


def _is_number(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool)


def _spans(source: fx.Node, scores: fx.Node) -> bool:
    same = same_sizes(val(source).shape, val(scores).shape) and val(source).dtype == val(scores).dtype
    return same and val(scores).dtype.is_floating_point
