"""Functions as authors write them in their own models: searches, routers, samplers and poolings that decide on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
Inputs = Callable[[], tuple[Tensor, ...]]
Case = tuple[Function, Inputs, list[Inputs]]
CASES: dict[str, Case] = {}
REFUSED: dict[str, tuple[Function, Inputs, str]] = {}


def case(example: Inputs, *calls: Inputs) -> Callable[[Function], Function]:
    """Adds a function, the example that it is compiled with, and what makes the inputs of its calls."""

    def add(function: Function) -> Function:
        CASES[function.__name__] = function, example, [example, *calls]
        return function

    return add


def refused(example: Inputs, why: str) -> Callable[[Function], Function]:
    """Adds a function that is refused."""

    def add(function: Function) -> Function:
        REFUSED[function.__name__] = function, example, why
        return function

    return add


def given(*values: Any) -> Inputs:
    return lambda: tuple(torch.tensor(value) for value in values)


def beams(scale: float, done: float) -> Inputs:
    return lambda: (
        torch.randn(3, 7) * scale,
        torch.randn(3),
        torch.randint(0, 7, (3, 2)),
        torch.rand(3) < done,
    )


@case(beams(1.0, 0.3), beams(3.0, 0.0), beams(3.0, 0.5), beams(1.0, 1.0))
def beam_search_step(logits: Tensor, scores: Tensor, sequences: Tensor, finished: Tensor) -> Any:
    steps = F.log_softmax(logits, -1)
    if finished.any():
        steps = steps.masked_fill(finished[:, None], -1e9)
        steps[finished, 0] = 0.0
    best, index = (scores[:, None] + steps).view(-1).topk(3)
    beam, token = index // logits.shape[1], index % logits.shape[1]
    sequences = torch.cat([sequences[beam], token[:, None]], 1)
    finished = finished[beam] | (token == 0)
    if finished.all():
        return best, sequences, finished, True
    return best, sequences, finished, False


def drafted(likeness: float) -> Inputs:
    def make() -> tuple[Tensor, ...]:
        target = torch.randn(5, 8) * 2
        draft = target[:4] * likeness + torch.randn(4, 8) * (1 - likeness)
        return draft.argmax(-1), target.softmax(-1), draft.softmax(-1), torch.rand(4)

    return make


@case(drafted(0.5), drafted(0.0), drafted(0.9), drafted(1.0))
def accept_draft(draft: Tensor, target: Tensor, proposal: Tensor, chance: Tensor) -> Any:
    accepted = 0
    for i in range(draft.shape[0]):
        token = draft[i]
        if chance[i] < torch.clamp(target[i, token] / proposal[i, token], max=1.0):
            accepted += 1
        else:
            break
    if accepted < draft.shape[0]:
        following = (target[accepted] - proposal[accepted]).clamp(min=0).argmax()
    else:
        following = target[-1].argmax()
    return torch.cat([draft[:accepted], following.view(1)]), accepted


def nucleus(scale: float, share: float) -> Inputs:
    return lambda: (torch.randn(10) * scale, torch.tensor(share))


@case(nucleus(1.0, 0.9), nucleus(0.1, 0.1), nucleus(0.1, 1.0), nucleus(5.0, 0.5), nucleus(1.0, 0.99))
def top_p(logits: Tensor, share: Tensor) -> Any:
    chances, order = logits.softmax(-1).sort(descending=True)
    total, count = chances[0], 1
    while total < share and count < chances.shape[0]:
        total = total + chances[count]
        count += 1
    kept = order[:count]
    result = torch.full_like(logits, float("-inf"))
    result[kept] = logits[kept]
    return result, count


def boxes() -> tuple[Tensor, ...]:
    corner = torch.rand(5, 2)
    return torch.cat([corner, corner + torch.rand(5, 2)], 1), torch.rand(5)


@case(
    given([[0.0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3], [0, 0.5, 1, 1.5], [0, 0, 1, 1]], [0.9, 0.8, 0.7, 0.6, 0.1]),
    boxes,
    boxes,
)
def suppress(boxes: Tensor, scores: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    sorted_ = boxes[order]
    area = (sorted_[:, 2] - sorted_[:, 0]) * (sorted_[:, 3] - sorted_[:, 1])
    keep = torch.ones(len(sorted_), dtype=torch.bool)
    for i in range(len(sorted_)):
        if not keep[i]:
            continue
        low = torch.maximum(sorted_[i, :2], sorted_[i + 1 :, :2])
        high = torch.minimum(sorted_[i, 2:], sorted_[i + 1 :, 2:])
        both = (high - low).clamp(min=0).prod(1)
        keep[i + 1 :] &= both / (area[i] + area[i + 1 :] - both) <= 0.5
    return order[keep]


def tokens() -> tuple[Tensor, ...]:
    return (torch.randn(1, 8, 4),)


@case(tokens, tokens)
def merge_tokens(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=-1, keepdim=True)
    best, to = (unit[:, ::2] @ unit[:, 1::2].transpose(-1, -2)).max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    merged, kept = order[:, :2], order[:, 2:]
    even, odd = x[:, ::2], x[:, 1::2]
    width = x.shape[-1]
    target = to[..., None].gather(-2, merged).expand(-1, -1, width)
    source = even.gather(-2, merged.expand(-1, -1, width))
    odd = odd.scatter_reduce(-2, target, source, reduce="mean")
    return torch.cat([even.gather(-2, kept.expand(-1, -1, width)), odd], 1)


def letters(blank: float = 0.0) -> Inputs:
    return lambda: (torch.randn(9, 5) + torch.tensor([blank, 0.0, 0.0, 0.0, 0.0]),)


@case(letters(), letters(), letters(1.0), letters(9.0))
def ctc_by_loop(logits: Tensor) -> Tensor:
    best, result, last = logits.argmax(-1), [], -1
    for t in range(best.shape[0]):
        now = int(best[t])
        if now not in (0, last):
            result.append(now)
        last = now
    return torch.tensor(result, dtype=torch.long)


@case(letters(), letters(1.0), letters(9.0))
def ctc_by_runs(logits: Tensor) -> Tensor:
    symbols: Tensor = torch.unique_consecutive(logits.argmax(-1))
    return symbols[symbols != 0]


@case(given([-1, 0, 0, 1, 2]), given([-1, 0, 1, 2, 3]), given([-1, -1, 0, 1, 0]), given([-1, 0, 0, 0, 0]))
def tree_mask(parents: Tensor) -> Tensor:
    mask = torch.eye(parents.shape[0], dtype=torch.bool)
    for i in range(parents.shape[0]):
        above = int(parents[i])
        while above >= 0:
            mask[i, above] = True
            above = int(parents[above])
    return mask


def cached() -> tuple[Tensor, ...]:
    return torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.rand(2, 6)


@case(cached, cached)
def keep_heavy_hitters(keys: Tensor, values: Tensor, scores: Tensor) -> Any:
    count, budget, recent = keys.shape[1], 4, 2
    if count <= budget:
        return keys, values, scores
    heavy = scores[:, : count - recent].topk(budget - recent, -1).indices.sort(-1).values
    kept = torch.cat([heavy, torch.arange(count - recent, count).expand(keys.shape[0], -1)], 1)
    index = kept[..., None].expand(-1, -1, keys.shape[2])
    return keys.gather(1, index), values.gather(1, index), scores.gather(1, kept)


def packed(*ends: int) -> Inputs:
    return lambda: (torch.randn(10, 4), torch.tensor(ends))


@case(packed(0, 3, 7, 10), packed(0, 1, 2, 10), packed(0, 5, 5, 10), packed(0, 9, 10, 10))
def pool_by_ends(x: Tensor, ends: Tensor) -> Tensor:
    means = []
    for i in range(ends.shape[0] - 1):
        first, last = int(ends[i]), int(ends[i + 1])
        means.append(x[first:last].mean(0))
    return torch.stack(means)


@case(given([1, 1, 2, 2, 2, 3]), given([5, 5, 5, 5, 5, 5]), given([1, 2, 3, 4, 5, 6]), given([0, 1, 0, 0, 1, 1]))
def run_lengths(x: Tensor) -> Any:
    values, counts = torch.unique_consecutive(x, return_counts=True)
    return values, counts, torch.repeat_interleave(values, counts)


@case(lambda: (torch.randn(2, 13, 4),))
def windows_with_a_rest(x: Tensor) -> Tensor:
    results = []
    for start in range(0, x.shape[1], 4):
        window = x[:, start : start + 4]
        results.append(torch.softmax(window @ window.transpose(1, 2), -1) @ window)
    return torch.cat(results, 1)


@refused(given([1, 1, 2, 2, 2, 3]), "whose length depends on data")
def run_lengths_by_loop(x: Tensor) -> Any:
    values: list[Tensor] = []
    counts: list[int] = []
    for i in range(len(x)):
        if values and x[i] == values[-1]:
            counts[-1] += 1
        else:
            values.append(x[i])
            counts.append(1)
    return torch.stack(values), torch.tensor(counts)
