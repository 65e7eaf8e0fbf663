"""One budget for prefill and decode graphs: how many of each.

Graphs of the two phases are priced apart: a prompt graph holds hundreds of times the memory of a decode graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gaudicc.buckets.cost import DECODE_GRAPH, PREFILL_GRAPH, GraphPrice
from gaudicc.buckets.planner import Plan, Planner
from gaudicc.buckets.space import Floats
from gaudicc.errors import InputError

LADDER = 16
"""Counts at which each phase's cost is computed, in geometric steps; between them it is interpolated."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What all graphs together may use.

    Attributes:
        graphs: number of graphs.
        device_bytes: device memory they hold, or None.
        compile_seconds: time to compile and record them one after the other, or None.
        prefill: price of one prefill graph.
        decode: price of one decode graph.
    """

    graphs: int
    device_bytes: float | None = None
    compile_seconds: float | None = None
    prefill: GraphPrice = PREFILL_GRAPH
    decode: GraphPrice = DECODE_GRAPH

    def __post_init__(self) -> None:
        if self.graphs < 1:
            raise InputError(f"a budget of {self.graphs} graphs allows none")

    def uses(self, prefill: int, decode: int) -> tuple[float, float]:
        """Device bytes that so many graphs of each phase hold, and seconds to compile and record them."""
        held = prefill * self.prefill.device_bytes + decode * self.decode.device_bytes
        return held, prefill * self.prefill.compile_seconds + decode * self.decode.compile_seconds

    def allows(self, prefill: int, decode: int) -> bool:
        """Whether so many graphs of each phase fit."""
        held, spent = self.uses(prefill, decode)
        return (
            prefill + decode <= self.graphs
            and (self.device_bytes is None or held <= self.device_bytes)
            and (self.compile_seconds is None or spent <= self.compile_seconds)
        )


def divide_pool(prefill: Planner, decode: Planner, budget: Budget) -> tuple[Plan, Plan]:
    """Plans both phases within one budget, at the division that costs least.

    Both planners' samples must be weighted by numbers of calls of the same traffic, and priced in the same unit.

    Raises:
        InputError: not even the buckets that must be there fit, or no division keeps the padding within its bound.
    """
    least = (len(prefill.fixed), len(decode.fixed))
    if not budget.allows(*least):
        raise InputError(
            f"the budget does not allow even the least there must be: {least[0]} prefill and {least[1]} decode graphs",
            hint="raise the budget; one graph of each phase must serve every legal shape",
        )
    curves = (
        cost_curve(prefill.cost, least[0], budget.graphs - least[1]),
        cost_curve(decode.cost, least[1], budget.graphs - least[0]),
    )
    first, second = best_division(*curves, budget)
    if not np.isfinite(curves[0][first] + curves[1][second]):
        raise InputError(
            "no division of this budget can keep every shape's padding within its bound",
            hint="raise the budget, or allow more padding",
        )
    return prefill.plan(first), decode.plan(second)


def cost_curve(cost: Callable[[int], float], least: int, most: int) -> Floats:
    """Cost by count 0 .. most, interpolated between a ladder of counts; inf below `least` and where there is no plan.

    Args:
        cost: the cost of a plan of so many buckets, inf where there is none.
        least: the smallest count that has a plan.
        most: the largest count.
    """
    ladder = np.unique(np.geomspace(least, most, LADDER).round().astype(int))
    costs = np.minimum.accumulate([cost(int(count)) for count in ladder])
    possible = np.isfinite(costs)
    if not possible.any():
        return np.full(most + 1, np.inf)
    curve = np.interp(np.arange(most + 1), ladder[possible], costs[possible]).astype(np.float64)
    curve[: ladder[possible][0]] = np.inf
    return curve


def best_division(prefill: Floats, decode: Floats, budget: Budget) -> tuple[int, int]:
    """The pair of counts within the budget whose costs sum to the least; of equals, the fewest graphs."""
    pairs = [
        (float(prefill[i] + decode[j]), i + j, i, j)
        for i in range(len(prefill))
        for j in range(len(decode))
        if budget.allows(i, j)
    ]
    _, _, first, second = min(pairs)
    return first, second
