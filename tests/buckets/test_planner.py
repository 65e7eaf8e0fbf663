"""The planner on problems small enough to try every plan, and the laws of every plan."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.buckets import Buckets, expand
from gaudicc.buckets.bound import lower_bound
from gaudicc.buckets.grid import build_grid
from gaudicc.buckets.planner import Planner, plan_log_uniform, tighten, with_prior
from gaudicc.buckets.scheduler import Server
from gaudicc.buckets.search import cost_of, greedy, interchange
from gaudicc.buckets.space import Rows, Sample, Space, log_uniform, total_cost, waste
from gaudicc.buckets.strategies import Range
from gaudicc.errors import InputError

LINE = Space(("n",), (1,), (12,), (1,), (12,), cost=lambda n: 3.0 + n)
PLANE = Space(("b", "s"), (1, 1), (4, 6), (1, 1), (4, 6), cost=lambda b, s: 5.0 + b * s)
SPLIT = Space(("b", "s"), (1, 1), (4, 6), (1, 1), (4, 6), cost=lambda b, s: 5.0 + b * s, split=0)


def samples(space: Space) -> st.SearchStrategy[Sample]:
    row = st.tuples(*(st.integers(low, high) for low, high in zip(space.low, space.limit, strict=True)))
    rows = st.lists(st.tuples(row, st.integers(1, 9)), min_size=1, max_size=6)
    return rows.map(lambda pairs: Sample.of([shape for shape, _ in pairs], [weight for _, weight in pairs]))


def best_of_all(space: Space, sample: Sample, count: int) -> float:
    """Cost of the best plan of all: boxes anywhere, the covering one among them."""
    ranges = [range(low, high + 1) for low, high in zip(space.low, space.limit, strict=True)]
    boxes = np.array(list(itertools.product(*ranges)))
    served = space.serve(np.concatenate([[space.cover()], boxes]), sample.shapes) * sample.weights[:, None]
    rest = range(1, len(boxes) + 1)
    return min(float(served[:, [0, *chosen]].min(axis=1).sum()) for chosen in itertools.combinations(rest, count - 1))


@given(samples(LINE), st.integers(1, 4))
def test_one_dimension_is_exact(sample: Sample, count: int) -> None:
    plan = Planner(LINE, sample).plan(count)
    assert plan.cost == pytest.approx(best_of_all(LINE, sample, count))
    assert plan.gap == 0
    assert len(plan.boxes) <= count


@pytest.mark.parametrize("space", [PLANE, SPLIT], ids=["whole", "split"])
@settings(max_examples=40)
@given(st.data())
def test_no_plan_is_better_than_the_bound_and_small_plans_are_the_best(space: Space, data: st.DataObject) -> None:
    sample = data.draw(samples(space))
    count = data.draw(st.integers(2, 3))
    plan = Planner(space, sample).plan(count)
    best = best_of_all(space, sample, count)
    assert plan.bound <= best * (1 + 1e-9)
    assert plan.bound <= plan.grid_cost * (1 + 1e-9)
    assert best * (1 - 1e-9) <= plan.cost <= plan.grid_cost * (1 + 1e-9)
    assert plan.cost <= best * 1.02


@given(samples(PLANE), st.integers(1, 5))
def test_every_legal_shape_is_served(sample: Sample, count: int) -> None:
    plan = Planner(PLANE, sample).plan(count)
    everything = np.array(list(itertools.product(range(1, 5), range(1, 7))))
    assert len(plan.boxes) <= count
    assert np.isfinite(PLANE.serve(plan.boxes, everything).min(axis=1)).all()
    assert {tuple(box.sizes) for box in plan.buckets} == set(map(tuple, plan.boxes.tolist()))


@given(samples(PLANE), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=3, unique=True))
def test_recorded_buckets_stay(sample: Sample, kept: list[tuple[int, int]]) -> None:
    plan = Planner(PLANE, sample, kept=np.array(kept)).plan(len(kept) + 2)
    assert plan.boxes[: len(kept)].tolist() == [list(box) for box in kept]


@given(samples(SPLIT), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4))
def test_tightening_never_costs(sample: Sample, rows: list[tuple[int, int]]) -> None:
    boxes = np.concatenate([[SPLIT.cover()], rows])
    tight = tighten(SPLIT, boxes, sample, 1)
    assert total_cost(SPLIT, tight, sample) <= total_cost(SPLIT, boxes, sample) * (1 + 1e-9)
    assert tight[0].tolist() == list(SPLIT.cover())


@given(samples(PLANE), st.integers(2, 4))
def test_interchange_never_loses_to_greedy(sample: Sample, count: int) -> None:
    grid = build_grid(PLANE, sample, np.array([PLANE.cover()]))
    start = greedy(grid, count)
    found = interchange(grid, start)
    assert len(set(found.tolist())) == len(found)
    assert lower_bound(grid, found).value <= cost_of(grid, found) * (1 + 1e-9) <= cost_of(grid, start) * (1 + 2e-9)


def test_worst_padding_is_kept_or_refused() -> None:
    sample = Sample.of([[1, 1], [1, 3], [1, 4], [4, 6]], [1, 100, 100, 1])

    def worst(boxes: Rows) -> float:
        return float((PLANE.serve(boxes, sample.shapes).min(axis=1) / PLANE.cost_of(sample.shapes)).max())

    assert worst(Planner(PLANE, sample).plan(3).boxes) > 1.2
    assert worst(Planner(PLANE, sample, worst_padding=1.2).plan(3).boxes) <= 1.2
    with pytest.raises(InputError, match="2 buckets cannot keep"):
        Planner(PLANE, sample, worst_padding=1.2).plan(2)


@pytest.mark.parametrize("dims", ["prefill", "decode"])
def test_plans_beat_the_strategies_on_the_traffic_they_are_made_for(dims: str) -> None:
    server = Server()
    space = server.prefill_space() if dims == "prefill" else server.decode_space()
    sample = log_uniform(space, 600, np.random.default_rng(3)).rounded(space)
    bounds = {dim: (low, high) for dim, low, high in zip(space.dims, space.low, space.limit, strict=True)}
    ours = Planner(space, sample).plan(16)
    assert ours.gap <= 1.0
    for word in ("exp", "lin", "pad"):
        theirs = np.array([box.sizes for box in expand(Buckets(word, max_graphs=16), bounds)])
        assert waste(space, ours.boxes, sample) < 0.6 * waste(space, space.round_up(theirs), sample)


def test_prior_keeps_the_number_of_calls() -> None:
    rng = np.random.default_rng(0)
    real, other = Sample.of([[1, 1]], [30]), Sample.of([[2, 2]], [5])
    mixed = with_prior(PLANE, real, [other], rng)
    assert mixed.weights.sum() == pytest.approx(30)
    at = {tuple(shape): weight for shape, weight in zip(mixed.shapes.tolist(), mixed.weights, strict=True)}
    assert at[1, 1] > 14
    assert at[2, 2] > 14
    assert len(at) == 24


def test_half_of_the_prior_is_what_unseen_requests_would_bring() -> None:
    real, other = Sample.of([[1, 1]], [30]), Sample.of([[4, 6], [2, 6]], [3, 1])
    shapes = [
        dict(zip(map(tuple, mixed.shapes.tolist()), mixed.weights, strict=True))
        for mixed in (with_prior(PLANE, real, [], np.random.default_rng(0), unseen=seen) for seen in ([], [other]))
    ]
    plain, mixed = shapes
    assert sum(mixed.values()) == pytest.approx(30)
    assert mixed[4, 6] - plain[4, 6] / 2 == pytest.approx(30 * 0.01 * 0.75)
    assert mixed[2, 6] - plain[2, 6] / 2 == pytest.approx(30 * 0.01 * 0.25)


def test_plan_without_traffic_covers_the_ranges() -> None:
    chosen = plan_log_uniform({"batch": Range(1, 1, 8), "seq": Range(0, 16, 512)}, 6, cost=lambda b: 1.0 + b["seq"])
    assert len(chosen) <= 6
    assert chosen.choose({"batch": 8, "seq": 512}).sizes == (8, 512)
    assert all(bucket["seq"] % 16 == 0 for bucket in chosen)


@pytest.mark.parametrize(
    ("rows", "kept", "padding", "count", "words"),
    [
        ([[5, 1]], None, None, 2, "over the limits"),
        ([[1, 1]], None, 0.5, 2, "at least 1"),
        ([[1, 1]], [[1, 1], [2, 2]], None, 2, "2 buckets are too few: 2 are kept"),
        ([[1, 1]], None, None, 0, "0 buckets are too few"),
    ],
)
def test_impossible_requests_are_refused(
    rows: list[list[int]], kept: list[list[int]] | None, padding: float | None, count: int, words: str
) -> None:
    fixed: Rows | None = None if kept is None else np.array(kept)
    with pytest.raises(InputError, match=words):
        Planner(PLANE, Sample.of(rows), fixed, padding).plan(count)


@pytest.mark.parametrize(("rows", "weights"), [([], None), ([1, 2], None), ([[1, 2]], [-1])])
def test_malformed_samples_are_refused(rows: list[Any], weights: list[int] | None) -> None:
    with pytest.raises(InputError):
        Sample.of(rows, weights)


def test_malformed_spaces_are_refused() -> None:
    with pytest.raises(InputError, match="for each of its dims"):
        Space(("a",), (1, 1), (2,), (1,), (4,), cost=lambda a: a)
    with pytest.raises(InputError, match="over its limit"):
        Space(("a",), (3,), (2,), (1,), (4,), cost=lambda a: a)
