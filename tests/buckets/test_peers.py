"""The tuned rules that the planner is judged against: they use no more buckets than allowed and miss nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.buckets.peers import best_default, needed_product, tuned_buckets
from gaudicc.buckets.planner import Planner
from gaudicc.buckets.scheduler import Server
from gaudicc.buckets.space import Sample, Space, log_uniform, total_cost

SERVER = Server(max_model_len=1024, max_num_batched_tokens=512, max_prefill_seqs=2, max_num_seqs=6, kv_blocks=20)
SPACES = {"prefill": SERVER.prefill_space(), "decode": SERVER.decode_space()}
spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def legal_shapes(space: Space) -> np.ndarray:
    axes = [range(low, high + 1, a) for low, high, a in zip(space.low, space.limit, space.align, strict=True)]
    points = np.array(list(itertools.product(*axes)))
    return points[space.is_legal(points)]


@spaces
@settings(max_examples=30)
@given(st.data())
def test_needed_boxes_are_those_that_some_legal_shape_rounds_up_to(space: Space, data: st.DataObject) -> None:
    lists = tuple(
        (*sorted(data.draw(st.sets(st.sampled_from(range(low, high, a)), max_size=3)) if high > low else ()), high)
        for low, high, a in zip(space.low, space.limit, space.align, strict=True)
    )
    shapes = legal_shapes(space)
    columns = [np.array(sizes)[np.searchsorted(sizes, shapes[:, i])] for i, sizes in enumerate(lists)]
    expected = set(map(tuple, np.stack(columns, axis=1).tolist()))
    assert set(map(tuple, needed_product(space, lists).tolist())) == expected


@spaces
def test_tuned_rules_keep_the_count_serve_everything_and_lose_to_the_plan(space: Space) -> None:
    sample = log_uniform(space, 300, np.random.default_rng(5)).rounded(space)
    counts = (4, 8)
    tuned = tuned_buckets(space, sample, counts)
    costs = [total_cost(space, tuned[count], sample) for count in counts]
    assert costs[0] >= costs[1]
    for count, cost in zip(counts, costs, strict=True):
        assert len(tuned[count]) <= count
        assert np.isfinite(space.serve(tuned[count], legal_shapes(space)).min(axis=1)).all()
        assert cost <= total_cost(space, best_default(space, sample, count), sample) * (1 + 1e-9)
        assert total_cost(space, Planner(space, sample).plan(count).boxes, sample) < cost


@spaces
@pytest.mark.parametrize("count", [1, 5, 12])
def test_default_rules_keep_the_count_and_serve_everything(space: Space, count: int) -> None:
    boxes = best_default(space, Sample.of(legal_shapes(space)), count)
    assert len(boxes) <= count
    assert np.isfinite(space.serve(boxes, legal_shapes(space)).min(axis=1)).all()
