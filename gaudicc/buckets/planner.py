"""Traffic and a cost -> the buckets that serve it at the least cost, with a bound on what any plan could reach.

    sample -> grid (levels, cells, candidates) -> greedy -> interchange -> bound -> interchange from the bound's own
    boxes, and from perturbed ones while there is a gap -> tighten every box to the shapes it serves

In one dimension the dynamic program is exact and replaces all of it. docs/buckets.md says what each step is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gaudicc.buckets.bound import lower_bound
from gaudicc.buckets.bucket import Bucket, BucketSet, Cost
from gaudicc.buckets.dynamic_program import optimal_sizes
from gaudicc.buckets.grid import Grid, build_grid
from gaudicc.buckets.search import Chosen, cost_of, greedy, interchange, perturbed
from gaudicc.buckets.space import Rows, Sample, Space, log_uniform, total_cost
from gaudicc.buckets.strategies import Range
from gaudicc.errors import InputError

RESTARTS = 8
"""Most searches from perturbed plans, made while the bound leaves room for a better one."""
CLOSE_ENOUGH = 1e-3
"""Gap to the bound, as a share of the cost, at which the search stops."""
SEED = 0
PRIOR_SHARE = 0.02
PRIOR_SHAPES = 2500


@dataclass(frozen=True, slots=True)
class Plan:
    """The buckets chosen for a space.

    Attributes:
        space: what was planned for.
        boxes: sizes of the buckets [m, dims]; the kept ones first.
        cost: weighted cost of the sample under this plan.
        real_cost: weighted cost of the sample without padding beyond alignment.
        grid_cost: cost on the level grid, before boxes were tightened; the bound is on this.
        bound: no plan of as many buckets costs less on the level grid.
    """

    space: Space
    boxes: Rows
    cost: float
    real_cost: float
    grid_cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the plan may be from the best on its level grid, in percent of total cost."""
        return 100.0 * (self.grid_cost / self.bound - 1.0)

    @property
    def waste(self) -> float:
        """Padded over real cost on the sample it was planned for, less one, in percent."""
        return 100.0 * (self.cost / self.real_cost - 1.0)

    @property
    def buckets(self) -> BucketSet:
        """The plan as the set the runtime chooses from."""
        return self.space.bucket_set(self.boxes)


class Planner:
    """Plans for one sample of a space; counts share the grid.

    Args:
        space: legal shapes and cost.
        sample: shapes and how often each was asked for; rounded to the space's alignment here.
        kept: buckets recorded already, in every plan [f, dims].
        worst_padding: most padded over real cost of any shape of the sample, its prior included, as a ratio, or None.

    Raises:
        InputError: a shape of the sample is outside the space's limits.
    """

    def __init__(
        self, space: Space, sample: Sample, kept: Rows | None = None, worst_padding: float | None = None
    ) -> None:
        if (sample.shapes > np.array(space.limit)).any():
            raise InputError(
                f"the sample holds shapes over the limits {dict(zip(space.dims, space.limit, strict=True))}"
            )
        if worst_padding is not None and worst_padding < 1:
            raise InputError(f"worst_padding is padded over real cost, so at least 1; got {worst_padding}")
        self.space, self.sample = space, sample.rounded(space)
        self.kept = np.empty((0, len(space.dims)), dtype=np.int64) if kept is None else kept
        self.worst_padding = worst_padding
        self.fixed = self._fixed()
        self._grid: Grid | None = None

    def _fixed(self) -> Rows:
        """The kept buckets, and one that serves every legal shape unless a kept one does."""
        cover = np.array([self.space.cover()])
        if len(self.kept) and np.isfinite(self.space.serve(self.kept, cover)).any():
            return self.kept
        return np.concatenate([self.kept, cover])

    @property
    def grid(self) -> Grid:
        """The finite problem, built when first needed."""
        if self._grid is None:
            self._grid = build_grid(self.space, self.sample, self.fixed, self.worst_padding)
        return self._grid

    def plan(self, count: int, bounded: bool = True) -> Plan:
        """The best plan found with at most `count` buckets.

        Args:
            count: most buckets, the kept ones and the one that serves every shape among them.
            bounded: whether to compute the bound (and search from its boxes); without it the bound is 0.

        Raises:
            InputError: `count` is less than the buckets that must be there, or the padding bound cannot be met.
        """
        if count < len(self.fixed):
            raise InputError(
                f"{count} buckets are too few: {len(self.kept)} are kept and one must serve every legal shape",
                hint=f"allow at least {len(self.fixed)}",
            )
        if len(self.space.dims) == 1 and not len(self.kept) and self.worst_padding is None:
            return self._exact(count)
        chosen, bound = self._search(count, bounded)
        grid_cost = cost_of(self.grid, chosen)
        if over := self._over(chosen):
            raise InputError(
                f"{count} buckets cannot keep every shape's padding within {self.worst_padding}x",
                hint=f"allow more buckets or more padding; {over} of {len(self.grid.cells)} groups of shapes are over",
            )
        return self._finish(
            tighten(self.space, self.grid.boxes[chosen], self.sample, len(self.fixed)), grid_cost, bound
        )

    def cost(self, count: int) -> float:
        """The cost of the best plan found with at most `count` buckets; inf where all pad too much."""
        if self.worst_padding is not None and self._over(self._search(count, bounded=False)[0]):
            return np.inf
        return self.plan(count, bounded=False).cost

    def _search(self, count: int, bounded: bool) -> tuple[Chosen, float]:
        grid = self.grid
        best = interchange(grid, greedy(grid, count))
        if not bounded or self._over(best):
            return best, 0.0
        relaxed = lower_bound(grid, best)
        start = np.concatenate([relaxed.promising, best[~np.isin(best, relaxed.promising)]])[: len(best)]
        best = min(best, interchange(grid, start), key=lambda chosen: cost_of(grid, chosen))
        rng = np.random.default_rng(SEED)
        for attempt in range(RESTARTS):
            if cost_of(grid, best) <= (1 + CLOSE_ENOUGH) * relaxed.value:
                break
            restarted = interchange(grid, perturbed(best, grid, (0.15, 0.4)[attempt % 2], rng))
            best = min(best, restarted, key=lambda chosen: cost_of(grid, chosen))
        return best, relaxed.value

    def _over(self, chosen: Chosen) -> int:
        """How many cells a plan pads by more than is allowed."""
        return int((self.grid.price[:, chosen].min(axis=1) >= self.grid.forbidden).sum())

    def _exact(self, count: int) -> Plan:
        """The dynamic program on all distinct sizes: no plan of this many buckets is better."""
        whole = self.sample.joined(Sample(np.array([self.space.limit]), np.zeros(1)))
        values, weights = whole.shapes[:, 0], whole.weights
        sizes = optimal_sizes(values, weights, self.space.cost_of(values[:, None]), count)[-1]
        boxes = sizes[::-1, None]
        cost = total_cost(self.space, boxes, self.sample)
        return self._finish(boxes, cost, cost)

    def _finish(self, boxes: Rows, grid_cost: float, bound: float) -> Plan:
        real = float(self.space.cost_of(self.sample.shapes) @ self.sample.weights)
        return Plan(self.space, boxes, total_cost(self.space, boxes, self.sample), real, grid_cost, bound)


def tighten(space: Space, boxes: Rows, sample: Sample, fixed: int) -> Rows:
    """Shrinks every box but the first `fixed` to the join of the shapes it serves, until nothing moves."""
    boxes = boxes.copy()
    while True:
        owner = space.serve(boxes, sample.shapes).argmin(axis=1)
        shrunk = boxes.copy()
        for box in range(fixed, len(boxes)):
            mine = sample.shapes[owner == box]
            if not len(mine):
                continue
            needed = mine
            if space.split is not None:
                needed = mine.copy()
                calls = -(-mine[:, space.split] // boxes[box, space.split])
                needed[:, space.split] = -(-mine[:, space.split] // calls)
            shrunk[box] = np.maximum(needed.max(axis=0), space.low)
        if (shrunk == boxes).all():
            return np.concatenate([boxes[:fixed], np.unique(boxes[fixed:], axis=0)])
        boxes = shrunk


def with_prior(
    space: Space, real: Sample, replays: list[Sample], rng: np.random.Generator, *, unseen: Sequence[Sample] = ()
) -> Sample:
    """The sample to plan on: half the stream that was seen, half its resampled replays, and a little of everything.

    The replays keep a plan of many buckets from fitting the accidents of one stream. The 2 % of everything give sizes that
    were never seen a bucket not too far above them: they are log-uniform over all legal shapes or, where there are such, half
    of them the calls of replays with `unseen` requests. Weights sum to those of `real`.
    """
    share = 1.0 - PRIOR_SHARE
    parts = [real.scaled(share / 2 if replays else share)]
    parts += [replayed.scaled(share / 2 / len(replays)) for replayed in replays]
    parts += [replayed.scaled(PRIOR_SHARE / 2 / len(unseen)) for replayed in unseen]
    parts.append(log_uniform(space, PRIOR_SHAPES, rng).scaled(PRIOR_SHARE / 2 if unseen else PRIOR_SHARE))
    return parts[0].joined(*parts[1:]).scaled(float(real.weights.sum()))


def plan_log_uniform(ranges: Mapping[str, Range], count: int, cost: Cost) -> BucketSet:
    """Buckets for a model whose traffic is not known: sizes log-uniform over the ranges.

    Args:
        ranges: min, step (alignment; 0 means 1) and max of every dim.
        count: most buckets.
        cost: cost of one call at a bucket.
    """
    dims = tuple(ranges)

    def columns(*sizes: Any) -> Any:
        rows = np.stack(np.broadcast_arrays(*sizes), axis=-1).round().astype(np.int64)
        return np.array([cost(Bucket(dims, tuple(map(int, row)))) for row in rows])

    space = Space(
        dims,
        low=tuple(r.min for r in ranges.values()),
        limit=tuple(r.max for r in ranges.values()),
        align=tuple(max(r.step, 1) for r in ranges.values()),
        levels=(max(8, round(4000 ** (1 / len(dims)))),) * len(dims),
        cost=columns,
    )
    sample = log_uniform(space, PRIOR_SHAPES, np.random.default_rng(SEED))
    boxes = Planner(space, sample).plan(count, bounded=False).boxes
    return BucketSet([Bucket(dims, tuple(map(int, box))) for box in boxes], cost)
