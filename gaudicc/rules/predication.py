"""Predication: a loop's body that may run although no trip follows, and then hands on what it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from gaudicc.fake_values import fake_mode_of
from gaudicc.nodes import CALLS, output_of, outputs_of, val
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_INDEXING: dict[Any, int] = {
    aten.index.Tensor: 1, aten.index_put.default: 1, aten.index_select.default: 2, aten.index_add.default: 2,
    aten.index_copy.default: 2, aten.index_fill.int_Scalar: 2, aten.index_fill.int_Tensor: 2, aten.gather.default: 2,
    aten.scatter.src: 2, aten.scatter.value: 2, aten.scatter_add.default: 2, aten.scatter_reduce.two: 2,
    aten.embedding.default: 1, aten.take.default: 1, aten._unsafe_index.Tensor: 1,
}  # fmt: skip
"""Ops that fail on an index out of range -> which argument holds indices."""
_DIVIDING: dict[Any, int] = {
    aten.div.Tensor_mode: 1, aten.floor_divide.default: 1, aten.remainder.Tensor: 1, aten.fmod.Tensor: 1,
    aten.remainder.Scalar_Tensor: 1,
}  # fmt: skip
"""Ops that fail on an integer divisor of 0 -> which argument is the divisor."""


def hinders(body: fx.GraphModule) -> str | None:
    """Why a body cannot be predicated, or None."""
    for node in body.graph.nodes:
        if node.target in CALLS:
            return "its trips call another body"
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "gaudicc", "prims"):
            return f"{node.target} may fail on values that it is not meant to see"
        if "assert" in str(node.target):
            return f"{node.target} fails where it does not hold"
    return None


def predicate(body: fx.GraphModule) -> None:
    """Rewrites a loop's body, whose first carried value says whether the trip is meant to happen."""
    rewriter = Rewriter(body)
    output = output_of(body.graph)
    _, go, *carried = body.graph.find_nodes(op="placeholder")
    _guard_all(rewriter, go)
    more, *results = outputs_of(body.graph)
    kept = [
        new if new is old else rewriter.inline(torch.where, go, new, old, like=output)
        for new, old in zip(results, carried, strict=False)
    ]
    more = rewriter.inline(aten.logical_and.default, go, more, like=output)
    output.args = ((more, *kept),)
    rewriter.modified = True
    rewriter.finish()


def guard(module: fx.GraphModule) -> None:
    """Gives a graph one more input, before all others: a bool `[]`. Where it is false, no op of the graph fails."""
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_before(first):
        go = module.graph.placeholder("taken")
    with fake_mode_of(module.graph):
        go.meta["val"] = torch.empty((), dtype=torch.bool)
    rewriter = Rewriter(module)
    _guard_all(rewriter, go)
    rewriter.modified = True
    rewriter.finish()


def _guard_all(rewriter: Rewriter, go: fx.Node) -> None:
    for node in list(rewriter.graph.nodes):
        if node.target in _INDEXING:
            _guard(rewriter, node, go, _INDEXING[node.target], torch.zeros_like)
        elif node.target in _DIVIDING:
            _guard(rewriter, node, go, _DIVIDING[node.target], torch.ones_like)


def _guard(
    rewriter: Rewriter, node: fx.Node, go: fx.Node, place: int, harmless: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Replaces integers of an argument by harmless ones where the trip is not meant to happen."""

    def safe(arg: Any) -> Any:
        if isinstance(arg, fx.Node) and isinstance(val(arg), torch.Tensor) and val(arg).dtype in _INTEGERS:
            return rewriter.inline(lambda g, x: torch.where(g, x, harmless(x)), go, arg, like=node)
        return arg

    arg = node.args[place]
    node.update_arg(place, [safe(item) for item in cast(Any, arg)] if isinstance(arg, (list, tuple)) else safe(arg))
