"""Third step of the MME model: cycles, utilisation and reads of one GEMM in a given geometry and walk.

Compute cycles only: the speed of fp8, memory bandwidth and the clock that a long run sustains are not in the vendor's
predictor and are added by `cost`. Restates `mme/src/mme_common/mme_brain.cpp` of HabanaAI/Intel_Gaudi3_Software
(MIT), commit e6cef1c3, its slips included, for they decide what runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod

import numpy as np

from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme_geometry import Geometry, Layout, lay_out
from gaudicc.machine.mme_recipe import Recipe, Walk, ceil_div, cut
from gaudicc.machine.specs import MmeSpec

# The predictor subtracts step counts as 32-bit unsigned numbers; where that wraps the cycles explode, which in effect
# forbids the geometry. Kept, so that forced geometries agree too.
_UINT32 = 1 << 32


@dataclass(frozen=True, slots=True)
class Reads:
    """How often the whole of A and of B is read.

    Attributes:
        engine: (A, B) times, by one engine.
        chip: (A, B) times, over the chip.
        dcore: (A, B) times, per DCORE (a fourth of Gaudi 3; all of Gaudi 2).
        bandwidth: (A, B) bandwidth asked of memory, GB/s.
    """

    engine: tuple[int, int]
    chip: tuple[int, int]
    dcore: tuple[float, float]
    bandwidth: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the predictor says of one GEMM in one geometry and walk.

    Attributes:
        geometry: how the engines lie.
        walk: order of output tiles.
        cycles: MME cycles of the whole GEMM, compute only.
        utilisation: fill of the tiles, in [0, 1], float32; neither the drain floor nor K enters.
        steps: (N, M, batch) steps.
        constrained: steps that the ports cannot feed at full speed (Gaudi 2).
        constrained_cost: length of such a step in ordinary steps; 1 if there is none.
        layout: tile, engine grid and ports.
        recipe: reuse, partial sums, activations.
        reads: how often the operands are read.
    """

    geometry: Geometry
    walk: Walk
    cycles: int
    utilisation: float
    steps: tuple[int, int, int]
    constrained: int
    constrained_cost: float
    layout: Layout
    recipe: Recipe
    reads: Reads


def predict(
    gemm: Gemm, geometry: Geometry, walk: Walk, mme: MmeSpec, *, reuse: bool = True, pipeline_depth: int = 1
) -> Prediction:
    """Predicts one GEMM with geometry and walk given.

    Args:
        gemm: the problem.
        geometry: how the engines lie.
        walk: order of output tiles.
        mme: the matrix engines of the chip.
        reuse: False turns the suspension buffer off.
        pipeline_depth: least number of activations asked for, so that slices can overlap.

    Returns:
        Cycles, utilisation, steps, recipe and reads.
    """
    layout = lay_out(gemm, geometry, mme)
    recipe = cut(gemm, layout, walk, mme, reuse=reuse, pipeline_depth=pipeline_depth)
    steps = count_steps(gemm, layout)
    constrained, cost = port_limit(gemm, layout, recipe, walk, steps, mme)
    return Prediction(
        geometry=geometry,
        walk=walk,
        cycles=_cycles(gemm.k, steps, constrained, cost, recipe, mme),
        utilisation=utilisation(gemm, layout, steps, constrained, cost),
        steps=steps,
        constrained=constrained,
        constrained_cost=float(cost),
        layout=layout,
        recipe=recipe,
        reads=_reads(layout, recipe, walk, steps, mme),
    )


def count_steps(gemm: Gemm, layout: Layout) -> tuple[int, int, int]:
    """(N, M, batch) steps. The first batch dimension is divided even where another one is the concurrent one."""
    items = gemm.items
    batch = ceil_div(items[0] if items else 1, layout.concurrency) * prod(items[1:])
    return ceil_div(gemm.n, layout.width), ceil_div(gemm.rows, layout.height), batch


def port_constrained(gemm: Gemm, layout: Layout, mme: MmeSpec) -> bool:
    """Whether ten ports of a Gaudi 2 engine must share its eight buffers."""
    if mme.generation == 3 or gemm.dtype == "fp32" or prod(layout.ports_a) + prod(layout.ports_b) <= 8:
        return False
    spare_port = prod(layout.core_ports_b) == 1 and not gemm.transposes_a and layout.core_ports_a.spatial == 1
    return not (spare_port and gemm.rows <= 192)


def port_limit(
    gemm: Gemm, layout: Layout, recipe: Recipe, walk: Walk, steps: tuple[int, int, int], mme: MmeSpec
) -> tuple[int, np.float32]:
    """(Steps that wait for a shared buffer, length of such a step in ordinary steps)."""
    if not port_constrained(gemm, layout, mme):
        return 0, np.float32(1)
    steps_n, steps_m, _ = steps
    along_n = steps_n != 1 if walk is Walk.FCK else steps_m == 1
    constrained = (steps_m if along_n else steps_n) * recipe.splits_n * recipe.splits_m
    height = np.float32(mme.transpose_height)
    cost_a = 1 + np.float32(ceil_div(gemm.rows, layout.readers_a)) / height if gemm.transposes_a else np.float32(2)
    cost_b = 1 + np.float32(min(gemm.n, mme.transpose_height)) / height if gemm.transposes_b else np.float32(2)
    return constrained, min(np.float32(cost_a), np.float32(cost_b))


def cycles_at_rate(prediction: Prediction, k: int, rate: float, mme: MmeSpec) -> int:
    """Cycles of a predicted GEMM whose dtype runs at `rate` times the speed of bf16: only the sum gets shorter.

    The predictor itself gives all dtypes one speed; draining the accumulators takes as long for each.

    Args:
        prediction: geometry, steps and recipe.
        k: length of the sum.
        rate: speed relative to bf16.
        mme: the matrix engines of the chip.

    Returns:
        Cycles; `prediction.cycles` at rate 1.
    """
    cost = np.float32(prediction.constrained_cost)
    return _cycles(math.ceil(k / rate), prediction.steps, prediction.constrained, cost, prediction.recipe, mme)


def _cycles(
    k: int, steps: tuple[int, int, int], constrained: int, cost: np.float32, recipe: Recipe, mme: MmeSpec
) -> int:
    steps_n, steps_m, steps_b = steps
    step = max(k, mme.drain_floor)
    if recipe.partial and ceil_div(k, recipe.partials) < mme.drain_floor:
        step = recipe.partials * mme.drain_floor
    slow = max(int(np.float32(k) * cost), mme.drain_floor)
    plain = (steps_n * steps_m - constrained) * steps_b % _UINT32
    return plain * step + constrained * steps_b * slow


def utilisation(gemm: Gemm, layout: Layout, steps: tuple[int, int, int], constrained: int, cost: np.float32) -> float:
    """Average fill over full and edge tiles, in float32 as the predictor has it."""

    def fill(size: int, tile: int) -> float:
        return float(np.float32(size - (ceil_div(size, tile) - 1) * tile) / np.float32(tile))

    steps_n, steps_m, steps_b = (np.float32(step) for step in steps)
    one = np.float32(1)
    last_n, last_m = np.float32(fill(gemm.n, layout.width)), np.float32(fill(gemm.rows, layout.height))
    full = (steps_n - one) * (steps_m - one) + last_m * (steps_n - one) + last_n * (steps_m - one) + last_n * last_m
    item = full / (steps_n * steps_m + np.float32(constrained) * (cost - one))
    last_b = np.float32(fill(gemm.items[layout.concurrent_dim] if gemm.items else 1, layout.concurrency))
    return float((item * (steps_b - one) + item * last_b) / steps_b)


def _reads(layout: Layout, recipe: Recipe, walk: Walk, steps: tuple[int, int, int], mme: MmeSpec) -> Reads:
    steps_n, steps_m, _ = steps
    if walk is Walk.FCK:
        read_a = steps_n if recipe.reuse != "a" else recipe.splits_n if recipe.partial else 1
        read_b = 1 if recipe.reuse == "b" else steps_m
    else:
        read_b = steps_m if recipe.reuse != "b" else recipe.splits_m if recipe.partial else 1
        read_a = 1 if recipe.reuse == "a" else steps_n
    chip_a, chip_b = read_a * layout.engines_n, read_b * layout.engines_m
    dcore_a, dcore_b = float(chip_a), float(chip_b)
    if mme.dcores > 1 and layout.engines_n >= mme.dcores:
        dcore_a /= mme.dcores
    elif mme.dcores > 1 and layout.concurrency < mme.dcores <= layout.engines_m:
        dcore_b /= mme.dcores
    ports_a, ports_b, _ = layout.chip_ports()
    longest = recipe.accumulators if recipe.partial else max(steps_n, steps_m)
    bandwidth_a = mme.port_gigabytes * ports_a / (min(steps_n, longest) if recipe.reuse == "a" else 1)
    bandwidth_b = mme.port_gigabytes * ports_b / (min(steps_m, longest) if recipe.reuse == "b" else 1)
    return Reads((read_a, read_b), (chip_a, chip_b), (dcore_a, dcore_b), (bandwidth_a, bandwidth_b))
