"""Searches, iterations and state machines as authors write them: they end where data says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.capture.strangers import CASES, case, given

__all__ = ["CASES"]


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> Any:
    return lambda: tuple(torch.randn(*shape) * scale for shape in shapes)


LADDER = [1.0, 3.0, 5.0, 7.0, 9.0]


@case(given(LADDER, 4.0), given(LADDER, 0.0), given(LADDER, 10.0), given(LADDER, 7.0), given(LADDER, float("nan")))
def bisect(table: Tensor, x: Tensor) -> Any:
    low, high = 0, table.shape[0]
    while low < high:
        middle = (low + high) // 2
        if table[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


@case(normal((12, 2), (3, 2)), normal((12, 2), (3, 2), scale=5.0), lambda: (torch.zeros(12, 2), torch.randn(3, 2)))
def k_means(x: Tensor, centers: Tensor) -> Any:
    labels = torch.zeros(12, dtype=torch.long)
    while True:
        nearest = ((x[:, None] - centers[None]) ** 2).sum(-1).argmin(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        rows = []
        for k in range(3):
            mine = labels == k
            rows.append((x * mine[:, None]).sum(0) / mine.sum() if mine.any() else centers[k])
        centers = torch.stack(rows)
    return labels, centers


NGRAMS = [given(ids, [1, 2]) for ids in ([1, 2, 3, 1, 2], [1, 1, 1, 1, 1], [5, 6, 7, 8, 9], [1, 2, 0, 0, 0])]


@case(*NGRAMS)
def last_ngram(ids: Tensor, gram: Tensor) -> Tensor:
    for start in range(ids.shape[0] - 1, -1, -1):
        if start + 2 <= ids.shape[0] and torch.equal(ids[start : start + 2], gram):
            return torch.tensor(start)
    return torch.tensor(-1)


@case(given([0.3, 1.2, 0.1, 0.7, 2.5], 3), given([0.3, 1.2, 0.1, 0.7, 2.5], 2), given([0.1, 0.0, 0.0, 0.0, 0.1], 5))
def strides(x: Tensor, n: Tensor) -> Any:
    step = int(n)
    at: int = 0
    total: Any = 0.0
    while total < 2.0 and at < 40:
        total = total + x[at % step].abs() + 0.1 * (at // step)
        at = at + step
    return total, at


@case(given([5, 3, 8, 1]), given([9, 9, 9, 9]), given([1, 4, 2, 3]), given([2, 1, 0, 0]))
def sift_up(heap: Tensor) -> Any:
    heap, i = heap.clone(), 3
    while i > 0 and heap[i] < heap[(i - 1) // 2]:
        parent = (i - 1) // 2
        child, above = heap[i].clone(), heap[parent].clone()
        heap[i], heap[parent] = above, child
        i = parent
    return heap, i


@case(given([3, 0, 5]), given([0, 0, 0]), given([1, 7, 2]))
def a_while_per_row(n: Tensor) -> Tensor:
    out = torch.zeros(3)
    for i in range(3):
        k = n[i]
        while k > 0:
            out[i] += k * 0.5
            k = k - 2
    return out


@case(normal((4, 6)), normal((4, 6), scale=4.0), lambda: (torch.zeros(4, 6),))
def adaptive_time(x: Tensor) -> Any:
    halted, chance = torch.zeros(4, dtype=torch.bool), torch.zeros(4)
    steps, y = torch.zeros(4, dtype=torch.long), torch.zeros(4, 6)
    while not halted.all():
        more = torch.sigmoid(x.sum(-1) + steps)
        chance = torch.where(halted, chance, chance + more)
        steps = torch.where(halted, steps, steps + 1)
        y = y + torch.where(halted[:, None], torch.zeros(()), x * more[:, None])
        halted = halted | (chance > 0.99) | (steps >= 6)
    return y, steps, chance


@case(given([4, 2, 9, 2, 7, 0]), given([1, 1, 1, 1, 1, 1]), given([2, 0, 2, 0, 2, 0]), given([0, 2, 2, 2, 6, 0]))
def brackets(ids: Tensor) -> Any:
    depth, deepest, words = 0, 0, 0
    for token in ids:
        if token == 2:
            depth += 1
        elif token == 0 and depth > 0:
            depth -= 1
        elif token > 5:
            words += 1
        deepest = max(deepest, depth)
    return depth, deepest, words


@case(normal((3,), (3,)), lambda: (torch.full((3,), torch.nan),) * 2, lambda: (torch.ones(3),) * 2)
def the_same_or_not(a: Tensor, b: Tensor) -> Tensor:
    if a.equal(a) and not torch.equal(a, b[:2]):
        a = a + 1
    return a * 2 if torch.equal(a, b) or torch.equal(a - 1, b) else a - b


def rows_and(*places: int) -> Any:
    return lambda: (torch.randn(5, 3), torch.tensor(places))


@case(rows_and(2, 4), rows_and(0, 0), rows_and(-1, 1))
def swap_rows(x: Tensor, ij: Tensor) -> Any:
    x = x.clone()
    i, j = int(ij[0]), int(ij[1])
    x[[i, j]] = x[[j, i]]
    return x, x[[i, 0], [1, 2]], x[:, [0, int(ij[1] > 1)]]
