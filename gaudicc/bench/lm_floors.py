"""What this machine can do at most for the linears of a model: the same products alone, each in its fastest layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaudicc.bench.turns import Turn, Work, take_turns
from gaudicc.runtime.cpu_calls import below_autograd, can_pack, pack_linear, packed_linear


@dataclass(frozen=True, slots=True)
class Floors:
    """Floors of one decode step and one prefill.

    Attributes:
        decode: every weight times one vector, by rows, by columns or packed, whichever is faster for the whole model.
        prefill: every weight but the head's times `prompt` vectors, packed; the head's times one.
        weight_mb: megabytes of weights that a decode step reads.
        decode_gb_s: gigabytes of weights per second in `decode`.
        prefill_gflop_s: multiplications and additions per second in `prefill`.
    """

    decode: Turn
    prefill: Turn
    weight_mb: float
    decode_gb_s: float
    prefill_gflop_s: float


def measure_floors(model: nn.Module, prompt: int, rounds: int) -> Floors:
    """Measures them.

    Args:
        model: its `nn.Linear`s are what counts.
        prompt: tokens of the prefill.
        rounds: turns.
    """
    with torch.no_grad():
        weights = [linear.weight.detach() for linear in model.modules() if isinstance(linear, nn.Linear)]
        stacks = _stacked(weights)
        vectors = {"rows": _vectors(stacks, columns=False), "columns": _vectors(stacks, columns=True),
                   "best": _best_vectors(stacks), "packed": _packed_vectors(stacks)}  # fmt: skip
        turns = take_turns(vectors, rounds, repeat=8)
        turns |= take_turns({"prefill": _prefill(weights, prompt)}, rounds)
    decode = min((turns[name] for name in vectors), key=lambda turn: turn.wall_s)
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    flops = 2 * (sum(weight.numel() for weight in weights[:-1]) * prompt + weights[-1].numel())
    return Floors(
        decode, turns["prefill"], size / 1e6, size / decode.wall_s / 1e9, flops / turns["prefill"].wall_s / 1e9
    )


def _stacked(weights: list[Tensor]) -> list[Tensor]:
    """Neighbours that read the same vector as one matrix: q, k, v and gate, up, as the shapes of a decoder layer have them."""
    stacks: list[list[Tensor]] = []
    for weight in weights:
        if stacks and stacks[-1][0].shape == weight.shape and weight.shape[0] >= weight.shape[1]:
            stacks[-1].append(weight)
        else:
            stacks.append([weight])
    return [torch.cat(stack) for stack in stacks]


def _vectors(weights: list[Tensor], *, columns: bool) -> Work:
    held = [weight.t().contiguous().t() if columns else weight.clone() for weight in weights]
    return _products(held)


def _best_vectors(weights: list[Tensor]) -> Work:
    """Columns where a weight has more rows than columns, else rows."""
    held = [weight.t().contiguous().t() if weight.shape[0] >= weight.shape[1] else weight.clone() for weight in weights]
    return _products(held)


def _packed_vectors(weights: list[Tensor]) -> Work:
    if not can_pack(weights[0].dtype):
        return _products(weights)
    calls = [(pack_linear(weight), torch.randn(1, weight.shape[1])) for weight in weights]

    def run() -> None:
        with below_autograd():
            for weight, vector in calls:
                packed_linear(vector, weight, None, "none", [], "")

    return run


def _products(held: list[Tensor]) -> Work:
    calls = [(weight, torch.randn(weight.shape[1]), torch.empty(weight.shape[0])) for weight in held]

    def run() -> None:
        with below_autograd():
            for weight, vector, out in calls:
                torch.mv(weight, vector, out=out)

    return run


def _prefill(weights: list[Tensor], prompt: int) -> Work:
    *layers, head = weights
    pack = can_pack(head.dtype)
    held = [pack_linear(weight) if pack else weight for weight in layers]
    inputs = {weight.shape[1]: torch.randn(prompt, weight.shape[1]) for weight in layers}
    calls = [(inputs[weight.shape[1]], packed) for weight, packed in zip(layers, held, strict=True)]
    last, vector = pack_linear(head) if pack else head, torch.randn(1, head.shape[1])

    def run() -> None:
        with below_autograd():
            for x, weight in calls:
                packed_linear(x, weight, None, "none", [], "") if pack else torch.mm(x, weight.t())
            packed_linear(vector, last, None, "none", [], "") if pack else torch.mv(head, vector[0])

    return run
