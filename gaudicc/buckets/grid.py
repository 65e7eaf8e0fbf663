"""Sample -> cells and candidate buckets: the finite problem that the search and the bound both work on.

Each axis keeps at most `space.levels` sizes, the best by the exact dynamic program on that axis alone. Shapes round up
to cells of the level grid. A candidate is a box whose corner is the coordinate-wise maximum of the cells it holds: any
other box could shrink and serve the same cells for less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.dynamic_program import optimal_sizes
from gaudicc.buckets.space import Floats, Rows, Sample, Space, totals


@dataclass(frozen=True, slots=True)
class Grid:
    """The finite problem.

    Attributes:
        cells: sizes of the cells that carry weight [n, dims].
        weights: weight of each cell [n].
        real: weighted mean cost of the shapes in each cell, unpadded [n].
        boxes: candidate buckets [m, dims]; the first `fixed` of them are in every plan.
        fixed: number of buckets in every plan.
        price: weight times cost of serving each cell with each box [n, m]; where a box is too small, more than the
            covering box costs, and where the padding would be over the worst allowed, `forbidden` more.
        forbidden: more than any allowed plan costs.
    """

    cells: Rows
    weights: Floats
    real: Floats
    boxes: Rows
    fixed: int
    price: Floats
    forbidden: float


def build_grid(space: Space, sample: Sample, fixed: Rows, worst_padding: float | None = None) -> Grid:
    """Builds the finite problem of a sample (in aligned sizes).

    Args:
        space: the legal shapes and their cost.
        sample: what is to be served.
        fixed: buckets that are in every plan [f, dims]; together they serve all legal shapes.
        worst_padding: most padded cost over real cost of any single shape, as a ratio, or None.
    """
    levels = [_levels(space, sample, fixed, i) for i in range(len(space.dims))]
    index = np.stack([np.searchsorted(level, sample.shapes[:, i]) for i, level in enumerate(levels)], axis=1)
    real_cost = space.cost_of(sample.shapes)
    extent = tuple(len(level) for level in levels)
    keys, inverse = np.unique(np.ravel_multi_index(tuple(index.T), extent), return_inverse=True)
    weights = totals(inverse, sample.weights, len(keys))
    real = totals(inverse, sample.weights * real_cost, len(keys)) / np.maximum(weights, 1e-300)
    smallest = np.full(len(keys), np.inf)
    np.minimum.at(smallest, inverse, real_cost)
    corners = np.stack(np.unravel_index(keys, extent), axis=1)
    cells = np.stack([level[corners[:, i]] for i, level in enumerate(levels)], axis=1)
    boxes = np.stack([level[part] for level, part in zip(levels, _closed(space, corners, extent), strict=True)], axis=1)
    boxes = np.concatenate([fixed, boxes[~(boxes[:, None] == fixed[None]).all(axis=2).any(axis=1)]])

    cost = space.serve(boxes, cells)
    top = float(cost[np.isfinite(cost)].max())
    price = np.where(np.isfinite(cost), cost, 4 * top) * weights[:, None]
    forbidden = 2 * top * float(weights.sum())
    if worst_padding is not None:
        over = (cost > worst_padding * smallest[:, None]) & (weights[:, None] > 0)
        price = np.where(over, price + forbidden, price)
    return Grid(cells, weights, real, boxes, len(fixed), price, forbidden)


def _levels(space: Space, sample: Sample, fixed: Rows, dim: int) -> NDArray[np.int64]:
    """One axis' sizes: by the dynamic program with the other dims at their mean, the largest seen, the fixed ones."""
    values, inverse = np.unique(sample.shapes[:, dim], return_inverse=True)
    if len(values) > space.levels[dim]:
        weights = totals(inverse, sample.weights, len(values))
        mean = sample.weights @ sample.shapes / sample.weights.sum()
        rows = np.broadcast_to(mean, (len(values), len(mean))).copy()
        rows[:, dim] = values
        costs = np.maximum.accumulate(np.asarray(space.cost(*rows.T), dtype=np.float64) * np.ones(len(values)))
        values = optimal_sizes(values, weights, costs, space.levels[dim])[-1]
    return np.unique(np.concatenate([values, fixed[:, dim], [space.limit[dim]]]))


def _closed(space: Space, corners: Rows, extent: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Level indices, per dim, of the boxes that equal the join of the cells they serve."""
    seen = np.zeros(extent, dtype=bool)
    seen[tuple(corners.T)] = True
    if space.split is not None:  # a box serves a larger batch in several calls, so only the other dims bind it
        seen[:] = seen.any(axis=space.split, keepdims=True)
    closed = np.ones(extent, dtype=bool)
    for dim in range(len(extent)):
        own = np.arange(extent[dim]).reshape([-1 if i == dim else 1 for i in range(len(extent))])
        highest = np.where(seen, own, -1)
        for axis in range(len(extent)):
            highest = np.maximum.accumulate(highest, axis=axis)
        closed &= highest == own
    return list(np.nonzero(closed))
