"""static-state: caches that grow by `cat`, and writes through views, become whole buffers that are written by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import OutputKind, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.appends import appends, static_buffers
from gaudicc.rules.growth import compare_growing
from gaudicc.rules.holding import Holding
from gaudicc.rules.whole_writes import write_whole


@dataclass(frozen=True)
class StaticState:
    """Holds caches that grow by `cat` as state: buffers of the largest size, of which each call writes its new rows.

    Gaudi replays graphs of fixed shape on fixed memory, and forbids updates through a view of an input: a cache that is passed,
    padded, joined and returned is copied several times at every token. What the argument's size says stays: how many rows
    of the buffer are valid before the call, and where the new ones go. Rows that a model writes through a view of a buffer of
    its own (pages of keys and values) become rows of the whole buffer, so that no call copies it.

        %3 = aten.cat.default([%past, %new], 1)    ->    %2 = aten.slice_scatter.default(%state, %new, 1, %rows, %grown)
                                                         %3 = aten.slice.Tensor(%2, 1, 0, %grown)
        %1 = aten.view.default(%state, [96, 8])
        %2 = aten.index_put.default(%1, [%slot], %new)
        %3 = aten.view.default(%2, [24, 4, 8])     ->    %3 = aten.index_put.default(%state, [%slot // 4, %slot % 4], %new)

    Refuses nothing: an argument that only looks like a cache stays one, and the trace says why.

    Attributes:
        caches: do it; otherwise only say which state buffers are written by index as they are.
        largest: dimension name -> largest size, where the model is compiled for several ranges that share state.
    """

    caches: bool = False
    largest: tuple[tuple[str, int], ...] = ()

    name: ClassVar[str] = "static-state"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def run(self, program: Program) -> PassResult:
        """Writes whole buffers, finds the caches, then rewrites each body once and the root."""
        notes, whole = [], False
        for name, module in list(program.graphs()):
            rewriter = Rewriter(module)
            notes += [f"{name}: {buffer} is written whole, not through a view" for buffer in write_whole(rewriter)]
            whole |= rewriter.finish()
        notes += [f"state {source} is static: written by index as it is" for source in static_buffers(program)]
        if not self.caches or any(spec.kind is OutputKind.LENGTH for spec in program.outputs):
            return PassResult(program, whole, tuple(notes))
        found, refused = appends(program)
        if not found:
            return PassResult(program, whole, (*notes, *refused, "no argument is a cache that grows by cat"))
        held = Holding(program, found, self._highs(program)).run()
        return PassResult(held, True, (*notes, *refused, *_told(held)))

    def compare(self, before: Program, after: Program) -> None:
        """Runs both programs on calls that hand the cache on; see `gaudicc.pipeline.ComparesItself`."""
        compare_growing(before, after, self.name)

    def _highs(self, program: Program) -> dict[str, int]:
        largest = dict(self.largest)
        return {dim.symbol: max(dim.high, largest.get(dim.name, dim.high)) for dim in program.dimensions}


def _told(program: Program) -> list[str]:
    """What is held, for the trace."""
    notes = []
    for name in dict.fromkeys(cache.dimension for cache in program.calling.caches):
        buffers = [program.tensors[c.state] for c in program.calling.caches if c.dimension == name]
        size = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
        notes.append(f"{len(buffers)} tensors that grow along {name} are state of {size / 2**20:.3g} MiB")
    return notes
