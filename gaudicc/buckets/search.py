"""Which k candidates serve a grid at the least cost: greedy, then interchange until no exchange of two buckets helps.

Every cell is served by the cheapest chosen box that may serve it (the k-median problem with fixed members).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.grid import Grid

Chosen = NDArray[np.int64]
SWAPS = 400
"""Most exchanges of one search; it has stopped by itself long before, in all that was tried."""


def cost_of(grid: Grid, chosen: Chosen) -> float:
    """Weighted cost of serving all cells with the chosen boxes."""
    return float(grid.price[:, chosen].min(axis=1).sum())


def greedy(grid: Grid, count: int) -> Chosen:
    """From the fixed boxes up to `count`, each time the box that saves most."""
    chosen = list(range(grid.fixed))
    current = grid.price[:, chosen].min(axis=1)
    saving = current.sum() - np.minimum(grid.price, current[:, None]).sum(axis=0)
    while len(chosen) < min(count, len(grid.boxes)):
        best = int(saving.argmax())
        if saving[best] <= 0:
            break
        chosen.append(best)
        after = np.minimum(current, grid.price[:, best])
        changed = np.flatnonzero(after < current)
        rows = grid.price[changed]
        saving += (np.minimum(rows, current[changed, None]) - np.minimum(rows, after[changed, None])).sum(axis=0)
        saving -= (current - after).sum()
        current = after
    return np.array(chosen, dtype=np.int64)


def interchange(grid: Grid, chosen: Chosen) -> Chosen:
    """Exchanges one chosen box for another, always the best exchange, until none helps."""
    state = _Interchange(grid, chosen)
    for _ in range(SWAPS):
        if not state.exchange():
            break
    return state.chosen


class _Interchange:
    """The tables of best-improvement interchange, kept up to date for the cells that an exchange touches.

    Attributes:
        first, second: each cell's cheapest and second cheapest chosen box, as positions in `chosen`.
        gain: what adding each candidate would save [m].
        loss: what removing each chosen box would cost on top, were the candidate added at the same time [m, k].
    """

    def __init__(self, grid: Grid, chosen: Chosen) -> None:
        self.grid = grid
        self.chosen: Chosen = chosen.copy()
        self.gain = np.zeros(len(grid.boxes))
        self.loss = np.zeros((len(grid.boxes), len(chosen)))
        cells = np.arange(len(grid.cells))
        self.first, self.second = cells.copy(), cells.copy()
        self.first_price, self.second_price = np.zeros(len(cells)), np.zeros(len(cells))
        self._rank(cells)
        self._tally(cells, 1.0)

    def exchange(self) -> bool:
        """Makes the best exchange; False if none saves anything worth the name."""
        if len(self.chosen) <= self.grid.fixed:
            return False
        net = self.gain[:, None] - self.loss
        net[:, : self.grid.fixed] = -np.inf
        net[self.chosen] = -np.inf
        added, removed = np.unravel_index(int(net.argmax()), net.shape)
        if net[added, removed] <= 1e-9 * self.first_price.sum():
            return False
        closer = self.grid.price[:, added] < self.second_price
        cells = np.flatnonzero((self.first == removed) | (self.second == removed) | closer)
        self._tally(cells, -1.0)
        self.chosen[removed] = added
        self._rank(cells)
        self._tally(cells, 1.0)
        return True

    def _rank(self, cells: NDArray[np.int64]) -> None:
        prices = self.grid.price[np.ix_(cells, self.chosen)]
        self.first[cells] = prices.argmin(axis=1)
        rows = np.arange(len(cells))
        self.first_price[cells] = prices[rows, self.first[cells]]
        prices[rows, self.first[cells]] = np.inf
        self.second[cells] = prices.argmin(axis=1)
        self.second_price[cells] = prices[rows, self.second[cells]]

    def _tally(self, cells: NDArray[np.int64], sign: float) -> None:
        """Adds (or takes away) what these cells contribute to `gain` and `loss`."""
        order = cells[np.argsort(self.first[cells], kind="stable")]
        for box in np.unique(self.first[order]):
            group = order[self.first[order] == box]
            price = self.grid.price[group]
            with_first = np.minimum(price, self.first_price[group, None])
            self.gain += sign * (self.first_price[group].sum() - with_first.sum(axis=0))
            self.loss[:, box] += sign * (np.minimum(price, self.second_price[group, None]) - with_first).sum(axis=0)


def perturbed(chosen: Chosen, grid: Grid, share: float, rng: np.random.Generator) -> Chosen:
    """A neighbour to search again from: a share of the free boxes exchanged for random ones."""
    free = np.arange(grid.fixed, len(chosen))
    leaving = rng.permutation(free)[: max(1, int(share * len(free)))]
    outside = np.setdiff1d(np.arange(grid.fixed, len(grid.boxes)), chosen)
    if not len(free) or len(outside) < len(leaving):
        return chosen
    result: Chosen = chosen.copy()
    result[leaving] = rng.choice(outside, size=len(leaving), replace=False)
    return result
