"""Dividing graphs between prefill and decode: every budget is kept, and the division is the cheapest."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.buckets.cost import GraphPrice
from gaudicc.buckets.planner import Planner
from gaudicc.buckets.pool import Budget, best_division, cost_curve, divide_pool
from gaudicc.buckets.space import Sample, Space
from gaudicc.errors import InputError

curves = st.lists(st.integers(0, 50), min_size=1, max_size=6).map(lambda costs: np.array(costs, dtype=np.float64))
budgets = st.builds(
    Budget,
    st.integers(1, 9),
    device_bytes=st.none() | st.integers(0, 40).map(float),
    compile_seconds=st.none() | st.integers(0, 9).map(float),
    prefill=st.just(GraphPrice(10.0, 1.0)),
    decode=st.just(GraphPrice(1.0, 2.0)),
)


@given(curves, curves, budgets)
def test_division_is_the_cheapest_that_fits(prefill: np.ndarray, decode: np.ndarray, budget: Budget) -> None:
    i, j = best_division(prefill, decode, budget)
    assert budget.allows(i, j)
    pairs = itertools.product(range(len(prefill)), range(len(decode)))
    assert prefill[i] + decode[j] == min(prefill[a] + decode[b] for a, b in pairs if budget.allows(a, b))


@given(budgets, st.integers(0, 9), st.integers(0, 9))
def test_every_part_of_a_budget_binds(budget: Budget, prefill: int, decode: int) -> None:
    held, spent = budget.uses(prefill, decode)
    assert held == 10 * prefill + decode
    assert spent == prefill + 2 * decode
    within = (prefill + decode <= budget.graphs, held <= (budget.device_bytes or np.inf) or not held,
              spent <= (budget.compile_seconds or np.inf) or not spent)  # fmt: skip
    if budget.device_bytes != 0 and budget.compile_seconds != 0:
        assert budget.allows(prefill, decode) == all(within)


def test_curve_is_exact_on_the_ladder_falls_and_is_impossible_below_the_least() -> None:
    curve = cost_curve(lambda count: 100.0 / count, 2, 40)
    assert len(curve) == 41
    assert np.isinf(curve[:2]).all()
    assert (curve[2], curve[40]) == (50.0, 2.5)
    assert (np.diff(curve[2:]) <= 0).all()


def test_curve_is_impossible_where_there_is_no_plan() -> None:
    curve = cost_curve(lambda count: 100.0 / count if count >= 9 else np.inf, 1, 40)
    assert np.isinf(curve[:9]).all()
    assert curve[40] == 2.5
    assert np.isinf(cost_curve(lambda _: np.inf, 1, 5)).all()


def space(limit: int) -> Space:
    return Space(("n",), (1,), (limit,), (1,), (limit,), cost=lambda n: 1.0 + n)


def planners() -> tuple[Planner, Planner]:
    rows = np.arange(1, 33)[:, None]
    return Planner(space(32), Sample.of(rows)), Planner(space(32), Sample.of(rows))


PROMPT, TOKEN = GraphPrice(100.0, 1.0), GraphPrice(1.0, 1.0)


def test_memory_moves_graphs_to_decode() -> None:
    budget = Budget(16, prefill=GraphPrice(100.0, 1.0), decode=GraphPrice(1.0, 1.0))
    prefill, decode = divide_pool(*planners(), budget)
    assert {len(prefill.boxes), len(decode.boxes)} <= {7, 8, 9}
    prefill, decode = divide_pool(*planners(), replace(budget, device_bytes=313.0))
    assert (len(prefill.boxes), len(decode.boxes)) == (3, 13)


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(InputError, match="1 prefill and 1 decode"):
        divide_pool(*planners(), Budget(1))
    with pytest.raises(InputError, match="allows none"):
        Budget(0)
    with pytest.raises(InputError, match="negative"):
        GraphPrice(-1.0, 0.0)
