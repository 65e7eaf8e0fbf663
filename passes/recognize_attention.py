"""recognize-attention: SDPA, or attention written out, with or without repeated heads and sinks -> `gaudicc::attention`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from gaudicc.rules.scores import (
    MATMULS,
    Mask,
    Scores,
    by_hand,
    is_joined,
    is_split,
    is_transposed,
    joined,
    product,
    spell_out_einsums,
    unmasked,
    unscaled,
)
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
    split: fx.Node | None = None


@dataclass(frozen=True)
class RecognizeAttention(GraphPass):
    """Recognises attention as one op over query heads and grouped key/value heads.

    On Gaudi, the split between MME and TPC and the fused kernel need to see attention whole, and so do the padding rules;
    `repeat_kv` would copy keys and values once per group. A sink, one more score per head that only the softmax sees, is a
    part of it, and so is the subtraction of a row's maximum, which a softmax does by itself. A row that hides all its keys by
    -inf is NaN in a softmax that is written out; it is zero here, as in PyTorch's own attention. Batch
    and heads may be one dim of the products, as `bmm` and `baddbmm` want them.

        %3 = aten.reshape(aten.expand(aten.unsqueeze(%k, 2), ...), ...)
        %5 = aten.scaled_dot_product_attention(%q, %3, %4, %mask)    ->    %5 = gaudicc.attention(%q, %k, %v, %mask, False, 0.25)
        %9 = aten.matmul(aten.slice(aten.softmax(aten.cat([%scores, %sinks], -1), -1), 3, 0, -1), %v)
        ->    %9 = gaudicc.sink_attention(%q, %k, %v, %mask, False, 0.125, %sink)

    Refuses dropout, a softmax over another dim than the keys, scores that a tanh caps, weights that are read elsewhere too,
    operands that broadcast otherwise than groups of heads do, added masks that are no floats, and a cut of the weights that
    drops other columns than a sink; each near miss is noted in the trace.
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
    flat = val(q).dim() == 3
    masks, parts = found.masks, [q, found.k, found.v]
    if flat:
        parts = [_apart(rewriter, node, found) for node in parts]
        masks = tuple(
            replace(mask, node=_apart(rewriter, mask.node, found)) if mask.flat or found.split is None else mask
            for mask in masks
        )
    q = parts[0]
    (k, repeats), (v, repeats_v) = (unrepeated(node) for node in parts[1:])
    if repeats != repeats_v:
        k, v = parts[1:]
    args = (q, k, v, joined(rewriter, masks, like=end), found.causal, found.scale)
    if found.sink is None:
        made = rewriter.emit(attention, *args, like=end)
    else:
        sink = rewriter.emit(aten.view.default, found.sink, [-1], like=end)
        made = rewriter.emit(sink_attention, *args, sink, like=end)
    if flat:
        made = rewriter.emit(aten.flatten.using_ints, made, 0, 1, like=end)
    rewriter.replace(end, made)


def _apart(rewriter: Rewriter, node: fx.Node, found: _Found) -> fx.Node:
    """`[batch * heads, ...]` as `[batch, heads, ...]`: with one head, if the model never has them apart."""
    if val(node).dim() != 3:
        return node
    if found.split is None or same_sizes(val(node).shape[:1], (1,)):
        return rewriter.emit(aten.unsqueeze.default, node, 1, like=found.end)
    written: Any = found.split.args[1]
    sizes = [size if isinstance(size, int) else written[dim] for dim, size in enumerate(val(found.split).shape[:2])]
    return rewriter.emit(aten.unflatten.int, node, 0, sizes, like=found.end)


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
    while len(weights.users) == 1 and (
        _passes_on(user := next(iter(weights.users))) or is_cut(user) or is_joined(user)
    ):
        weights, kept = user, user if is_cut(user) else kept
    readers = [user for user in weights.users if user.target in MATMULS or is_joined(user)]
    if len(weights.users) > 1 and readers:
        return "its weights are read elsewhere too"
    end = readers[0] if readers else None
    if end is None or end.args[0] is not weights:
        return None
    rank = val(softmax).dim()
    if rank not in (3, 4) or argument(softmax, 1, "dim") not in (-1, rank - 1):
        return f"the softmax is over dim {argument(softmax, 1, 'dim')} of rank {rank}"
    scores, sink = through_casts(softmax.args[0]), None  # type: ignore[arg-type]
    if kept is not None:
        split = without_sink(scores, kept)
        if split is None:
            return "it drops weights that are not those of a sink"
        scores, sink = through_casts(split[0]), split[1]
    if sink is not None and (chosen := chosen_keys(scores)) is not None:
        return _of_product(end, Scores(chosen[0], (Mask(*chosen[1:]),)), sink)
    found = unmasked(unshifted(scores))
    if isinstance(found, str):
        return found
    return _of_product(end, found, sink)


def _of_product(end: fx.Node, scores: Scores, sink: fx.Node | None) -> _Found | str:
    """The scores before masks: a product of queries and transposed keys, times a number."""
    source, scale = unscaled(through_casts(scores.node))
    source, split = through_casts(source), scores.split
    if split is None and is_split(source):
        source, split = through_casts(cast(fx.Node, source.args[0])), source
    found = product(source)
    if isinstance(found, str):
        return found
    q, keys, alpha, added = found
    if added is not None and scale != 1.0:
        return "what is added to its scores is multiplied with them"
    keys, factor = unscaled(keys) if isinstance(keys, fx.Node) else (None, 1.0)
    if not isinstance(keys, fx.Node) or not is_transposed(keys):
        return "its keys are not transposed"
    if val(source).dtype != val(end).dtype:
        return "its scores are not of the output's dtype"
    masks = scores.masks if added is None else (Mask(added, flat=split is not None), *scores.masks)
    k, v = cast(tuple[fx.Node, fx.Node], (keys.args[0], end.args[1]))
    return _Found(end, q, k, v, masks, False, scale * alpha * factor, sink, split)


def _passes_on(user: fx.Node) -> bool:
    """Whether a node only rounds or copies the weights, or is a dropout that does nothing."""
    if user.target is aten.dropout.default:
        return not argument(user, 2, "train")
    return user.target in (aten.to.dtype, aten.clone.default)  # an idle dropout is exported as a copy
