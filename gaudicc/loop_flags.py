"""Flags of the trips of a loop that only data ends: carried values that stay true once a trip that happens has set them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from gaudicc.nodes import operands_of, output_of, outputs_of, val
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten


def carry_flag(rewriter: Rewriter, call: fx.Node, body: fx.GraphModule) -> None:
    """Makes the result of a body that follows its carried ones, a bool `[]`, one more carried value.

    Args:
        rewriter: of the graph that the call stands in.
        call: a `call_loop` that data ends; its value gets one more entry.
        body: what it calls; changed at the first of its calls only.
    """
    limit, trips, carried = call.args[1:4]
    place = int(cast(Any, carried))
    flag = cast(fx.Node, outputs_of(body.graph)[place])
    if len(body.graph.find_nodes(op="placeholder")) == 1 + len(operands_of(call)):
        _carry(body, place, flag)
    start = rewriter.inline(lambda: aten.full.default([], False, dtype=torch.bool), like=call)
    operands = [*operands_of(call)]
    operands.insert(place, start)
    call.args = (call.args[0], limit, trips, place + 1, *operands)
    with val(flag).fake_mode:
        call.meta["val"] = (*call.meta["val"], torch.empty((), dtype=torch.bool))


def _carry(body: fx.GraphModule, place: int, flag: fx.Node) -> None:
    _, go, *_ = given_before = body.graph.find_nodes(op="placeholder")
    before = given_before[place]
    with body.graph.inserting_after(before):
        given = body.graph.placeholder("set_before")
    with val(flag).fake_mode:
        given.meta["val"] = torch.empty((), dtype=torch.bool)
    rewriter = Rewriter(body)
    either = rewriter.inline(lambda s, f, g: torch.logical_or(s, torch.logical_and(f, g)), given, flag, go,
                             like=output_of(body.graph))  # fmt: skip
    output_of(body.graph).args = (tuple(either if i == place else out for i, out in enumerate(outputs_of(body.graph))),)
    rewriter.modified = True
    rewriter.finish()
