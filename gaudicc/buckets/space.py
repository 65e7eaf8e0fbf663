"""The planner's problem: which shapes are legal, what a call costs, and how often each shape was seen.

The scheduler simulator or live counts make a `Sample`; the planner, the peers and the tables all price it through the
same `Space.serve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaudicc.buckets.bucket import Bucket, BucketSet
from gaudicc.buckets.cost import ShapeCost
from gaudicc.errors import InputError

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Space:
    """The legal shapes of one phase and what a call costs.

    Attributes:
        dims: dim names in bucket order.
        low: smallest size of each dim.
        limit: largest size of each dim.
        align: physical sizes are multiples of this, per dim.
        levels: how many sizes of each dim the planner considers at most.
        cost: cost of one call, vectorised over the dims' columns.
        split: index of the dim whose calls may be divided into several (the batch of a prefill), or None.
        legal: of ranges of sizes, given as rows of their lower and upper ends, which hold a shape that a scheduler can
            produce; None when all within the limits can be.
    """

    dims: tuple[str, ...]
    low: tuple[int, ...]
    limit: tuple[int, ...]
    align: tuple[int, ...]
    levels: tuple[int, ...]
    cost: ShapeCost
    split: int | None = None
    legal: Callable[[Rows, Rows], NDArray[np.bool_]] | None = None

    def __post_init__(self) -> None:
        if len({len(part) for part in (self.dims, self.low, self.limit, self.align, self.levels)}) != 1:
            raise InputError(f"a space needs low, limit, align and levels for each of its dims {self.dims}")
        if any(low > limit for low, limit in zip(self.low, self.limit, strict=True)):
            raise InputError(f"a dim's smallest size is over its limit: {self.low}, {self.limit}")

    def cost_of(self, rows: Rows) -> Floats:
        """Cost of one call at each row of sizes [n, dims] -> [n]."""
        return np.broadcast_to(np.asarray(self.cost(*rows.T), dtype=np.float64), (len(rows),))

    def round_up(self, rows: Rows) -> Rows:
        """Sizes rounded up to `align` and clipped into the limits: what even a perfect plan pays."""
        align = np.array(self.align)
        rounded: Rows = np.clip(-(-rows // align) * align, self.low, self.limit)
        return rounded

    def is_legal(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows lie within the limits and can be scheduled."""
        return self.holds_legal(rows, rows)

    def holds_legal(self, lower: Rows, upper: Rows) -> NDArray[np.bool_]:
        """Which ranges, both ends included, hold a shape that can be scheduled."""
        lower, upper = np.maximum(lower, self.low), np.minimum(upper, self.limit)
        inside: NDArray[np.bool_] = np.all(lower <= upper, axis=1)
        return inside if self.legal is None else inside & self.legal(lower, upper)

    def cover(self) -> tuple[int, ...]:
        """The cheapest single bucket that serves every legal shape: the limit, its split dim at 1."""
        return tuple(max(self.low[i], 1) if i == self.split else size for i, size in enumerate(self.limit))

    def serve(self, boxes: Rows, shapes: Rows) -> Floats:
        """Cost of serving each shape [n, dims] with each bucket [m, dims] -> [n, m]; inf where it does not fit.

        A bucket that is too small in the split dim serves a shape in several calls.
        """
        price: Floats = np.broadcast_to(self.cost_of(boxes), (len(shapes), len(boxes))).copy()
        for i in range(len(self.dims)):
            if i == self.split:
                price *= np.maximum(1, -(-shapes[:, i, None] // np.maximum(boxes[None, :, i], 1)))
            else:
                price[shapes[:, i, None] > boxes[None, :, i]] = np.inf
        return price

    def bucket_set(self, boxes: Rows) -> BucketSet:
        """The run-time form of a plan, cheapest by this space's cost."""
        buckets = [Bucket(self.dims, tuple(int(size) for size in box)) for box in boxes]
        return BucketSet(buckets, cost=lambda bucket: float(self.cost(*bucket.sizes)))


@dataclass(frozen=True, slots=True)
class Sample:
    """Distinct shapes [n, dims] and how often, or how likely, each is [n]."""

    shapes: Rows
    weights: Floats

    @classmethod
    def of(cls, rows: ArrayLike, weights: ArrayLike | None = None) -> Sample:
        """Collects equal rows.

        Raises:
            InputError: there is no row, or a weight is negative.
        """
        shapes = np.asarray(rows, dtype=np.int64)
        if shapes.ndim != 2 or not len(shapes):
            raise InputError(f"a sample needs rows of sizes, got an array of shape {shapes.shape}")
        counted = np.ones(len(shapes)) if weights is None else np.asarray(weights, dtype=np.float64)
        if (counted < 0).any():
            raise InputError("a sample's weights cannot be negative")
        extent = tuple(int(size) + 1 for size in shapes.max(axis=0))
        keys, inverse = np.unique(np.ravel_multi_index(tuple(shapes.T), extent), return_inverse=True)
        return cls(np.stack(np.unravel_index(keys, extent), axis=1), totals(inverse, counted, len(keys)))

    def scaled(self, total: float) -> Sample:
        """The same shapes with weights that sum to `total`."""
        return Sample(self.shapes, self.weights * (total / self.weights.sum()))

    def joined(self, *others: Sample) -> Sample:
        """All samples together."""
        every = (self, *others)
        return Sample.of(np.concatenate([s.shapes for s in every]), np.concatenate([s.weights for s in every]))

    def rounded(self, space: Space) -> Sample:
        """The sample in the space's aligned sizes."""
        return Sample.of(space.round_up(self.shapes), self.weights)


def totals(group: NDArray[np.int64], weights: Floats, count: int) -> Floats:
    """Sum of the weights of each group 0 .. count - 1."""
    return np.bincount(group, weights, count).astype(np.float64)


def log_uniform(space: Space, count: int, rng: np.random.Generator) -> Sample:
    """About `count` legal shapes, log-uniform in every dim: the prior for sizes that no request has had yet."""
    low, high = np.log1p(space.low), np.log1p(space.limit)
    rows = np.expm1(rng.uniform(low, high, size=(4 * count, len(space.dims)))).round().astype(np.int64)
    rows = space.round_up(rows)
    return Sample.of(rows[space.is_legal(rows)][:count])


def total_cost(space: Space, boxes: Rows, sample: Sample) -> float:
    """Weighted cost of serving a sample, each shape with the bucket that is cheapest for it."""
    return float(space.serve(boxes, sample.shapes).min(axis=1) @ sample.weights)


def waste(space: Space, boxes: Rows, sample: Sample) -> float:
    """Padded cost over real cost, less one, in percent; the sample is taken as it is, so round it first."""
    return 100.0 * (total_cost(space, boxes, sample) / float(space.cost_of(sample.shapes) @ sample.weights) - 1.0)
