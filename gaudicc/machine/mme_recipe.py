"""Second step of the MME model: which operand stays in the engines' buffer, and in how many activations.

The suspension buffer keeps one operand while the walk runs along the other's direction. Where the sum is too long for
the buffer it is cut into partial sums; where a loop is too long the GEMM is cut into several activations. Restates
`mme/src/mme_common/recipe_generator.cpp` of HabanaAI/Intel_Gaudi3_Software (MIT), commit e6cef1c3.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme_geometry import Layout
from gaudicc.machine.specs import MmeSpec

# More items than this and the predictor keeps nothing in the buffer.
MAX_ITEMS_WITH_REUSE = 16


class Walk(Enum):
    """The order of output tiles: `fck` goes along N first (raster), `fkc` along M first."""

    FCK = "fck"
    FKC = "fkc"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the walk is cut.

    Attributes:
        reuse: `"a"` or `"b"` if that operand stays in the buffer, else None.
        partial: the reused operand is kept a part of K at a time.
        partials: parts of K; 1 if not partial.
        splits_n: activations along N; likewise `splits_m`, and `splits_k` along K and the batch.
        accumulators: output tiles that can be under way at once.
    """

    reuse: str | None
    partial: bool
    partials: int
    splits_n: int
    splits_m: int
    splits_k: int
    accumulators: int

    @property
    def activations(self) -> int:
        """Times the engines are started."""
        return self.splits_n * self.splits_m * self.splits_k


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below a / b."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Smallest multiple of b not below a."""
    return -(-a // b) * b


def cut(gemm: Gemm, layout: Layout, walk: Walk, mme: MmeSpec, *, reuse: bool = True, pipeline_depth: int = 1) -> Recipe:
    """Decides reuse, partial sums and activations of one GEMM.

    Args:
        gemm: the problem.
        layout: its geometry, applied.
        walk: the order of output tiles.
        mme: the matrix engines of the chip.
        reuse: False turns the suspension buffer off.
        pipeline_depth: activations wanted along the walk at least, so that slices can overlap; 1 asks for none.

    Returns:
        The recipe.
    """
    readers = layout.readers_a if gemm.transposes_a else layout.readers_c
    rows = round_up(gemm.rows, readers)
    items = prod(gemm.items)
    tiles_n = ceil_div(gemm.n, layout.width)
    tiles_m = 1 if walk is Walk.FCK and items > 1 else ceil_div(rows, layout.height)
    kept, raster = None, walk is Walk.FCK
    if reuse and items <= MAX_ITEMS_WITH_REUSE:
        kept, raster = _kept_operand(walk, tiles_n, tiles_m)
    partials = _partial_sums(gemm, layout, kept, mme) if kept else 0
    accumulators = mme.accumulators * (2 if layout.double_accumulators else 1)
    cap_n, cap_m = _capacities(kept, partials > 0, tiles_n, tiles_m, accumulators, mme)
    height = layout.height // layout.readers_a * gemm.rows if gemm.rows < layout.readers_a else layout.height
    splits_n = ceil_div(gemm.n, layout.width * cap_n)
    splits_m = ceil_div(rows, height * cap_m)
    if pipeline_depth > 1:
        units_m, units_n = ceil_div(rows, height), ceil_div(gemm.n, layout.width)
        if raster:
            splits_m, splits_n = _deepen(splits_m, splits_n, units_m, units_n, pipeline_depth, kept == "a")
        else:
            splits_n, splits_m = _deepen(splits_n, splits_m, units_n, units_m, pipeline_depth, kept == "b")
    splits_k = partials * items if partials else _batch_pieces(gemm, layout, mme)
    return Recipe(kept, partials > 0, max(partials, 1), splits_n, splits_m, splits_k, accumulators)


def _kept_operand(walk: Walk, tiles_n: int, tiles_m: int) -> tuple[str | None, bool]:
    """(Operand that stays, whether the walk is raster): a walk with nothing to do first turns into the other."""
    if walk is Walk.FCK:
        if tiles_n > 1:
            return "a", True
        return ("b", False) if tiles_m > 1 else (None, True)
    if tiles_m > 1:
        return "b", False
    return ("a", True) if tiles_n > 1 else (None, False)


def _partial_sums(gemm: Gemm, layout: Layout, kept: str, mme: MmeSpec) -> int:
    """Parts of K if it does not fit the buffer, 0 if it fits."""
    transposed = gemm.transposes_a if kept == "a" else gemm.transposes_b
    readers = max(1, 0 if gemm.transposes_a else layout.readers_a, 0 if gemm.transposes_b else layout.readers_b)
    align = mme.k_alignment[gemm.dtype]
    base = align * readers
    line = mme.line_bytes // gemm.element_bytes
    span = round_down(_span(gemm, layout, kept, transposed, mme), base)
    padded = round_up(round_up(gemm.k, line) if transposed else gemm.k, max(readers, align))
    if padded <= span:
        return 0
    unit = max(line, base)
    aligned = round_up(gemm.k, unit)
    fit = ceil_div(aligned, ceil_div(aligned, span) * unit)
    if fit * unit > span:
        fit -= 1
    return ceil_div(gemm.k, unit * fit)


def round_down(a: int, b: int) -> int:
    """Largest multiple of b not above a, but at least b."""
    return max(a // b * b, b)


def _span(gemm: Gemm, layout: Layout, kept: str, transposed: bool, mme: MmeSpec) -> int:
    """Elements of K of the kept operand that the buffer holds."""
    lines = mme.buffer_lines
    if any(stride * gemm.element_bytes % mme.memory_line_bytes for stride in gemm.strides(kept)):
        lines //= 2
    elements = lines * (mme.line_bytes // gemm.element_bytes)
    if transposed:
        return elements // mme.transpose_height
    width, ports = (
        (layout.reuse_width_a, layout.core_ports_a) if kept == "a" else (layout.reuse_width_b, layout.core_ports_b)
    )
    spatial = ports.spatial if mme.generation == 3 or gemm.dtype == "fp8" else 1
    return elements // width * spatial


def _capacities(
    kept: str | None, partial: bool, tiles_n: int, tiles_m: int, accumulators: int, mme: MmeSpec
) -> tuple[int, int]:
    """Steps of one activation along N and M."""
    if kept is None:
        return mme.max_loop, mme.max_loop
    cap_n, cap_m = min(tiles_n, mme.max_loop), min(tiles_m, mme.max_loop)
    if partial:
        return (min(cap_n, accumulators), 1) if kept == "a" else (1, min(cap_m, accumulators))
    return (min(cap_n, mme.max_reuse), cap_m) if kept == "a" else (cap_n, min(cap_m, mme.max_reuse))


def _deepen(outer: int, inner: int, outer_units: int, inner_units: int, depth: int, kept: bool) -> tuple[int, int]:
    """Raises the splits so that at least `depth` activations follow each other; `outer` is the slow direction."""
    outer = max(outer, min(outer_units, depth))
    if outer * inner < depth:
        inner = max(inner, min(inner_units // 4 if kept else inner_units, ceil_div(depth, outer)))
    return outer, inner


def _batch_pieces(gemm: Gemm, layout: Layout, mme: MmeSpec) -> int:
    pieces = 1
    for dim, size in enumerate(gemm.items):
        limit = mme.max_loop * (layout.concurrency if dim == layout.concurrent_dim else 1)
        pieces *= ceil_div(size, limit)
    return pieces
