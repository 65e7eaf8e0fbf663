"""Re-planning from live counts: drift is noticed, recorded buckets stay, the new plan fits the new traffic."""

import numpy as np
import pytest

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.buckets.live import LiveCounts, has_drifted, replan, rows_of
from gaudicc.buckets.planner import Planner
from gaudicc.buckets.space import Sample, Space, waste
from gaudicc.errors import InputError

SPACE = Space(("b", "s"), (1, 1), (8, 100), (1, 1), (8, 50), cost=lambda b, s: 10.0 + b * s)


def test_counts_are_kept_by_shape() -> None:
    live = LiveCounts(("b", "s"))
    with pytest.raises(InputError, match="no calls have been counted"):
        live.sample()
    live.add({"s": 3, "b": 2, "other": 9})
    live.add({"b": 1, "s": 7}, times=4)
    live.add({"b": 2, "s": 3})
    sample = live.sample()
    assert len(live) == 6
    assert dict(zip(map(tuple, sample.shapes.tolist()), sample.weights.tolist(), strict=True)) == {(2, 3): 2, (1, 7): 4}


def test_drift_is_noticed_and_replanning_mends_it_without_dropping_a_bucket() -> None:
    before = Sample.of([[1, s] for s in range(5, 30)])
    plan = Planner(SPACE, before).plan(6)
    assert not has_drifted(plan, before)
    live = LiveCounts(SPACE.dims)
    for s in range(60, 99):
        live.add({"b": 4, "s": s})
    seen = live.sample()
    assert has_drifted(plan, seen)
    again = replan(SPACE, plan.buckets, seen, 12)
    assert set(map(tuple, plan.boxes.tolist())) <= set(map(tuple, again.boxes.tolist()))
    assert len(again.boxes) <= 12
    assert waste(SPACE, again.boxes, seen) < 0.5 * waste(SPACE, plan.boxes, seen)


def test_replanning_afresh_and_refusals() -> None:
    seen = Sample.of([[1, 5]])
    assert len(replan(SPACE, None, seen, 3).boxes) <= 3
    recorded = BucketSet([Bucket(("b", "s"), (8, 100)), Bucket(("b", "s"), (1, 5))])
    assert rows_of(recorded).tolist() == [[8, 100], [1, 5]]
    with pytest.raises(InputError, match="too few"):
        replan(SPACE, recorded, seen, 1)
    with pytest.raises(InputError, match="over"):
        replan(SPACE, BucketSet([Bucket(("x",), (1,))]), seen, 4)
    assert np.array_equal(replan(SPACE, recorded, seen, 2).boxes, rows_of(recorded))
