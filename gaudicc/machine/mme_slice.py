"""Utilisation of a GEMM that is computed slice by slice, beside the step models of `mme`.

The geometry is that of the whole problem; slices with a tail height, width or batch are weighed by their number.
Restates `calcUtilization` of `mme/src/mme_common/mme_brain.cpp`, HabanaAI/Intel_Gaudi3_Software (MIT), commit e6cef1c3.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme import count_steps, port_limit, utilisation
from gaudicc.machine.mme_geometry import Geometry, lay_out
from gaudicc.machine.mme_recipe import Walk, ceil_div, cut
from gaudicc.machine.specs import MmeSpec


def sliced_utilisation(gemm: Gemm, part: Gemm, geometry: Geometry, walk: Walk, mme: MmeSpec) -> float:
    """Utilisation over all slices of a GEMM.

    Args:
        gemm: the whole problem.
        part: one full slice: m, n and batch are read, of batch only the concurrent dimension.
        geometry: how the engines lie, for the whole problem.
        walk: order of output tiles.
        mme: the matrix engines of the chip.

    Returns:
        The mean utilisation, in [0, 1].
    """
    layout = lay_out(gemm, geometry, mme)
    recipe = cut(gemm, layout, walk, mme)
    dim = layout.concurrent_dim + (1 if gemm.flattens else 0)
    whole_b, part_b = (gemm.batch[dim], part.batch[dim]) if dim < len(gemm.batch) else (1, 1)
    sizes = ((gemm.n, part.n), (gemm.m, part.m), (whole_b, part_b))
    counts = [ceil_div(whole, slice_size) for whole, slice_size in sizes]
    # An exact multiple has, for the predictor, a tail of the whole size: its slip.
    tails = [whole % slice_size or whole for whole, slice_size in sizes]
    total = 0.0
    for tail_n, tail_m, tail_b in product((False, True), repeat=3):
        if counts[2] == 1 and tail_b:
            continue
        weight = (1 if tail_n else counts[0] - 1) * (1 if tail_m else counts[1] - 1)
        weight *= 1 if tail_b or counts[2] == 1 else counts[2] - 1
        batch = list(part.batch)
        if dim < len(batch) and tail_b:
            batch[dim] = tails[2]
        piece = replace(part, n=tails[0] if tail_n else part.n, m=tails[1] if tail_m else part.m, batch=tuple(batch))
        steps = count_steps(piece, layout)
        constrained, cost = port_limit(piece, layout, recipe, walk, steps, mme)
        total += weight * utilisation(piece, layout, steps, constrained, cost)
    return total / (counts[0] * counts[1] * counts[2])
