"""The words of the target tables: support, engine, mode, row, verdict; all of `gaudicc.targets` is built of these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Support(Enum):
    """How far a source vouches for an op; only `EVIDENCED` counts as legal."""

    EVIDENCED = "evidenced"
    """A source says that the device runs it under this condition."""
    REPORTED_BAD = "reported_bad"
    """Listed as supported, but users report crashes or eager fallbacks."""
    PRESUMED = "presumed"
    """Registered on the device, but no source speaks of this dtype or condition."""
    NO = "no"
    """A source says no, or no source knows the op."""

    @property
    def rank(self) -> int:
        """0 for evidenced, growing with distrust: the verdict of a composite is that of its worst part."""
        return list(Support).index(self)


class Engine(Enum):
    """The unit of the chip that runs an op."""

    MME = "MME"
    TPC = "TPC"
    DMA = "DMA"
    MME_TPC = "MME+TPC"
    """A matrix product with a vector epilogue: `linear` and `addmm` add their bias on the TPC."""
    NONE = "none"
    """A view, a logical concat, or arithmetic on sizes: no unit is busy."""
    HOST = "host"
    """Left on the host by `on_unsupported="host"`."""
    UNKNOWN = "unknown"
    """Decided by the parts of a composite op."""


class Mode(Enum):
    """Gaudi's two execution modes."""

    LAZY = "lazy"
    """Lazy mode with HPUGraph record and replay."""
    COMPILE = "compile"
    """`torch.compile(backend="hpu_backend")` with a recipe cache."""


class Lazy(Enum):
    """How the lazy front end meets an op."""

    NATIVE = "native"
    COMPOSITE = "composite"
    """No kernel of its own and not in the vendor's operator table: its parts decide."""
    DOCUMENTED = "documented"
    """No kernel of its own, but the vendor's operator table names it as supported."""
    FALLBACK = "fallback"
    """Runs on the host; fatal inside a recorded graph."""
    NO = "no"


class Compile(Enum):
    """How `hpu_backend` places an op."""

    CLUSTER = "cluster"
    VALIDATED = "validated"
    """In a cluster if the run-time check agrees; legal where a source names the dtype."""
    DECOMPOSED = "decomposed"
    """Gone before placement; its parts decide."""
    FUNCTIONALIZED = "functionalized"
    """An in-place or out variant; judged as its functional form."""
    EAGER = "eager"
    """Placed outside the cluster: it breaks the recorded graph."""
    NO = "no"


class Kind(Enum):
    """What the op is upstream."""

    KERNEL = "kernel"
    IMPLICIT = "implicit"
    """CompositeImplicitAutograd: the dispatcher decomposes it before any device sees it."""
    EXPLICIT = "explicit"
    """CompositeExplicitAutograd: a backend-agnostic kernel made of other ops."""
    BACKEND = "backend"
    """A node of the vendor's own graph that Python cannot call."""


@dataclass(frozen=True, slots=True)
class Row:
    """One op overload in a chip's table.

    Attributes:
        op: `aten::add.Tensor`; a default overload is bare, `aten::mm`.
        lazy: how lazy mode meets it.
        compile: how `hpu_backend` places it.
        kind: what it is upstream.
        operands: dtype codes per tensor operand (see `gaudicc.targets.dtypes`); the last one repeats.
        engine: the unit that runs it.
        dynamic: whether its output size, or a host read, always depends on data.
        when: names of the conditions under which it is not supported (see `gaudicc.targets.conditions`).
        evidence: what speaks of its dtypes: `yaml`, `docs_table`, `runtime_shared_layer`, `same kernel as OP`, or "".
        source: files that say so.
        release: software release of the source.
    """

    op: str
    lazy: Lazy
    compile: Compile
    kind: Kind
    operands: tuple[str, ...]
    engine: Engine
    dynamic: bool
    when: tuple[str, ...]
    evidence: str
    source: str
    release: str


@dataclass(frozen=True, slots=True)
class OverlayRow:
    """One statement that wins over the table wherever it applies.

    Attributes:
        op: as in `Row`.
        support: the verdict where the row applies.
        dtypes: dtype codes it speaks of; empty means all that the chip holds.
        modes: modes it speaks of.
        when: condition under which it applies, or None for always.
        engine: the unit that runs it.
        dynamic: whether its output size depends on data.
        reason: one sentence.
        source: who says so.
        release: software release it was seen on.
    """

    op: str
    support: Support
    dtypes: tuple[str, ...]
    modes: tuple[Mode, ...]
    when: str | None
    engine: Engine
    dynamic: bool
    reason: str
    source: str
    release: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a lookup.

    Attributes:
        support: the four-valued answer.
        engine: the unit that would run the op.
        reason: why, in one sentence.
        source: the files or reports behind it.
        release: the software release they speak of.
        dynamic: whether an output size, or a host read, depends on data.
        narrowed: 64-bit dtypes that the device computes in 32 bits here (`i64` as `i32`, `f64` as `f32`).
            Whether the values fit is for the pass `legalize-dtypes` to prove.
        composite: whether the op has no kernel of its own, so that its parts may decide otherwise.
    """

    support: Support
    engine: Engine
    reason: str
    source: str
    release: str
    dynamic: bool = False
    narrowed: tuple[str, ...] = ()
    composite: bool = False

    @property
    def legal(self) -> bool:
        """Whether the op may stand in a recorded graph."""
        return self.support is Support.EVIDENCED
