"""recognize-attention: SDPA, or attention written out, with or without repeated heads and sinks -> `gaudicc::attention`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.kernels import attention, sink_attention
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import argument, calls, same_sizes, through_casts, unrepeated
from gaudicc.rules.scores import MATMULS, Mask, by_hand, is_transposed, joined, spell_out_einsums, unmasked, unscaled
from gaudicc.rules.sinks import chosen_keys, is_cut, unshifted, without_sink

aten = torch.ops.aten
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class _Found:
    end: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    masks: tuple[Mask, ...]
    causal: bool
    scale: float
    sink: fx.Node | None = None


@dataclass(frozen=True)
class RecognizeAttention(GraphPass):
    """Recognises attention as one op over query heads and grouped key/value heads.

    On Gaudi, the split between MME and TPC and the fused kernel need to see attention whole, and so do the padding rules;
    `repeat_kv` would copy keys and values once per group. A sink, one more score per head that only the softmax sees, is a
    part of it, and so is the subtraction of a row's maximum, which a softmax does by itself. A row that hides all its keys by
    -inf is NaN in a softmax that is written out; it is zero here, as in PyTorch's own attention.

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
        for node in calls(rewriter.graph, aten.div.Tensor):
            if (source := by_hand(node)) is not None:
                rewriter.replace(node, rewriter.emit(aten.softmax.int, source, -1, like=node))
        spell_out_einsums(rewriter, _SOFTMAXES)
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
            _emit(rewriter, found)


def _emit(rewriter: Rewriter, found: _Found) -> None:
    q, end = found.q, found.end
    (k, repeats), (v, repeats_v) = unrepeated(found.k), unrepeated(found.v)
    if repeats != repeats_v:
        k, v = found.k, found.v
    mask = joined(rewriter, found.masks, like=end)
    flat = val(q).dim() == 3  # one head
    if flat:
        q, k, v = (rewriter.emit(aten.unsqueeze.default, node, 1, like=end) for node in (q, k, v))
        if mask is not None and val(mask).dim() == 3:
            mask = rewriter.emit(aten.unsqueeze.default, mask, 1, like=end)
    args = (q, k, v, mask, found.causal, found.scale)
    if found.sink is None:
        made = rewriter.emit(attention, *args, like=end)
        rewriter.replace(end, rewriter.emit(aten.squeeze.dim, made, 1, like=end) if flat else made)
    else:
        sink = rewriter.emit(aten.view.default, found.sink, [-1], like=end)
        rewriter.replace(end, rewriter.emit(sink_attention, *args, sink, like=end))


def _misfit(found: _Found) -> str | None:
    """Why shapes or dtypes are not those of attention: what broadcasts in a matmul is not always a group of heads."""
    q, k, v = (val(node) for node in (found.q, found.k, found.v))
    rank = q.dim()
    if {rank, k.dim(), v.dim()} not in ({3}, {4}):
        return f"it has ranks {rank}, {k.dim()} and {v.dim()}, not 3 or 4"
    if not same_sizes(k.shape[:-1], v.shape[:-1]) or not same_sizes(k.shape[:1], q.shape[:1]):
        return "queries, keys and values differ in batch, heads or length"
    if rank == 4 and not same_sizes(k.shape[1:2], q.shape[1:2]) and not _grouped(q.shape[1], k.shape[1]):
        return f"{q.shape[1]} query heads read {k.shape[1]} key heads"
    if not same_sizes(val(found.end).shape, (*q.shape[:-1], v.shape[-1])):
        return "the mask widens the scores"
    for mask in found.masks:
        # Added to scores, True is 1; as the mask of a fused call it lets a key through.
        if not val(mask.node).dtype.is_floating_point and (mask.shows is None or val(mask.node).dtype != torch.bool):
            return f"its mask is {val(mask.node).dtype}"
    return None


def _grouped(heads: Any, groups: Any) -> bool:
    return isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups == 0


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
    masks = () if mask is None else (Mask(mask, True if val(mask).dtype == torch.bool else None),)
    return _Found(node, q, k, v, masks, bool(argument(node, 5, "is_causal", False)), float(scale))


def _written_out(softmax: fx.Node) -> _Found | str | None:
    """matmul(softmax(matmul(q, k^T) * scale + mask), v), the scores rounded or not around the softmax.

    With a sink: matmul(softmax(cat(scores, sink))[..., :-1], v).
    """
    weights, kept = softmax, None
    while len(weights.users) == 1 and (_passes_on(user := next(iter(weights.users))) or is_cut(user)):
        weights, kept = user, user if is_cut(user) else kept
    end = next(iter(weights.users)) if len(weights.users) == 1 else None
    if end is None or end.target not in MATMULS or end.args[0] is not weights:
        return None
    rank = val(softmax).dim()
    if rank not in (3, 4) or argument(softmax, 1, "dim") not in (-1, rank - 1):
        return f"the softmax is over dim {argument(softmax, 1, 'dim')} of rank {rank}"
    scores, sink = through_casts(softmax.args[0]), None  # type: ignore[arg-type]
    masks: tuple[Mask, ...]
    if kept is not None:
        split = without_sink(scores, kept)
        if split is None:
            return "it drops weights that are not those of a sink"
        scores, sink = through_casts(split[0]), split[1]
    if sink is not None and (chosen := chosen_keys(scores)) is not None:
        scores, masks = chosen[0], (Mask(*chosen[1:]),)
    else:
        found = unmasked(unshifted(scores))
        if isinstance(found, str):
            return found
        scores, masks = found
    return _of_product(end, scores, masks, sink)


def _of_product(end: fx.Node, scores: fx.Node, masks: tuple[Mask, ...], sink: fx.Node | None) -> _Found | str:
    """The scores before masks: a product of queries and transposed keys, times a number."""
    product, scale = unscaled(through_casts(scores))
    product = through_casts(product)
    if product.target not in MATMULS:
        return f"its scores come from {product.target}, not from a matmul"
    q, keys = product.args
    keys, factor = unscaled(keys) if isinstance(keys, fx.Node) else (None, 1.0)
    if not isinstance(keys, fx.Node) or not is_transposed(keys):
        return "its keys are not transposed"
    if val(product).dtype != val(end).dtype:
        return "its scores are not of the output's dtype"
    return _Found(end, q, keys.args[0], end.args[1], masks, False, scale * factor, sink)  # type: ignore[arg-type]


def _passes_on(user: fx.Node) -> bool:
    """Whether a node only rounds or copies the weights, or is a dropout that does nothing."""
    if user.target is aten.dropout.default:
        return not argument(user, 2, "train")
    return user.target in (aten.to.dtype, aten.clone.default)  # an idle dropout is exported as a copy
