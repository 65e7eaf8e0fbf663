"""Flags of a program: conditions, found by its passes, on which the host raises an exception in place of returning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from gaudicc.calling import Raise
from gaudicc.nodes import output_of, outputs_of
from gaudicc.program import OutputKind, OutputSpec, Program
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten


def with_flags(program: Program, flags: Sequence[tuple[fx.Node, Raise]]) -> Program:
    """Adds flags to those of a program.

    Args:
        program: its root is changed in place.
        flags: nodes of the root, bool `[]`, and what the host raises where they are set.

    Returns:
        The program; all flags are elements of one output, those it had before first.
    """
    if not flags:
        return program
    rewriter = Rewriter(program.root)
    output = output_of(program.root.graph)
    results, specs = list(outputs_of(program.root.graph)), list(program.outputs)
    made = rewriter.inline(lambda *each: aten.stack.default(list(each)), *(node for node, _ in flags), like=output)
    place = next((i for i, spec in enumerate(specs) if spec.kind is OutputKind.FLAG), None)
    if place is None:
        results.append(made)
        specs.append(OutputSpec(OutputKind.FLAG))
    else:
        results[place] = rewriter.inline(lambda a, b: aten.cat.default([a, b]), results[place], made, like=output)
    output.args = (tuple(results),)
    rewriter.finish()
    raises = (*program.calling.raises, *(meaning for _, meaning in flags))
    return replace(program, outputs=tuple(specs), calling=replace(program.calling, raises=raises))
