"""recognize-attention: SDPA, or attention written out, with or without repeated heads and sinks -> `gaudicc::attention`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import fx

from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.kernels import attention, sink_attention
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import argument, calls, same_sizes, through_casts, unrepeated
from gaudicc.rules.sinks import chosen_keys, is_cut, without_sink

aten = torch.ops.aten
_MATMULS = (aten.matmul.default, aten.bmm.default)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class _Found:
    end: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    causal: bool
    scale: float
    lets_through: bool | None = None  # what True says in a mask of bools; None: such a mask is a number
    sink: fx.Node | None = None


@dataclass(frozen=True)
class RecognizeAttention(GraphPass):
    """Recognises attention as one op over query heads and grouped key/value heads.

    On Gaudi, the split between MME and TPC and the fused kernel need to see attention whole, and so do the padding rules;
    `repeat_kv` would copy keys and values once per group. A sink, one more score per head that only the softmax sees, is a
    part of it, and so is the subtraction of a row's maximum, which a softmax does by itself.

        %3 = aten.reshape(aten.expand(aten.unsqueeze(%k, 2), ...), ...)
        %5 = aten.scaled_dot_product_attention(%q, %3, %4, %mask)    ->    %5 = gaudicc.attention(%q, %k, %v, %mask, False, 0.25)
        %9 = aten.matmul(aten.slice(aten.softmax(aten.cat([%scores, %sinks], -1), -1), 3, 0, -1), %v)
        ->    %9 = gaudicc.sink_attention(%q, %k, %v, %mask, False, 0.125, %sink)

    Refuses dropout, ranks other than 4, a softmax over another dim than the keys, operands that broadcast otherwise than
    groups of heads do, added masks that are no floats, and a cut of the weights that drops other columns than a sink; each near
    miss is noted in the trace.
    """

    name: ClassVar[str] = "recognize-attention"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Fused calls first, then every softmax between two matmuls."""
        for node in calls(rewriter.graph, aten.scaled_dot_product_attention.default):
            yield from self._apply(rewriter, node, _fused(node))
        for node in calls(rewriter.graph, *_SOFTMAXES):
            yield from self._apply(rewriter, node, _written_out(node))

    def _apply(self, rewriter: Rewriter, node: fx.Node, found: _Found | str | None) -> Iterator[str]:
        if isinstance(found, str):
            yield f"{node.name} is no attention: {found}"
        elif found is not None and (misfit := _misfit(found)):
            yield f"{node.name} is no attention: {misfit}"
        elif found is not None:
            (k, repeats), (v, repeats_v) = unrepeated(found.k), unrepeated(found.v)
            if repeats != repeats_v:
                k, v = found.k, found.v
            mask = found.mask
            if mask is not None and found.lets_through is False:
                mask = rewriter.emit(aten.logical_not.default, mask, like=found.end)
            args = (found.q, k, v, mask, found.causal, found.scale)
            if found.sink is None:
                rewriter.replace(found.end, rewriter.emit(attention, *args, like=found.end))
            else:
                sink = rewriter.emit(aten.view.default, found.sink, [-1], like=found.end)
                rewriter.replace(found.end, rewriter.emit(sink_attention, *args, sink, like=found.end))


def _misfit(found: _Found) -> str | None:
    """Why shapes or dtypes are not those of attention: what broadcasts in a matmul is not always a group of heads."""
    q, k, v = (val(node) for node in (found.q, found.k, found.v))
    if {q.dim(), k.dim(), v.dim()} != {4}:
        return f"it has ranks {q.dim()}, {k.dim()} and {v.dim()}, not 4"
    if not same_sizes(k.shape[:3], v.shape[:3]) or not same_sizes(k.shape[:1], q.shape[:1]):
        return "queries, keys and values differ in batch, heads or length"
    if not same_sizes(k.shape[1:2], q.shape[1:2]) and not _grouped(q.shape[1], k.shape[1]):
        return f"{q.shape[1]} query heads read {k.shape[1]} key heads"
    if not same_sizes(val(found.end).shape, (*q.shape[:3], v.shape[3])):
        return "the mask widens the scores"
    if found.mask is not None and not _is_mask(val(found.mask), found.lets_through):
        return f"its mask is {val(found.mask).dtype}"
    return None


def _grouped(heads: Any, groups: Any) -> bool:
    return isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups == 0


def _is_mask(mask: torch.Tensor, lets_through: bool | None) -> bool:
    # Added to scores, True is 1; as the mask of a fused call it lets a key through.
    return mask.dtype.is_floating_point or (lets_through is not None and mask.dtype == torch.bool)


def _fused(node: fx.Node) -> _Found | str:
    q, k, v = node.args[:3]
    assert isinstance(q, fx.Node), "the schema says tensor"
    assert isinstance(k, fx.Node), "the schema says tensor"
    assert isinstance(v, fx.Node), "the schema says tensor"
    if argument(node, 4, "dropout_p", 0.0):
        return "it drops out"
    scale = argument(node, 6, "scale")
    if scale is None:
        scale = 1.0 / math.sqrt(val(q).shape[-1])
    if not isinstance(scale, (int, float)):
        return "its scale is not a number"
    mask = argument(node, 3, "attn_mask")
    return _Found(node, q, k, v, mask, bool(argument(node, 5, "is_causal", False)), float(scale), lets_through=True)


def _written_out(softmax: fx.Node) -> _Found | str | None:
    """matmul(softmax(matmul(q, k^T) * scale + mask), v), the scores rounded or not around the softmax.

    With a sink: matmul(softmax(cat(scores, sink))[..., :-1], v).
    """
    weights, kept = softmax, None
    while len(weights.users) == 1 and (_passes_on(user := next(iter(weights.users))) or is_cut(user)):
        weights, kept = user, user if is_cut(user) else kept
    end = next(iter(weights.users)) if len(weights.users) == 1 else None
    if end is None or end.target not in _MATMULS or end.args[0] is not weights:
        return None
    if val(softmax).dim() != 4 or argument(softmax, 1, "dim") not in (-1, 3):
        return f"the softmax is over dim {argument(softmax, 1, 'dim')} of rank {val(softmax).dim()}"
    scores, sink = through_casts(softmax.args[0]), None  # type: ignore[arg-type]
    if kept is not None:
        split = without_sink(scores, kept)
        if split is None:
            return "it drops weights that are not those of a sink"
        scores, sink = through_casts(split[0]), split[1]
    mask: Any = None
    lets_through = None
    if sink is not None and (chosen := chosen_keys(scores)) is not None:
        scores, mask, lets_through = chosen
    elif (
        scores.target is aten.add.Tensor and all(isinstance(arg, fx.Node) for arg in scores.args) and not scores.kwargs
    ):
        scores, mask = _scores_and_mask(*scores.args)  # type: ignore[arg-type]
    product, scale = _unscaled(through_casts(scores))
    product = through_casts(product)
    if product.target not in _MATMULS:
        return f"its scores come from {product.target}, not from a matmul"
    q, keys = product.args
    if not isinstance(keys, fx.Node) or not _is_transposed(keys):
        return "its keys are not transposed"
    if val(product).dtype != val(end).dtype:
        return "its scores are not of the output's dtype"
    return _Found(end, q, keys.args[0], end.args[1], mask, False, scale, lets_through, sink)  # type: ignore[arg-type]


def _unscaled(scores: fx.Node) -> tuple[fx.Node, float]:
    """What is multiplied or divided by a number, and the factor."""
    number = scores.args[1] if scores.target in (aten.mul.Tensor, aten.div.Tensor) else None
    if not isinstance(number, (int, float)) or number == 0:
        return scores, 1.0
    return scores.args[0], float(number if scores.target is aten.mul.Tensor else 1.0 / number)  # type: ignore[return-value]


def _is_transposed(keys: fx.Node) -> bool:
    """Whether a tensor of rank 4 is another one with its last two dims swapped."""
    if keys.target is aten.transpose.int:
        return {dim % val(keys).dim() for dim in cast(tuple[int, int], keys.args[1:])} == {2, 3}
    if keys.target is aten.permute.default:
        return [dim % val(keys).dim() for dim in cast(list[int], keys.args[1])] == [0, 1, 3, 2]
    return keys.target is aten.mT.default


def _passes_on(user: fx.Node) -> bool:
    """Whether a node only rounds or copies the weights, or is a dropout that does nothing."""
    if user.target is aten.dropout.default:
        return not argument(user, 2, "train")
    return user.target in (aten.to.dtype, aten.clone.default)  # an idle dropout is exported as a copy


def _scores_and_mask(a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    computed = (*_MATMULS, aten.mul.Tensor, aten.div.Tensor)
    return (b, a) if b.target in _MATMULS and a.target not in computed else (a, b)
