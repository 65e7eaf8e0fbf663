"""Counts of the shapes that were really asked for, and re-planning from them without dropping what is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from gaudicc.buckets.bucket import BucketSet
from gaudicc.buckets.planner import Plan, Planner, with_prior
from gaudicc.buckets.space import Rows, Sample, Space, waste
from gaudicc.errors import InputError

DRIFT = 1.25
"""Re-planning is worth while when measured waste is over this many times the planned one."""


class LiveCounts:
    """How often each shape was asked for. All of them are kept: on steady traffic a sliding window plans worse.

    Args:
        dims: dim names, in bucket order.
    """

    def __init__(self, dims: tuple[str, ...]) -> None:
        self.dims = dims
        self._counts: Counter[tuple[int, ...]] = Counter()

    def add(self, sizes: Mapping[str, int], times: int = 1) -> None:
        """Counts one call, or several, at these logical sizes."""
        self._counts[tuple(sizes[dim] for dim in self.dims)] += times

    def __len__(self) -> int:
        return self._counts.total()

    def sample(self) -> Sample:
        """What the planner reads.

        Raises:
            InputError: nothing has been counted.
        """
        if not self._counts:
            raise InputError("no calls have been counted yet, so there is nothing to plan from")
        return Sample.of(list(self._counts), list(self._counts.values()))


def has_drifted(plan: Plan, seen: Sample, factor: float = DRIFT) -> bool:
    """Whether traffic pads so much more than planned that re-planning is due."""
    return waste(plan.space, plan.boxes, seen.rounded(plan.space)) > factor * max(plan.waste, 0.5)


def replan(space: Space, recorded: BucketSet | None, seen: Sample, max_graphs: int) -> Plan:
    """A plan for the traffic seen so far that holds every bucket recorded already.

    Args:
        space: legal shapes and cost.
        recorded: buckets whose graphs exist and stay, or None to plan afresh.
        seen: all shapes counted so far (`LiveCounts.sample`).
        max_graphs: most buckets, the recorded ones among them.

    Raises:
        InputError: fewer than what is recorded, or its dims are not the space's.
    """
    if recorded is not None and recorded.dims != space.dims:
        raise InputError(f"the recorded buckets are over {recorded.dims}, the traffic is over {space.dims}")
    kept = None if recorded is None else rows_of(recorded)
    sample = with_prior(space, seen.rounded(space), [], np.random.default_rng(0))
    return Planner(space, sample, kept=kept).plan(max_graphs)


def rows_of(buckets: BucketSet) -> Rows:
    """The sizes of a set's buckets [m, dims]."""
    return np.array([bucket.sizes for bucket in buckets], dtype=np.int64)
