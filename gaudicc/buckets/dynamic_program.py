"""The exact plan in one dimension: which k sizes serve given sizes at the least total cost, for every k at once.

With sizes v in rising order, cumulated weights W and cost f,
`best[k][j] = min over i of best[k-1][i] + (W[j] - W[i]) f(v[j])` is the least cost of the first j sizes with k buckets.
f does not fall, so the best i rises with j, and one row takes O(n log n): rows at every 2s-th j are bounded by those
at every 4s-th. The planner uses it for one-dimensional problems and to choose the levels of each axis of others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.space import Floats
from gaudicc.errors import InputError


def optimal_sizes(values: NDArray[np.int64], weights: Floats, costs: Floats, count: int) -> list[NDArray[np.int64]]:
    """The best k of `values` for every k from 1 to `count`; the largest value is always among them.

    Args:
        values: distinct sizes in rising order [n].
        weights: how often each is asked for [n].
        costs: cost of one call at each size, not falling [n].
        count: the largest k; where n is smaller, all sizes are returned.

    Returns:
        For k = 1 .. count, the chosen sizes in rising order.

    Raises:
        InputError: values or costs are not in rising order.
    """
    if (np.diff(values) <= 0).any() or (np.diff(costs) < 0).any():
        raise InputError("the dynamic program needs rising sizes whose costs do not fall")
    n = len(values)
    cumulated = np.concatenate([[0.0], np.cumsum(weights)])
    best = np.concatenate([[0.0], cumulated[1:] * costs])
    splits: list[NDArray[np.int64]] = []
    plans = [values[-1:]]
    for k in range(2, count + 1):
        if k > n:
            plans.append(plans[-1])
            continue
        best, split = _next_row(best, cumulated, costs)
        splits.append(split)
        ends = [n]
        for row in reversed(splits):
            ends.append(int(row[ends[-1]]))
        plans.append(values[np.unique([end for end in ends if end > 0]) - 1])
    return plans


def _next_row(best: Floats, cumulated: Floats, costs: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """One more bucket: the row best[k] from best[k-1], and the i that attains each entry."""
    n = len(costs)
    row, split = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    stride = 1 << (n.bit_length() - 1)
    while stride:
        ends = np.arange(stride, n + 1, 2 * stride)
        first = split[ends - stride]
        above = ends + stride
        last = np.where(above <= n, split[np.minimum(above, n)], ends)
        last = np.clip(last, first, ends)
        lengths = last - first + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        options = np.arange(lengths.sum()) - np.repeat(starts - first, lengths)
        owner = np.repeat(np.arange(len(ends)), lengths)
        totals = best[options] + (cumulated[ends[owner]] - cumulated[options]) * costs[ends[owner] - 1]
        least = np.minimum.reduceat(totals, starts)
        attained = np.flatnonzero(totals == least[owner])
        _, leftmost = np.unique(owner[attained], return_index=True)
        row[ends], split[ends] = least, options[attained[leftmost]]
        stride //= 2
    return row, split
