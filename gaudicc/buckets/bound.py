"""A lower bound on the cost of every plan of k buckets on a grid, so that a plan's distance from the best is known.

Lagrangian relaxation of the k-median problem: with "each cell is served once" priced by multipliers u, any u gives

    L(u) = sum(u) + reduced cost of the fixed boxes + the k - fixed most negative reduced costs,

where the reduced cost of box j is `sum over cells of min(0, price[i, j] - u[i])`. No plan costs less than L(u).
Subgradient steps of Polyak's length, each with momentum from those before, raise it. As any u is valid, u may be
capped; below the cap only the pairs of cell and box whose price is under it count, a small part of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.grid import Grid
from gaudicc.buckets.space import Floats, totals

ITERATIONS = 500
MOMENTUM = 0.9
"""Share of the last direction that the next keeps; 0 leaves a gap two to five times as wide after as many steps."""
PATIENCE = 12
"""Steps without a better bound before the step length shrinks."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What relaxation found.

    Attributes:
        value: no plan of this many boxes costs less on the grid.
        promising: the boxes that the relaxation itself opens, fixed ones first: a start for the search.
    """

    value: float
    promising: NDArray[np.int64]


class Relaxation:
    """The pairs of box and cell below a cap, and L(u) over them.

    Args:
        grid: the problem.
        cap: the largest multiplier of each cell; above the second cheapest price of a good plan it costs nothing.
    """

    def __init__(self, grid: Grid, cap: Floats) -> None:
        self.grid, self.cap = grid, cap
        self.box, self.cell = np.nonzero((grid.price < cap[:, None]).T)
        self.price = grid.price[self.cell, self.box]
        self.used, self.starts = np.unique(self.box, return_index=True)

    def value(self, u: Floats, count: int) -> tuple[float, NDArray[np.int64], Floats]:
        """L(u), the boxes it opens, and its subgradient: one less how often each cell is served."""
        saved = np.minimum(self.price - u[self.cell], 0.0)
        reduced = np.zeros(len(self.grid.boxes))
        reduced[self.used] = np.add.reduceat(saved, self.starts)
        fixed, free = self.grid.fixed, count - self.grid.fixed
        opened: NDArray[np.int64] = np.arange(fixed)
        if free > 0:
            order = np.argsort(reduced[fixed:])[:free] + fixed
            opened = np.concatenate([opened, order[reduced[order] < 0]])
        is_open = np.zeros(len(reduced), dtype=bool)
        is_open[opened] = True
        served = self.cell[(saved < 0) & is_open[self.box]]
        slope = 1.0 - totals(served, np.ones(len(served)), len(u))
        return float(u.sum() + reduced[opened].sum()), opened, slope


def lower_bound(grid: Grid, chosen: NDArray[np.int64], iterations: int = ITERATIONS) -> Bound:
    """The bound for as many boxes as `chosen` has, raised towards the cost of `chosen`."""
    prices = np.sort(grid.price[:, chosen], axis=1)
    upper = float(prices[:, 0].sum())
    cap = np.maximum(1.05 * prices[:, min(1, len(chosen) - 1)], 1.1 * grid.weights * grid.real)
    relaxation = Relaxation(grid, cap)
    u = np.minimum(1.05 * grid.weights * grid.real, cap)
    best, best_u, promising = -np.inf, u, chosen
    theta, stalled, direction = 1.0, 0, np.zeros(len(u))
    for _ in range(iterations):
        value, opened, slope = relaxation.value(u, len(chosen))
        if value > best:
            best, best_u, promising, stalled = value, u, opened, 0
        elif (stalled := stalled + 1) % PATIENCE == 0:
            theta, u, direction = 0.6 * theta, best_u, np.zeros(len(u))
            continue
        direction = slope + MOMENTUM * direction
        norm = float(direction @ direction)
        if norm == 0 or upper - best <= 1e-5 * upper:
            break
        u = np.clip(u + theta * (upper - value) / norm * direction, 0.0, cap)
    return Bound(min(best, upper), promising)
