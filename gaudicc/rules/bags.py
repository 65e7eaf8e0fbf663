"""Rules for embeddings: bags of rows, and the training flags of `embedding`."""

from __future__ import annotations

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
SUM, MEAN, MAX = range(3)


def embedding(weight: Tensor, indices: Tensor, *args: object) -> Tensor:
    """The rows; padding, frequency and sparsity speak of gradients only."""
    result: Tensor = aten.embedding(weight, indices)
    return result


def _training(
    weight: Tensor, indices: Tensor, padding: int = -1, scaled: bool = False, sparse: bool = False
) -> str | None:
    return None if scaled or sparse else "it has no training flag"


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor]:
    """Sums, means or maxima of rows of `weight`, by bags that `offsets` divide `indices` into; the first result only."""
    bags = offsets.shape[0] - include_last_offset
    starts = aten.slice.Tensor(offsets, 0, 0, bags)
    order = aten.arange.start(0, indices.shape[0], dtype=offsets.dtype, device=offsets.device)
    bag = aten.add.Tensor(aten.searchsorted.Tensor(starts, order, out_int32=True, right=True), -1)
    rows = aten.index_select(weight, 0, indices)
    if per_sample_weights is not None:
        rows = aten.mul.Tensor(rows, aten.unsqueeze(per_sample_weights, -1))
    counted = aten.full([indices.shape[0]], 1, dtype=torch.float32, device=weight.device)
    if padding_idx >= 0:
        padding = aten.eq.Scalar(indices, padding_idx)
        counted = aten.where.self(padding, aten.full_like(counted, 0), counted)
        filler = float("-inf") if mode == MAX else 0.0
        rows = aten.where.self(aten.unsqueeze(padding, -1), aten.full_like(rows, filler), rows)
    counts = aten.index_add(aten.full([bags], 0, dtype=torch.float32, device=weight.device), 0, bag, counted)
    counts = aten._to_copy(aten.unsqueeze(counts, -1), dtype=weight.dtype)
    zeros = aten.full([bags, weight.shape[1]], 0, dtype=weight.dtype, device=weight.device)
    if mode == MAX:
        wide = aten.expand(aten.unsqueeze(aten._to_copy(bag, dtype=torch.int64), -1), list(rows.shape))
        best = aten.scatter_reduce.two(aten.full_like(zeros, float("-inf")), 0, wide, rows, "amax")
        return (aten.where.self(aten.eq.Scalar(counts, 0), zeros, best),)
    sums = aten.index_add(zeros, 0, bag, rows)
    return (aten.div.Tensor(sums, aten.clamp(counts, 1)) if mode == MEAN else sums,)


def _float_bags(weight: Tensor, indices: Tensor, offsets: Tensor, *args: object) -> str | None:
    if not weight.dtype.is_floating_point or weight.dtype.itemsize > 4:
        return "its rows are no float32, bfloat16 or float16"
    return None if offsets.shape[0] else "it has no bags"


RULES = (
    Rule(
        "embedding-in-inference", (aten.embedding.default,), embedding, check=_training, cost="nothing: drops training flags",
    ),
    Rule(
        "embedding-bag", (aten._embedding_bag_forward_only.default, aten._embedding_bag.default), embedding_bag,
        check=_float_bags, numerics=Numerics.ROUNDING,
        cost="all rows that are looked up are written once, before they are added up",
    ),
)  # fmt: skip
