"""What the planner is judged against: vllm-gaudi's exp, lin and pad rules, as users run them and tuned to the limit.

A peer's buckets are the product of one list of sizes per dim. *Default* sets the number of buckets only. *Tuned*
searches, on the training half, every knob: minimum, step, percentage, absolute cap, largest batch, and how the buckets
are divided over the dims. Both then get what the peers lack: buckets that no legal shape needs are removed, the
cheapest bucket is taken, and a batch may be split.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gaudicc.buckets.space import Floats, Rows, Sample, Space, total_cost
from gaudicc.buckets.strategies import Buckets, Strategy, expand, exponential, linear, padding_aware

PEERS: tuple[Strategy, ...] = ("exp", "lin", "pad")
PERCENTS = (2, 5, 10, 15, 20, 25, 30, 40, 50)
CAPS = (2, 4, 8, 16, 32, 64)
"""Absolute caps on padding that are tried: the limit over each of these."""
SURVIVORS = 4
"""Lists kept per dim and length, the best on that dim alone (the other dims unpadded)."""
SLACK = 3
"""A product may be this many times over the count before buckets that nobody needs are removed."""


def default_buckets(space: Space, strategy: Strategy, count: int) -> Rows:
    """A strategy's buckets with only their number set."""
    bounds = {dim: (low, high) for dim, low, high in zip(space.dims, space.low, space.limit, strict=True)}
    step = dict(zip(space.dims, space.align, strict=True)) if strategy == "exp" else None
    made = expand(Buckets(strategy, step=step, max_graphs=count), bounds)
    return np.unique(space.round_up(np.array([bucket.sizes for bucket in made])), axis=0)


def best_default(space: Space, sample: Sample, count: int) -> Rows:
    """The best of the three default strategies on a sample."""
    return min((default_buckets(space, peer, count) for peer in PEERS), key=lambda b: total_cost(space, b, sample))


def tuned_buckets(space: Space, sample: Sample, counts: Sequence[int]) -> dict[int, Rows]:
    """The best product of lists for each count, all knobs of all three strategies searched on the sample.

    Args:
        space: legal shapes and cost.
        sample: the training half, in aligned sizes.
        counts: numbers of buckets.
    """
    best: dict[int, tuple[float, Rows]] = {}
    for strategy in PEERS:
        lists = [_lists(space, sample, dim, strategy, max(counts)) for dim in range(len(space.dims))]
        for option in _products(space, sample, lists, max(counts)):
            for count in counts:
                if option.count <= count and (count not in best or option.cost < best[count][0]):
                    best[count] = (option.cost, needed_product(space, option.lists))
    return {count: boxes for count, (_, boxes) in best.items()}


def _lists(space: Space, sample: Sample, dim: int, strategy: Strategy, most: int) -> list[tuple[int, ...]]:
    """Every list one dim can get from a strategy's knobs; per length the best few by cost on this dim alone."""
    ranked: dict[int, list[tuple[float, tuple[int, ...]]]] = defaultdict(list)
    for sizes in set(_knobs(space, dim, strategy, most)):
        rows = sample.shapes.copy()
        rows[:, dim] = _rounded(sizes, sample.shapes[:, dim], split=dim == space.split)
        ranked[len(sizes)].append((float(space.cost_of(rows) @ sample.weights), sizes))
    return [sizes for options in ranked.values() for _, sizes in sorted(options)[:SURVIVORS]]


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
        steps = sorted({align * max(1, round(1.25**i)) for i in range(60) if align * 1.25**i <= high})
        for smallest, step in itertools.product(minima, steps):
            for sizes in _by_knobs(strategy, smallest, step, high, most):
                aligned = tuple(dict.fromkeys(min(-(-size // align) * align, space.limit[dim]) for size in sizes))
                if len(aligned) <= most:
                    yield aligned


def _by_knobs(strategy: Strategy, low: int, step: int, high: int, most: int) -> Iterator[tuple[int, ...]]:
    if strategy == "exp":
        yield from (exponential(low, step, high, count) for count in range(1, most + 1) if step <= 8 * max(low, 1))
    elif (high - low) // step > 8 * most and strategy == "lin":
        return
    elif strategy == "lin":
        yield linear(low, step, high)
    else:
        for percent, cap in itertools.product(PERCENTS, CAPS):
            yield padding_aware(low, step, high, percent, math.ceil(high / cap))


@dataclass(frozen=True, slots=True)
class _Product:
    lists: tuple[tuple[int, ...], ...]
    count: int
    cost: float


def _products(
    space: Space, sample: Sample, lists: list[list[tuple[int, ...]]], most: int
) -> Iterator[_Product]:
    """Every product of one list per dim within reach of `most` buckets, with its cost on the sample.

    A cost that does not fall with size makes rounding up each dim by itself the cheapest box of a product, save for a
    split batch, where every smaller batch is tried.
    """
    inner = sorted(lists[-1], key=len)
    lengths = np.array([len(sizes) for sizes in inner])
    rounded = np.stack([_rounded(sizes, sample.shapes[:, -1], split=False) for sizes in inner])
    for outer in itertools.product(*lists[:-1]):
        reach = int(np.searchsorted(lengths, SLACK * most / math.prod(map(len, outer)), side="right"))
        if not reach:
            continue
        costs = _product_costs(space, sample, outer, rounded[:reach])
        for last, cost in zip(inner[:reach], costs, strict=True):
            count = len(needed_product(space, (*outer, last)))
            if count <= most:
                yield _Product((*outer, last), count, float(cost))


def _product_costs(space: Space, sample: Sample, outer: tuple[tuple[int, ...], ...], last: Rows) -> Floats:
    """Weighted cost for each row of last-dim sizes [lists, shapes], the other dims rounded in `outer`."""
    columns = [_rounded(s, sample.shapes[:, i], split=i == space.split) for i, s in enumerate(outer)]
    if space.split is None:
        return np.asarray(space.cost(*columns, last)) @ sample.weights
    batch = sample.shapes[:, space.split]
    options = []
    for size in outer[space.split]:
        columns[space.split] = np.full(len(batch), size)
        options.append(space.cost(*columns, last) * -(-batch // size))
    cheapest: Floats = np.minimum.reduce(options) @ sample.weights
    return cheapest


def needed_product(space: Space, lists: tuple[tuple[int, ...], ...]) -> Rows:
    """The boxes of a product that some legal shape rounds up to."""
    below = [(low, *(size + align for size in sizes[:-1])) for sizes, low, align in
             zip(lists, space.low, space.align, strict=True)]  # fmt: skip
    smallest = np.stack(np.meshgrid(*below, indexing="ij"), axis=-1).reshape(-1, len(lists))
    boxes = np.stack(np.meshgrid(*lists, indexing="ij"), axis=-1).reshape(-1, len(lists))
    return boxes[space.is_legal(smallest)]
