"""Passes and their order: proved when a Pipeline is built, checked after each pass, recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, Protocol, runtime_checkable

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase

from gaudicc import verify
from gaudicc.changes import called_otherwise, share, touched_graphs
from gaudicc.collector import collector_paused
from gaudicc.errors import PipelineError, PostconditionError, PreconditionError, Where
from gaudicc.fake_values import fake_mode_of, ones_are_sizes, propagate, propagate_anew
from gaudicc.fake_views import views_as_laid_out
from gaudicc.invariants import FUNCTIONAL, NO_DYNAMIC_CONTROL_FLOW, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import where
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.trace import PassRecord
from gaudicc.verify import Level

CAPTURED = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, NO_DYNAMIC_CONTROL_FLOW})


class Numerics(Enum):
    """What a pass may do to values, relative to the program before it."""

    BITWISE = "bitwise"
    ROUNDING = "rounding"


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass returns.

    Attributes:
        program: the program after it (the very object it was given, rewritten, or a new one).
        modified: whether any graph changed; if not, the graphs from before are kept.
        notes: sentences for the trace: what was done, and why a near miss was not.
    """

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass whose fields are its options."""

    requires: ClassVar[frozenset[Invariant]]
    ensures: ClassVar[frozenset[Invariant]]
    breaks: ClassVar[frozenset[Invariant]]

    @property
    def name(self) -> str:
        """Kebab-case; most passes have it as a class variable."""
        ...

    @property
    def numerics(self) -> Numerics:
        """What it may do to values."""
        ...

    def run(self, program: Program) -> PassResult:
        """Rewrites a program that is the pass's own copy."""
        ...


@runtime_checkable
class ComparesItself(Protocol):
    """A pass after which a program is called otherwise, so that it knows itself how to compare the two."""

    def compare(self, before: Program, after: Program) -> None:
        """Runs both programs on the same calls; raises NumericsError if they differ by more than it declares."""


class GraphPass:
    """A pass that treats each unique graph by itself: region bodies once, then the root."""

    name: ClassVar[str]
    requires: ClassVar[frozenset[Invariant]] = frozenset()
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterable[str]:
        """Rewrites one graph; yields notes for the trace."""
        raise NotImplementedError

    def run(self, program: Program) -> PassResult:
        """Runs `rewrite` on every unique graph."""
        modified = restrided = False
        notes: list[str] = []
        for _, module in list(program.graphs()):
            rewriter = Rewriter(module)
            notes += self.rewrite(rewriter, program)
            modified |= rewriter.finish()
            restrided |= rewriter.restrided
        if restrided:
            propagate_anew(program.root)
        return PassResult(program, modified, tuple(notes))


@dataclass(frozen=True)
class FxPass:
    """Any torch.fx PassBase as a pass. Its new nodes get their fake values by propagation.

    Attributes:
        wrapped: the fx pass.
        label: its name in the trace.
        numerics: what it may do to values.
    """

    wrapped: PassBase
    label: str
    numerics: Numerics = Numerics.BITWISE
    requires: ClassVar[frozenset[Invariant]] = frozenset()
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def run(self, program: Program) -> PassResult:
        """Calls the fx pass on every unique graph."""
        modified = False
        for _, module in list(program.graphs()):
            mode = fake_mode_of(module.graph)
            values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
            result = self.wrapped(module)
            if result is not None and result.modified:
                module.graph = result.graph_module.graph
                _refuse(WELL_FORMED, program, module, self.label, "broke")  # other nodes cannot be propagated
                propagate(module, values, mode)
                module.recompile()
                modified = True
        return PassResult(program, modified)


Observer = Callable[[PassRecord], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in an order that is proved when the pipeline is built.

    Attributes:
        passes: run first to last.
        initial: the invariants that hold before the first one.
        phase: the name of this stretch in the trace.

    Raises:
        PipelineError: a pass requires what no pass before it establishes.
    """

    passes: tuple[Pass, ...]
    initial: frozenset[Invariant] = CAPTURED
    phase: str = "symbolic"
    established: tuple[frozenset[Invariant], ...] = field(init=False)

    def __post_init__(self) -> None:
        held = self.initial
        history = []
        for step in self.passes:
            for missing in sorted(step.requires - held, key=lambda invariant: invariant.name):
                makers = [other.name for other in self.passes if missing in other.ensures]
                breakers = [other.name for other in self.passes if missing in other.breaks]
                hint = f"put {makers[0]} before it" if makers else f"no pass here ensures {missing.name}"
                if breakers:
                    hint += f"; {', '.join(breakers)} breaks it"
                raise PipelineError(
                    f"pass {step.name} requires {missing.name}, which does not hold there",
                    where=Where(stage=f"building the {self.phase} pipeline"),
                    hint=hint,
                )
            held = (held - step.breaks) | step.ensures
            history.append(held)
        object.__setattr__(self, "established", tuple(history))

    @property
    def ensured(self) -> frozenset[Invariant]:
        """What holds after the last pass."""
        return self.established[-1] if self.passes else self.initial

    @views_as_laid_out()
    def run(
        self, program: Program, *, level: Level = Level.OPS, observers: Sequence[Observer] = ()
    ) -> tuple[Program, list[PassRecord]]:
        """Runs all passes.

        Args:
            program: left as it is; each pass gets a copy.
            level: how much is checked after each pass.
            observers: called with each record as it is made.

        Returns:
            The last program and one record per pass.

        Raises:
            PreconditionError: the program lacks an invariant it is said to have.
            PostconditionError: a pass broke an invariant or does not keep its promise.
            NumericsError: a pass changed values more than it declares.
        """
        _require(program, self.initial, "before the first pass", PreconditionError)
        records = []
        copy: Program | None = None
        for step, held in zip(self.passes, self.established, strict=True):
            before = program
            started = time.perf_counter()
            with ones_are_sizes(), collector_paused():
                result = step.run(copy or before.copy())  # a copy that the last pass left alone will do
            spent = time.perf_counter() - started
            program, touched = share(before, result.program, modified=result.modified)
            alone = program.root is before.root and not touched_graphs(before, result.program)
            copy = replace(result.program, tensors=dict(program.tensors)) if alone else None
            started = time.perf_counter()
            with ones_are_sizes(), collector_paused():
                _check(step, held, before, program, touched, level)
            checks = (*sorted(invariant.name for invariant in held), level.name.lower())
            record = PassRecord(
                step.name,
                self.phase,
                spent * 1e3,
                (time.perf_counter() - started) * 1e3,
                before,
                program,
                checks,
                result.notes,
            )
            records.append(record)
            for observer in observers:
                observer(record)
        _require(program, self.ensured, f"at the end of the {self.phase} phase", PostconditionError)
        return program, records


def _check(
    step: Pass, held: frozenset[Invariant], before: Program, after: Program, touched: list[fx.GraphModule], level: Level
) -> None:
    everything = [module for _, module in after.graphs()]
    graphs = touched if level < Level.NUMERICS else everything
    for invariant in sorted(held | {WELL_FORMED}, key=lambda entry: entry.name):
        promised = invariant in step.ensures
        for module in everything if promised else graphs:
            _refuse(invariant, after, module, step.name, "does not establish" if promised else "broke")
    if level >= Level.SHAPES and touched:
        verify.shapes(after, step.name, before)
    if level >= Level.NUMERICS and isinstance(step, ComparesItself) and called_otherwise(before, after):
        step.compare(before, after)
    elif level >= Level.NUMERICS and (touched or before.inputs != after.inputs):
        verify.numerics(before, after, step.name, bitwise=step.numerics is Numerics.BITWISE)


def _refuse(invariant: Invariant, program: Program, module: fx.GraphModule, name: str, verb: str) -> None:
    stage = f"the checks after {name}"
    for violation in invariant.violations(program, module):
        raise PostconditionError(
            f"pass {name} {verb} {invariant.name}: {violation.reason}",
            where=where(violation.node, stage) if violation.node is not None else Where(stage=stage),
            hint=f"mend {name}, or list {invariant.name} in its breaks",
        )


def _require(program: Program, invariants: frozenset[Invariant], when: str, error: type[PipelineError]) -> None:
    for invariant in sorted(invariants, key=lambda entry: entry.name):
        for _, module in program.graphs():
            for violation in invariant.violations(program, module):
                at = where(violation.node, when) if violation.node is not None else Where(stage=when)
                raise error(f"{invariant.name} does not hold: {violation.reason}", where=at)
