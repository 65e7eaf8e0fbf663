"""First step of the MME model: how one GEMM is laid over the matrix engines of a chip.

A *geometry* places the engines (and on Gaudi 2 their cores) side by side along N or along M; small items of a batch
then share engines. The result, a `Layout`, fixes the output tile of one step, the items computed at once and the input
ports, from which `mme_recipe` and `mme` derive cycles.

Every rule restates Intel's published predictor: HabanaAI/Intel_Gaudi3_Software (MIT), commit e6cef1c3,
`mme/src/gaudi{2,3}/gaudi{2,3}_geo_attr.cpp` and `mme/src/mme_common/common_geo_attr.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import NamedTuple

from gaudicc.machine.gemm import Gemm
from gaudicc.machine.specs import MmeSpec

CORES_PER_ENGINE_GAUDI2 = 2


class Geometry(Enum):
    """How the engines lie: `4xw` is the widest output tile, `4xh` the highest."""

    WIDE4 = "4xw"
    WIDE2 = "2xw"
    HIGH2 = "2xh"
    HIGH4 = "4xh"


class Ports(NamedTuple):
    """A group of memory ports: along the operand's innermost dimension, its other one, and the batch."""

    inner: int
    spatial: int
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """One geometry applied to one GEMM.

    Attributes:
        width: columns of the output tile of one step, over the chip.
        height: rows of the output tile of one step, over the chip.
        engines_n: engines side by side along N.
        engines_m: engines side by side along M.
        engines_b: groups of engines that take different batch items.
        items_per_engine: batch items that one engine computes at once.
        concurrent_dim: the index in `Gemm.items` of the batch dimension computed concurrently.
        ports_a: ports of A in one engine; likewise `ports_b`.
        ports_c: output ports of one engine.
        core_ports_a: ports of A in one core; likewise `core_ports_b`.
        readers_a: interleaved readers of A; likewise `readers_b`, `readers_c`.
        reuse_width_a: rows of A that one buffer line serves when A is not transposed; likewise `reuse_width_b`.
        double_accumulators: half of the unit is used and the accumulators double.
    """

    width: int
    height: int
    engines_n: int
    engines_m: int
    engines_b: int
    items_per_engine: int
    concurrent_dim: int
    ports_a: Ports
    ports_b: Ports
    ports_c: Ports
    core_ports_a: Ports
    core_ports_b: Ports
    readers_a: int
    readers_b: int
    readers_c: int
    reuse_width_a: int
    reuse_width_b: int
    double_accumulators: bool

    @property
    def concurrency(self) -> int:
        """Batch items computed at once by the chip."""
        return self.engines_b * self.items_per_engine

    @property
    def engines(self) -> int:
        """Engines of the grid."""
        return self.engines_n * self.engines_m * self.engines_b

    def chip_ports(self) -> tuple[int, int, int]:
        """Ports of A, B and C over all engines."""
        return tuple(prod(group) * self.engines for group in (self.ports_a, self.ports_b, self.ports_c))  # type: ignore[return-value]


def lay_out(gemm: Gemm, geometry: Geometry, mme: MmeSpec) -> Layout:
    """Lays a GEMM over the engines in the given geometry.

    Args:
        gemm: the problem.
        geometry: how the engines lie.
        mme: the matrix engines of the chip.

    Returns:
        The tile of one step, its concurrency and ports.
    """
    return _lay_out_gaudi3(gemm, geometry, mme) if mme.generation == 3 else _lay_out_gaudi2(gemm, geometry, mme)


def concurrent_dim(items: tuple[int, ...], concurrency: int) -> int:
    """The batch dimension that leaves the fewest steps when divided by the concurrency, the first on a tie."""
    if not items:
        return 0

    def steps(dim: int) -> int:
        return prod(-(-size // concurrency) if i == dim else size for i, size in enumerate(items))

    return min(range(len(items)), key=steps)


# ---------------------------------------------------------------- Gaudi 2


@dataclass(frozen=True, slots=True)
class _Core:
    """One core of a Gaudi 2 engine: its tile, and the axis along which the two cores of an engine lie."""

    width: int
    height: int
    axis: str  # "n", "m" or "b"
    a: Ports
    b: Ports
    c: Ports


def _start_gaudi2(gemm: Gemm, geometry: Geometry) -> _Core:
    fp8 = gemm.dtype == "fp8"

    def quad(transposed: bool) -> Ports:
        return Ports(1, 4) if transposed else Ports(2, 2) if fp8 else Ports(4, 1)

    def pair(transposed: bool) -> Ports:
        return Ports(1, 2) if transposed or fp8 else Ports(2, 1)

    if geometry is Geometry.WIDE4:
        return _Core(256, 128, "n", Ports(1, 1), quad(gemm.transposes_b), Ports(2, 1))
    if geometry is Geometry.HIGH4:
        return _Core(128, 256, "m", quad(gemm.transposes_a), Ports(1, 1), Ports(1, 2))
    return _Core(256, 128, "m", pair(gemm.transposes_a), pair(gemm.transposes_b), Ports(2, 1))


def _share_engine_gaudi2(gemm: Gemm, geometry: Geometry, core: _Core, port: int) -> tuple[_Core, int, int, int]:
    """Several small items in one engine: (core, items, tile width, tile height of an engine)."""
    n, m, fp8 = gemm.n, gemm.rows, gemm.dtype == "fp8"
    third = gemm.items[2] if len(gemm.items) > 2 else 1
    row_b = gemm.strides("b")[0] == (gemm.k if gemm.trans_b else gemm.n)
    if n <= port and m <= port and not fp8 and row_b:
        split = Ports(1, 1, 2)
        return _Core(64, 64, "b", split, split, split), 4, 64, 64
    if geometry is Geometry.WIDE4 and n <= 256 and m <= 64 and third == 1 and (not fp8 or gemm.transposes_a):
        return _Core(256, 128, "b", core.a, core.b, core.c), 2, 256, 128
    if geometry is Geometry.HIGH4 and n <= port and m <= 256 and (not fp8 or gemm.transposes_b):
        width = 64 if gemm.transposes_b else port
        return _Core(width, 256, "b", core.a, core.b, core.c), 2, width, 256
    if geometry in (Geometry.WIDE2, Geometry.HIGH2) and n <= 128 and m <= 128:
        return _Core(128, 128, "b", core.a, core.b, Ports(1, 2)), 2, 128, 128
    width, height = _engine_tile_gaudi2(core)
    return core, 1, width, height


def _engine_tile_gaudi2(core: _Core) -> tuple[int, int]:
    width = core.width * (CORES_PER_ENGINE_GAUDI2 if core.axis == "n" else 1)
    height = core.height * (CORES_PER_ENGINE_GAUDI2 if core.axis == "m" else 1)
    return width, height


def _engine_ports_gaudi2(core: Ports, axis: str, spatial: bool) -> Ports:
    cores = CORES_PER_ENGINE_GAUDI2
    if axis == "b":
        return core._replace(batch=core.batch * cores)
    return core._replace(spatial=core.spatial * cores) if spatial else core._replace(inner=core.inner * cores)


def _lay_out_gaudi2(gemm: Gemm, geometry: Geometry, mme: MmeSpec) -> Layout:
    core = _start_gaudi2(gemm, geometry)
    width, height = _engine_tile_gaudi2(core)
    wide = geometry in (Geometry.WIDE4, Geometry.WIDE2)
    engines_n, engines_m, engines_b = (mme.engines, 1, 1) if wide else (1, mme.engines, 1)
    while width * engines_n // 2 >= gemm.n and engines_n > 1:
        engines_n, engines_b = engines_n // 2, engines_b * 2
    while height * engines_m // 2 >= gemm.rows and engines_m > 1:
        engines_m, engines_b = engines_m // 2, engines_b * 2
    fp8 = gemm.dtype == "fp8"
    port = 128 if fp8 else 64
    items = 1
    if engines_n == engines_m == 1:
        core, items, width, height = _share_engine_gaudi2(gemm, geometry, core, port)
    spatial_a = gemm.transposes_a or (fp8 and geometry is Geometry.WIDE4)
    spatial_b = gemm.transposes_b or (fp8 and geometry is Geometry.HIGH4)
    ports_a = _engine_ports_gaudi2(core.a, core.axis, spatial_a)
    ports_b = _engine_ports_gaudi2(core.b, core.axis, spatial_b)
    ports_c = _engine_ports_gaudi2(core.c, core.axis, core.axis == "m")
    return Layout(
        width=width * engines_n,
        height=height * engines_m,
        engines_n=engines_n,
        engines_m=engines_m,
        engines_b=engines_b,
        items_per_engine=items,
        concurrent_dim=concurrent_dim(gemm.items, engines_b * items),
        ports_a=ports_a,
        ports_b=ports_b,
        ports_c=ports_c,
        core_ports_a=core.a,
        core_ports_b=core.b,
        readers_a=ports_a.spatial * (engines_m if gemm.transposes_a else 1),
        readers_b=1 if gemm.transposes_b else ports_b.spatial,
        readers_c=ports_c.spatial * engines_m if gemm.transposes_a else core.c.spatial,
        reuse_width_a=port,
        reuse_width_b=port,
        double_accumulators=items == 4,
    )


# ---------------------------------------------------------------- Gaudi 3


def _grid_gaudi3(geometry: Geometry, engines: int) -> tuple[int, int]:
    if engines == 1:
        return 1, 1
    half = engines // 2
    return {
        Geometry.WIDE4: (engines, 1),
        Geometry.WIDE2: (half, 2),
        Geometry.HIGH2: (2, half),
        Geometry.HIGH4: (1, engines),
    }[geometry]


def _doubles_gaudi3(gemm: Gemm, engines_m: int, ports_a: int, ports_c: int) -> bool:
    """Few enough rows that an engine uses half its height and twice its accumulators."""
    need, readers_c = (ports_a * engines_m, ports_c * engines_m) if gemm.transposes_a else (1, 1)
    return gemm.m >= need and -(-gemm.rows // readers_c) <= 64


def _lay_out_gaudi3(gemm: Gemm, geometry: Geometry, mme: MmeSpec) -> Layout:
    engines_n, engines_m = _grid_gaudi3(geometry, mme.engines)
    engines_b = 1

    def engine_height() -> int:
        return 128 if _doubles_gaudi3(gemm, engines_m, 4, 2) else 256

    while 256 * engines_n // 2 >= gemm.n and engines_n > 1:
        engines_n, engines_b = engines_n // 2, engines_b * 2
    while engine_height() * engines_m // 2 >= gemm.rows and engines_m > 1:
        engines_m, engines_b = engines_m // 2, engines_b * 2
    width, height, items = 256, engine_height(), 1
    double = height == 128
    ports_a, ports_b, ports_c = Ports(1, 4), Ports(1, 4), Ports(1, 2)
    alone = engines_n == engines_m == 1
    if alone and gemm.rows <= height // 2:
        shares_b = gemm.shared_b and not gemm.flattens and bool(gemm.batch) and gemm.batch[0] != 1
        if (shares_b and gemm.n <= 256) or gemm.n <= 128:
            items = 2
            double = _doubles_gaudi3(gemm, 1, 2, 1)
            height = 64 if double else 128
            ports_a, ports_c = Ports(1, 2, 2), Ports(1, 1, 2)
            if not shares_b:
                width, ports_b = 128, Ports(1, 2, 2)
    return Layout(
        width=width * engines_n,
        height=height * engines_m,
        engines_n=engines_n,
        engines_m=engines_m,
        engines_b=engines_b,
        items_per_engine=items,
        # The predictor settles on the first dimension as soon as it considers sharing an engine.
        concurrent_dim=0 if alone else concurrent_dim(gemm.items, engines_b * items),
        ports_a=ports_a,
        ports_b=ports_b,
        ports_c=ports_c,
        core_ports_a=ports_a,
        core_ports_b=ports_b,
        readers_a=ports_a.spatial * (engines_m if gemm.transposes_a else 1),
        readers_b=1 if gemm.transposes_b else ports_b.spatial,
        readers_c=ports_c.spatial * engines_m if gemm.transposes_a else 1,
        reuse_width_a=256 // items,
        reuse_width_b=width,
        double_accumulators=double,
    )
