"""Capture, mending: what a mended program raises, carried by the Program as a hidden output that the host reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gaudicc.calling import Raise
from gaudicc.capture.mend.context import Flag
from gaudicc.program import OutputKind, OutputSpec, Program


def carry_flags(program: Program, flags: Sequence[Flag]) -> None:
    """Makes the flags, so far the model's last output, a flag output of the program.

    The host reads it with the outputs, and raises the user's own exception where one is set. What the model would have
    written after it raised is not written: such writes are under the flag's predicate already.

    Args:
        program: of an export with flags; changed in place.
        flags: what each element of the last user output means.
    """
    for _, module in program.graphs():
        for node in module.graph.nodes:
            if node.target is torch.ops.aten._assert_scalar.default:  # torch adds these without a value
                node.meta.setdefault("val", None)
    if not flags:
        return
    last = max(i for i, spec in enumerate(program.outputs) if spec.kind is OutputKind.USER)
    program.outputs = tuple(
        OutputSpec(OutputKind.FLAG) if i == last else spec for i, spec in enumerate(program.outputs)
    )
    program.calling = replace(
        program.calling,
        out_spec=program.calling.out_spec.child(0),
        raises=tuple(Raise(flag.error, flag.source) for flag in flags),
    )
