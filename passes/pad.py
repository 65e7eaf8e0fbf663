"""pad: symbols become physical sizes, and pads are proved harmless."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from gaudicc.errors import PaddingError
from gaudicc.fake_values import ones_are_sizes
from gaudicc.invariants import FUNCTIONAL, NO_DYNAMIC_CONTROL_FLOW, TYPED, WELL_FORMED, Invariant
from gaudicc.padding import refusal_note
from gaudicc.padding.analysis import Analysis
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import Program


@dataclass(frozen=True)
class Pad:
    """Makes a program right for inputs that are padded with zeros to a bucket.

    Gaudi replays graphs of fixed shape, requests vary; whatever is computed on pads must not reach what is valid. Every
    dim gets a logical length as an input. What pads hold is followed through the graph, and masked only where an op
    demands it.

        %2 = aten.sum.dim_IntList(%1, [1])      ->      %2 = aten.where.self(%mask, %1, 0); %3 = aten.sum.dim_IntList(%2, [1])

    Refuses by name: ops without a rule, random ops, sizes known from data only, batch statistics.

    Attributes:
        strict: never rely on pads being merely finite.
        exact: leave a program that is refused as it is, with a note: its buckets then serve their exact sizes only.
    """

    strict: bool = False
    exact: bool = False

    name: ClassVar[str] = "pad"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, NO_DYNAMIC_CONTROL_FLOW})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, program: Program) -> PassResult:
        """Analyses the root and each body; the program is the analysis's own copy."""
        if not program.dimensions:
            return PassResult(program, False, ("no size is dynamic",))
        try:
            with ones_are_sizes():
                padded = Analysis(program, strict=self.strict).run()
        except PaddingError as error:
            if not self.exact:
                raise
            note = refusal_note(f"{error.what}{f' at {error.where.source}' if error.where.source else ''}")
            return PassResult(replace(program, notes=(*program.notes, note)), False, (note,))
        assert padded.padded is not None, "set by the analysis"
        certificate = padded.padded.certificate
        masks = f"{len(certificate.masks)} masks, {len(certificate.edits) - len(certificate.masks)} other edits"
        rests = f"{len(certificate.finite)} claims rest on finite pads"
        return PassResult(padded, True, (masks, rests))
