"""Last step of the MME model: the geometry and walk that the graph compiler takes for a GEMM.

Restates `getRecommendedStrategy` of `mme/src/mme_common/mme_brain.cpp` (here `recommend`) and what the graph compiler
makes of it in `synapse/src/platform/gaudi{2,3}/graph_compiler/passes/generate_mme_descriptors.cpp` (here `choose`),
HabanaAI/Intel_Gaudi3_Software (MIT), commit e6cef1c3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme import Prediction, count_steps, port_constrained, port_limit, predict, utilisation
from gaudicc.machine.mme_geometry import Geometry, Layout, lay_out
from gaudicc.machine.mme_recipe import Recipe, Walk
from gaudicc.machine.specs import MmeSpec

# Depth of a Gaudi 2 node that is not sliced otherwise.
DEFAULT_PIPELINE_DEPTH = 3
# Two utilisations within this are taken as equal by the graph compiler.
_TIE = np.float32(0.01)
# Largest piece, in elements, that the flattening advice considers.
_FLATTEN_LIMIT = 4 << 20

_CANDIDATES_GAUDI2 = (Geometry.HIGH2, Geometry.WIDE2, Geometry.HIGH4, Geometry.WIDE4)


def candidates(gemm: Gemm, mme: MmeSpec) -> tuple[Geometry, ...]:
    """Geometries worth trying, in the order in which a tie is broken."""
    if mme.generation == 2:
        return _CANDIDATES_GAUDI2
    n, m = gemm.n, gemm.rows
    if prod(gemm.items) >= 4:
        return (Geometry.HIGH4,) if n <= 256 and m <= 256 else (Geometry.HIGH4, Geometry.WIDE4)
    found = [
        geometry
        for geometry, fits in (
            (Geometry.WIDE2, n >= 512 and m >= 512),
            (Geometry.WIDE4, n >= 1024),
            (Geometry.HIGH2, m >= 512 and n > 256),
            (Geometry.HIGH4, m >= 1024),
        )
        if fits
    ]
    return tuple(found) or (Geometry.HIGH2,)


@lru_cache(maxsize=65536)
def choose(
    gemm: Gemm, mme: MmeSpec, *, pipeline_depth: int = DEFAULT_PIPELINE_DEPTH, on_chip: str | None = None
) -> Prediction:
    """The geometry and walk that the graph compiler ends with: by utilisation, then by bytes fetched.

    The comparison is not transitive, so it is kept as the left-to-right maximum that the compiler computes.

    Args:
        gemm: the problem.
        mme: the matrix engines of the chip.
        pipeline_depth: 3 is the default of a node that is not sliced otherwise, 1 of one that is.
        on_chip: `"a"` or `"b"` if exactly that operand is already in on-chip memory.

    Returns:
        The prediction of the chosen geometry and walk.
    """
    gemm = recommend(gemm, mme, pipeline_depth=pipeline_depth).gemm
    tried: Iterator[Prediction] = (
        predict(gemm, geometry, walk, mme, pipeline_depth=pipeline_depth)
        for walk, geometry in product((Walk.FCK, Walk.FKC), candidates(gemm, mme))
    )
    best = next(tried)
    for other in tried:
        if _better(other, best, gemm, mme, on_chip):
            best = other
    return best


def _better(new: Prediction, old: Prediction, gemm: Gemm, mme: MmeSpec, on_chip: str | None) -> bool:
    new_fill, old_fill = np.float32(new.utilisation), np.float32(old.utilisation)
    high, low = max(new_fill, old_fill), min(new_fill, old_fill)
    tied = high / low <= np.float32(1) + _TIE if mme.generation == 2 else high - low <= _TIE
    if not tied:
        return bool(new_fill > old_fill)
    if on_chip:
        off_chip = "b" if on_chip == "a" else "a"
        new_keeps, old_keeps = new.recipe.reuse == off_chip, old.recipe.reuse == off_chip
        if new_keeps != old_keeps:
            return new_keeps
    new_bytes, old_bytes = _fetched_bytes(new, gemm), _fetched_bytes(old, gemm)
    if new_bytes != old_bytes:
        return new_bytes < old_bytes
    return mme.generation == 2 and new.recipe.activations < old.recipe.activations


def _fetched_bytes(prediction: Prediction, gemm: Gemm) -> int:
    batch = prod(gemm.batch)
    size_a = gemm.m * gemm.k * batch
    size_b = gemm.k * gemm.n * (prod(gemm.batch[1:]) if gemm.shared_b else batch)
    read_a, read_b = prediction.reads.engine
    return (read_a * size_a + read_b * size_b) * gemm.element_bytes


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The predictor's own advice for one GEMM.

    Attributes:
        prediction: the geometry with the fewest cycles, and its walk.
        flattening: how many batch items to fold into M in one slice; 1 if none.
        gemm: the problem after the advice, as every later step of the compiler sees it.
    """

    prediction: Prediction
    flattening: int
    gemm: Gemm


@lru_cache(maxsize=65536)
def recommend(gemm: Gemm, mme: MmeSpec, *, pipeline_depth: int = 1) -> Recommendation:
    """The predictor's own advice: fewest cycles. The graph compiler takes its flattening and then decides by `choose`.

    Args:
        gemm: the problem.
        mme: the matrix engines of the chip.
        pipeline_depth: as for `choose`.

    Returns:
        Geometry, walk and flattening advised.
    """
    gemm = _drop_trivial_batch(gemm)
    layouts = {geometry: lay_out(gemm, geometry, mme) for geometry in candidates(gemm, mme)}
    predictions = [
        predict(gemm, geometry, _advised_walk(gemm, geometry, layout), mme, pipeline_depth=pipeline_depth)
        for geometry, layout in layouts.items()
    ]
    best, last = min(predictions, key=lambda prediction: prediction.cycles), predictions[-1]
    # The predictor chooses the walk once more, with the tile of the last candidate: an oversight, kept.
    walk = _advised_walk(gemm, best.geometry, last.layout)
    flattening, gemm = _advised_flattening(gemm, best, walk, last.recipe, mme)
    return Recommendation(predict(gemm, best.geometry, walk, mme, pipeline_depth=pipeline_depth), flattening, gemm)


def _drop_trivial_batch(gemm: Gemm) -> Gemm:
    def keep(strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if strides is None:
            return None
        return strides[:1] + tuple(s for s, size in zip(strides[1:], gemm.batch, strict=False) if size > 1)

    return replace(
        gemm,
        batch=tuple(size for size in gemm.batch if size > 1),
        shared_b=gemm.shared_b and gemm.batch[:1] != (1,),
        strides_a=keep(gemm.strides_a),
        strides_b=keep(gemm.strides_b),
        strides_c=keep(gemm.strides_c),
    )


def _advised_walk(gemm: Gemm, geometry: Geometry, layout: Layout) -> Walk:
    steps_n, steps_m, _ = count_steps(gemm, layout)
    if geometry is Geometry.WIDE4:
        return Walk.FKC if steps_m > 1 else Walk.FCK
    return Walk.FCK if steps_n > 1 else Walk.FKC


def _advised_flattening(gemm: Gemm, best: Prediction, walk: Walk, recipe: Recipe, mme: MmeSpec) -> tuple[int, Gemm]:
    """(Items to fold into M, the problem with them folded).

    Args:
        gemm: the problem.
        best: the geometry taken.
        walk: its walk.
        recipe: that of the candidate evaluated last, whose splits the predictor reads here: another slip, kept.
        mme: the matrix engines of the chip.
    """
    if not gemm.flattens:
        return 1, gemm
    items, height = gemm.batch[0], best.layout.height
    if height % gemm.m == 0:
        # An ideal factor need not divide the batch, so it is only advice: the problem stays as it is.
        if port_constrained(gemm, best.layout, mme):
            return items, gemm
        if height // gemm.m < items:
            return height // gemm.m, gemm
    best_factor, best_fill = 1, -1.0
    for factor in (divisor for divisor in range(1, items + 1) if items % divisor == 0):
        folded = replace(_fold(gemm, factor), flatten=False)
        if max(gemm.k, gemm.n) * folded.m >= _FLATTEN_LIMIT:
            continue
        layout = lay_out(folded, best.geometry, mme)
        steps = count_steps(folded, layout)
        constrained, cost = port_limit(folded, layout, recipe, walk, steps, mme)
        fill = utilisation(folded, layout, steps, constrained, cost)
        if fill > best_fill:
            best_factor, best_fill = factor, fill
    return best_factor, _fold(gemm, best_factor)


def _fold(gemm: Gemm, factor: int) -> Gemm:
    def grow(strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if strides is None else (strides[0], strides[1] * factor, *strides[2:])

    return replace(
        gemm,
        m=gemm.m * factor,
        batch=(gemm.batch[0] // factor, *gemm.batch[1:]),
        strides_a=grow(gemm.strides_a),
        strides_c=grow(gemm.strides_c),
    )
