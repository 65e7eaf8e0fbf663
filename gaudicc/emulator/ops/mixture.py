"""Mixture of experts, and the product with masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu,
}  # fmt: skip


def mixture_of_experts(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
) -> Tensor:
    """The sum over a token's experts of weight * (act(x w1) * (x w2)) w3.

    Args:
        hidden_states: `[tokens, hidden]`.
        expert_routing_table: `[tokens, k]`, numbers of experts.
        router_weights: `[tokens, k]`.
        w1: per expert `[hidden, inner]`; the other way round when permuted.
        w2: like w1.
        w3: per expert `[inner, hidden]`.
        permuted_weights: weights are transposed.
        activation: gelu, relu or silu.
        experts_min: number of the first expert given.
        experts_max: number of the last one; choices outside are left out.
    """
    act = _ACTIVATIONS[activation]
    total = torch.zeros_like(hidden_states, dtype=torch.float32)
    wide = hidden_states.to(torch.float32)
    for expert in range(experts_min, experts_max + 1):
        weights = [each[expert - experts_min].to(torch.float32) for each in (w1, w2, w3)]
        gate, up, down = (weight.t() if permuted_weights else weight for weight in weights)
        share = (router_weights.to(torch.float32) * (expert_routing_table == expert)).sum(-1, keepdim=True)
        total += share * (act(wide @ gate) * (wide @ up)) @ down
    return total.to(hidden_states.dtype)


def mixture_measured(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
    measurement_mode: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same, and per expert the largest value that would enter w3 for any token, in the input's dtype."""
    rest = (permuted_weights, activation, experts_min, experts_max)
    result = mixture_of_experts(hidden_states, expert_routing_table, router_weights, w1, w2, w3, *rest)
    largest = []
    for gate, up in zip(w1, w2, strict=True):
        inner = [hidden_states @ (weight.t() if permuted_weights else weight) for weight in (gate, up)]
        largest.append((_ACTIVATIONS[activation](inner[0]) * inner[1]).amax())
    return result, torch.stack(largest)


def mixture_fused(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
) -> Tensor:
    """The same with w1 and w2 in one matrix."""
    w1, w2 = _halves(w12, permuted_weights)
    rest = (permuted_weights, activation, experts_min, experts_max)
    return mixture_of_experts(hidden_states, expert_routing_table, router_weights, w1, w2, w3, *rest)


def mixture_fused_measured(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
    measurement_mode: bool = True,
) -> tuple[Tensor, Tensor]:
    """Both at once."""
    w1, w2 = _halves(w12, permuted_weights)
    rest = (permuted_weights, activation, experts_min, experts_max, measurement_mode)
    return mixture_measured(hidden_states, expert_routing_table, router_weights, w1, w2, w3, *rest)


def _halves(w12: Sequence[Tensor], permuted: bool) -> tuple[list[Tensor], list[Tensor]]:
    halves = [weight.chunk(2, 0 if permuted else 1) for weight in w12]
    return [half[0] for half in halves], [half[1] for half in halves]


def masked_batch_gemm(a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor, trans_a: bool, trans_b: bool) -> Tensor:
    """A b + mask_a mask_b."""
    left = [each.transpose(-2, -1) if trans_a else each for each in (a, mask_a)]
    right = [each.transpose(-2, -1) if trans_b else each for each in (b, mask_b)]
    return torch.matmul(left[0], right[0]) + torch.matmul(left[1], right[1])


_HEAD = "(Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, "
_TAIL = ", Tensor[] w3, bool permuted_weights, str activation, int experts_min, int experts_max"
_MEASURED = f"{_TAIL}, bool measurement_mode) -> (Tensor, Tensor)"

OPS: dict[str, Callable[..., Any]] = {
    f"mixture_of_experts{_HEAD}Tensor[] w1, Tensor[] w2{_TAIL}) -> Tensor": mixture_of_experts,
    f"mixture_of_experts.fused_weights{_HEAD}Tensor[] w12{_TAIL}) -> Tensor": mixture_fused,
    f"mixture_of_experts.fp8_measurement{_HEAD}Tensor[] w1, Tensor[] w2{_MEASURED}": mixture_measured,
    f"mixture_of_experts.fp8_measurement_fused_weights{_HEAD}Tensor[] w12{_MEASURED}": mixture_fused_measured,
    "masked_batch_gemm(Tensor a, Tensor b, Tensor mask_a, Tensor mask_b, bool trans_a, bool trans_b) -> Tensor": (
        masked_batch_gemm
    ),
}
