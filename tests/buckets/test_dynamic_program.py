"""The exact program in one dimension against every choice of sizes there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.buckets.dynamic_program import optimal_sizes
from gaudicc.errors import InputError

Case = tuple[list[int], list[float], list[float]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    values = sorted(draw(st.sets(st.integers(0, 50), min_size=1, max_size=9)))
    weights = draw(st.lists(st.integers(0, 9).map(float), min_size=len(values), max_size=len(values)))
    costs = sorted(draw(st.lists(st.integers(1, 99).map(float), min_size=len(values), max_size=len(values))))
    return values, weights, costs


def cost_of(case: Case, chosen: tuple[int, ...]) -> float:
    values, weights, costs = case
    serving = [min(i for i in range(len(values)) if values[i] in chosen and values[i] >= value) for value in values]
    return sum(weight * costs[i] for weight, i in zip(weights, serving, strict=True))


@given(cases(), st.integers(1, 12))
def test_equals_the_best_of_all_choices_for_every_count(case: Case, count: int) -> None:
    values, weights, costs = case
    plans = optimal_sizes(np.array(values), np.array(weights), np.array(costs), count)
    assert len(plans) == count
    for k, plan in enumerate(plans, start=1):
        options = [(*rest, values[-1]) for rest in itertools.combinations(values[:-1], min(k, len(values)) - 1)]
        assert len(plan) <= k
        assert plan[-1] == values[-1]
        assert cost_of(case, tuple(plan.tolist())) == min(cost_of(case, option) for option in options)


@pytest.mark.parametrize(("values", "costs"), [([1, 1], [1.0, 2.0]), ([2, 1], [1.0, 2.0]), ([1, 2], [2.0, 1.0])])
def test_sizes_and_costs_must_rise(values: list[int], costs: list[float]) -> None:
    with pytest.raises(InputError, match="rising sizes"):
        optimal_sizes(np.array(values), np.ones(2), np.array(costs), 1)
