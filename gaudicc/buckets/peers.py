"""What the planner is judged against: vllm-gaudi's exp, lin and pad rules, as users run them and tuned to the limit.

A peer's buckets are the product of one list of sizes per dim. *Default* sets the number of sizes only. *Tuned*
searches, on the training half, every knob: minimum, step, percentage, absolute cap, largest batch, and how the buckets
are divided over the dims. Both then get what the peers lack: buckets that no legal shape needs are removed, the
cheapest bucket is taken, and a batch may be split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.space import Floats, Rows, Sample, Space, total_cost
from gaudicc.buckets.strategies import Range, Strategy, axis_sizes, exponential, linear, padding_aware

PEERS: tuple[Strategy, ...] = ("exp", "lin", "pad")
PERCENTS = (2, 5, 10, 15, 20, 25, 30, 40, 50)
CAPS = (2, 4, 8, 16, 32, 64)
"""Absolute caps on padding that are tried: the limit over each of these."""
Lists = tuple[tuple[int, ...], ...]
"""One list of sizes per dim."""
CHUNK = 256
"""Lists priced at a time, to bound memory."""
SLACK = 4
"""A product may be this many times over the count before buckets that nobody needs are removed."""
DRAWS = 3000
"""Shapes the knobs are searched on, drawn by weight where the sample has more."""


def best_default(space: Space, sample: Sample, count: int) -> Rows:
    """The best on a sample of the three strategies, when only the number of sizes of each dim is set."""
    ranges = [Range(low, align, high) for low, align, high in zip(space.low, space.align, space.limit, strict=True)]
    powers = [1 << i for i in range(count.bit_length())]
    options: list[Rows] = []
    for strategy, division in itertools.product(PEERS, itertools.product(powers, repeat=len(ranges))):
        if count // 2 < math.prod(division) <= count:
            spans = ranges if strategy == "exp" else [replace(span, step=0) for span in ranges]
            lists = tuple(axis_sizes(strategy, span, n) for span, n in zip(spans, division, strict=True))
            options.append(np.unique(space.round_up(needed_product(space, lists)), axis=0))
    return min(options, key=lambda boxes: total_cost(space, boxes, sample))


def tuned_buckets(space: Space, sample: Sample, counts: Sequence[int]) -> dict[int, Rows]:
    """The best product of lists found for each count, with all knobs of all three strategies searched on the sample.

    The search goes dim by dim: all lists that the knobs can make are tried for one dim, the others held, until no dim
    improves; it starts from several divisions of the count over the dims.

    Args:
        space: legal shapes and cost.
        sample: the training half, in aligned sizes.
        counts: numbers of buckets.
    """
    sample = _thinned(sample)
    best: dict[int, tuple[float, Lists]] = {}
    for strategy in PEERS:
        axes = [_axis(space, sample, dim, strategy, max(counts)) for dim in range(len(space.dims))]
        for count in sorted(counts):
            found = [_descend(space, sample, axes, start, count) for start in _starts(axes, count)]
            best[count] = min(found + [option for smaller, option in best.items() if smaller <= count])
    return {count: needed_product(space, lists) for count, (_, lists) in best.items()}


def _thinned(sample: Sample) -> Sample:
    if len(sample.shapes) <= DRAWS:
        return sample
    rng = np.random.default_rng(0)
    return Sample.of(sample.shapes[rng.choice(len(sample.shapes), DRAWS, p=sample.weights / sample.weights.sum())])


@dataclass(frozen=True, slots=True)
class _Axis:
    """The lists that one dim can get, shortest first.

    Attributes:
        lists: sizes of each list.
        lengths: their number [lists].
        rounded: each shape's size rounded up within each list [lists, shapes].
        alone: cost of each list with the other dims unpadded [lists].
    """

    lists: list[tuple[int, ...]]
    lengths: NDArray[np.int64]
    rounded: NDArray[np.int64]
    alone: Floats


def _axis(space: Space, sample: Sample, dim: int, strategy: Strategy, most: int) -> _Axis:
    lists = sorted(set(_knobs(space, dim, strategy, most)), key=lambda sizes: (len(sizes), sizes))
    rounded = np.stack([_rounded(sizes, sample.shapes[:, dim], split=dim == space.split) for sizes in lists])
    real = [sample.shapes[:, i] for i in range(len(space.dims))]
    alone = np.array([space.cost(*real[:dim], row, *real[dim + 1 :]) @ sample.weights for row in rounded])
    return _Axis(lists, np.array([len(sizes) for sizes in lists]), rounded, alone)


def _starts(axes: list[_Axis], count: int) -> Iterator[Lists]:
    """Divisions of the count over the dims, each dim with the best list of its length on that dim alone.

    A product may be over the count at first, for buckets that nobody needs are removed.
    """
    tried = sorted({size for i in range(8) for size in (1 << i, 3 << i) if size <= count})
    for division in itertools.product(tried, repeat=len(axes)):
        within = [np.flatnonzero(axis.lengths <= n) for axis, n in zip(axes, division, strict=True)]
        if 3 * count // 4 < math.prod(division) <= 4 * count // 3 and all(map(len, within)):
            yield tuple(a.lists[w[a.alone[w].argmin()]] for a, w in zip(axes, within, strict=True))


def _descend(space: Space, sample: Sample, axes: list[_Axis], lists: Lists, count: int) -> tuple[float, Lists]:
    """Replaces one dim's list by the best there is for it, in turn, until nothing improves."""
    cost, since = np.inf, 0
    for dim in itertools.cycle(range(len(axes))):
        reach = SLACK * count / math.prod(len(sizes) for i, sizes in enumerate(lists) if i != dim)
        tried = int(np.searchsorted(axes[dim].lengths, max(reach, 1), side="right"))
        costs = _costs(space, sample, lists, dim, axes[dim], tried)
        for option in np.argsort(costs, kind="stable"):
            if costs[option] >= cost * (1 - 1e-9):
                break
            candidate = (*lists[:dim], axes[dim].lists[option], *lists[dim + 1 :])
            if len(needed_product(space, candidate)) <= count:
                cost, lists, since = float(costs[option]), candidate, 0
                break
        since += 1
        if since > len(axes):
            return cost, lists
    raise AssertionError("unreachable: the cycle has no end")


def _rounded(sizes: Sequence[int], column: Rows, split: bool) -> Rows:
    """Sizes rounded up within a list; over its end (a capped batch) the end itself."""
    values = np.array(sizes)
    rounded: Rows = values[np.minimum(np.searchsorted(values, column), len(values) - 1 if split else len(values))]
    return rounded


def _knobs(space: Space, dim: int, strategy: Strategy, most: int) -> Iterator[tuple[int, ...]]:
    low, align = space.low[dim], space.align[dim]
    ends = range(1, space.limit[dim] + 1) if dim == space.split else (space.limit[dim],)
    for high in ends:
        minima = sorted({low, *(align << i for i in range(20) if low <= align << i < high)})
        ratio = 2.0 if strategy == "exp" else 1.25  # exp only rounds to its step, lin and pad advance by it
        steps = sorted({align * round(ratio**i) for i in range(60) if align * ratio**i <= high})
        for smallest, step in itertools.product(minima, steps):
            for sizes in _by_knobs(strategy, smallest, step, high, most):
                aligned = tuple(dict.fromkeys(min(-(-size // align) * align, space.limit[dim]) for size in sizes))
                if len(aligned) <= most:
                    yield aligned


def _by_knobs(strategy: Strategy, low: int, step: int, high: int, most: int) -> Iterator[tuple[int, ...]]:
    if strategy == "exp":
        counts = sorted({*range(1, min(most, 24) + 1), *(int(24 * 1.05**i) for i in range(1, 60)), most})
        yield from (exponential(low, step, high, count) for count in counts if count <= most)
    elif (high - low) // step > 8 * most and strategy == "lin":
        return
    elif strategy == "lin":
        yield linear(low, step, high)
    else:
        for percent, cap in itertools.product(PERCENTS, CAPS):
            yield padding_aware(low, step, high, percent, math.ceil(high / cap))


def _costs(space: Space, sample: Sample, lists: Lists, dim: int, axis: _Axis, tried: int) -> Floats:
    """Weighted cost of the first `tried` lists of one dim, the other dims rounded in `lists`.

    A cost that does not fall with size makes rounding up each dim by itself the cheapest box of a product, save for a
    split batch, where every smaller batch is tried.
    """
    columns = [_rounded(sizes, sample.shapes[:, i], split=i == space.split) for i, sizes in enumerate(lists)]
    costs = np.empty(tried)
    for chunk in range(0, tried, CHUNK):
        part = slice(chunk, min(chunk + CHUNK, tried))
        if dim != space.split:
            columns[dim] = axis.rounded[part]
        if space.split is None:
            costs[part] = np.asarray(space.cost(*columns)) @ sample.weights
        else:
            choices = axis.lists[part] if dim == space.split else [lists[space.split]]
            per_choice = [_cheapest_split(space, sample, columns, sizes) for sizes in choices]
            costs[part] = np.concatenate([np.atleast_2d(prices) for prices in per_choice]) @ sample.weights
    return costs


def _cheapest_split(space: Space, sample: Sample, columns: list[Rows], sizes: tuple[int, ...]) -> Floats:
    """Cost of every shape at the batch size that serves it for least, in one call or several."""
    assert space.split is not None
    batch = sample.shapes[:, space.split]
    options = []
    for size in sizes:
        calls = -(-batch // size)
        others = [np.full(len(batch), size) if i == space.split else column for i, column in enumerate(columns)]
        options.append(space.cost(*others) * calls)
    return np.asarray(np.minimum.reduce(options))


def needed_product(space: Space, lists: Lists) -> Rows:
    """The boxes of a product that some legal shape rounds up to."""
    below = [
        (low, *((size // align + 1) * align for size in sizes[:-1]))
        for sizes, low, align in zip(lists, space.low, space.align, strict=True)
    ]
    lower = np.stack(np.meshgrid(*below, indexing="ij"), axis=-1).reshape(-1, len(lists))
    boxes = np.stack(np.meshgrid(*lists, indexing="ij"), axis=-1).reshape(-1, len(lists))
    # A list may end below the limit of the split dim: the last size then serves all above it.
    upper = np.where(boxes == boxes.max(axis=0), space.limit, boxes)
    return boxes[space.holds_legal(lower, upper)]
