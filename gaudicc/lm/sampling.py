"""LM inference, third step: logits -> the next token of each row, inside the recorded graph.

Random numbers are drawn on the host when a request is admitted, one per position, and lie in the state. So a graph holds no
random op, and what a request samples depends on its seed alone: not on its slot, nor on who shares the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """How each row chooses; all `[batch]`.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among so many of the likeliest tokens.
        top_p: sample among the likeliest tokens that reach this probability together.
        min_p: sample among tokens that have this part of the largest probability at least.
        uniform: a random number in [0, 1).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row, the first of equals.

    Args:
        logits: `[batch, vocabulary]`.

    Returns:
        int64 `[batch]`.
    """
    return torch.argmax(logits, dim=-1)


def sample(logits: Tensor, choice: Choice) -> Tensor:
    """Samples as transformers does: temperature, then top-k, top-p and min-p, then one draw from what is left.

    The draw inverts the cumulative distribution over the tokens in order of probability.

    Args:
        logits: float32 `[batch, vocabulary]`.
        choice: parameters and the random number of each row.

    Returns:
        int64 `[batch]`.
    """
    cold = choice.temperature == 0
    scale = torch.where(cold, torch.ones_like(choice.temperature), choice.temperature)
    ordered, tokens = torch.sort(logits / scale[:, None], dim=-1, descending=True)
    weights = kept(ordered, choice.top_k, choice.top_p, choice.min_p)
    mass = torch.cumsum(weights, dim=-1)
    target = choice.uniform * mass[:, -1]
    rank = (mass <= target[:, None]).to(torch.int64).sum(-1)
    last = (weights > 0).to(torch.int64).sum(-1) - 1  # rounding may leave the target at the very end
    drawn = torch.gather(tokens, 1, torch.minimum(rank, last)[:, None])[:, 0]
    return torch.where(cold, greedy(logits), drawn)


def penalized(logits: Tensor, tokens: Tensor, real: Tensor, penalty: Tensor) -> Tensor:
    """Logits that make tokens less likely which are there already, as transformers does: positive ones are divided.

    Args:
        logits: `[batch, vocabulary]`.
        tokens: int64 `[batch, length]`, what each row has.
        real: bool `[batch, length]`, which of them it has.
        penalty: float32 `[batch]`; 1 changes nothing.
    """
    rows, vocabulary = logits.shape
    counted = torch.where(real, tokens, torch.full_like(tokens, vocabulary))  # one more column, for those that are none
    seen = torch.scatter(logits.new_zeros(rows, vocabulary + 1), 1, counted, 1.0)[:, :vocabulary] > 0
    by = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * by, logits / by), logits)


def kept(ordered: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The probabilities that top-k, top-p and min-p leave, not normalised; 0 elsewhere.

    Args:
        ordered: logits `[batch, vocabulary]`, in descending order.
        top_k: int64 `[batch]`.
        top_p: float32 `[batch]`.
        min_p: float32 `[batch]`.
    """
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    among = rank[None, :] < top_k[:, None]
    lowest = torch.full_like(ordered, float("-inf"))
    probabilities = torch.softmax(torch.where(among, ordered, lowest), dim=-1)
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    nothing = torch.zeros_like(probabilities)
    likely = (before < top_p[:, None]) & (probabilities >= min_p[:, None] * probabilities[:, :1])
    return torch.where(likely, probabilities, nothing)
