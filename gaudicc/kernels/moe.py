"""`gaudicc::moe`: a mixture of gated experts, from the router's choice to the sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gaudicc.kernels.grouped import OfBlocks, multiplied, plain_experts
from gaudicc.kernels.registry import define

aten = torch.ops.aten
ACTIVATIONS: dict[str, Any] = {"silu": aten.silu.default, "gelu": aten.gelu.default, "relu": aten.relu.default}
"""What stands between the two products of an expert, by the name that Gaudi's kernel knows it by."""


def _reference(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    total = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, weights.dtype))
    for expert in experts.unique().tolist():
        token, slot = (experts == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ gate_up[expert].t()).chunk(2, -1)
        rows = (ACTIVATIONS[activation](gate) * up) @ down[expert].t()
        total.index_add_(0, token, rows * weights[token, slot].unsqueeze(1))
    return total.to(x.dtype)


def plain_moe(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """The same in plain ATen of static sizes, whatever the router chooses."""
    (tokens, chosen), width = experts.shape, x.shape[1]
    group = _laid(experts, [tokens * chosen])
    half = down.shape[2]

    def expert(blocks: Tensor, of: OfBlocks) -> Iterator[Tensor]:
        inner = multiplied(blocks, of(gate_up))
        yield inner
        last = of(down)
        gate, up = aten.slice.Tensor(inner, 2, 0, half), aten.slice.Tensor(inner, 2, half, 2 * half)
        yield multiplied(aten.mul.Tensor(ACTIVATIONS[activation](gate), up), last)

    result = plain_experts(x, group, gate_up.shape[0], expert) if tokens * chosen else x.new_zeros(0, width)
    weighted = aten.mul.Tensor(result, _laid(weights, [tokens * chosen, 1]))
    total: Tensor = aten.sum.dim_IntList(aten.view.default(weighted, [tokens, chosen, width]), [1])
    return total if total.dtype == x.dtype else aten._to_copy.default(total, dtype=x.dtype)


def _laid(x: Tensor, sizes: list[int]) -> Tensor:
    # `reshape` is a composite, which no pass may bring back once they are decomposed.
    whole = x if x.is_contiguous() else aten.clone.default(x, memory_format=torch.contiguous_format)
    result: Tensor = aten.view.default(whole, sizes)
    return result


def _fake(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape)


moe = define(
    "moe(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down, str activation) -> Tensor",
    _reference,
    _fake,
)
"""The sum over a token's experts of weight * down(act(gate(x)) * up(x)).

Args:
    x: `[tokens, width]`, floating point.
    experts: int64 `[tokens, k]`, from 0 to the number of experts - 1.
    weights: `[tokens, k]`, floating point.
    gate_up: `[experts, 2 * inner, width]`, of x's dtype: the rows of the gate, then those of up.
    down: `[experts, width, inner]`, of x's dtype.
    activation: a key of `ACTIVATIONS`; gelu is the exact one.

Returns:
    `[tokens, width]` of x's dtype.
"""
