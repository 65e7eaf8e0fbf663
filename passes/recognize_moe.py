"""recognize-moe: rows times the weights of their experts, gated and summed up -> `gaudicc::moe`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import fx

from gaudicc.invariants import FUNCTIONAL, STATIC, TYPED, WELL_FORMED, Invariant
from gaudicc.kernels import grouped_linear, moe
from gaudicc.kernels.moe import ACTIVATIONS
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.experts import copied_rows
from gaudicc.rules.match import CASTS, RESHAPES, argument, aten, calls, only_user
from gaudicc.rules.rotations import features

_NAMES = {op: name for name, op in ACTIVATIONS.items()}


@dataclass(frozen=True)
class _Found:
    end: fx.Node
    x: fx.Node
    group: fx.Node
    weights: fx.Node
    gate_up: fx.Node
    down: fx.Node
    activation: str
    chosen: int


@dataclass(frozen=True)
class RecognizeMoe(GraphPass):
    """Recognises a mixture of gated experts from the copied tokens to the weighted sum.

    Gaudi has one fused kernel for it (`hpu::mixture_of_experts`), which knows how many rows each expert really has; without it
    rows are sorted by expert and filled up to whole blocks.

        %2 = gaudicc.grouped_linear(%rows, %gate_up, %group); %4 = aten.mul(aten.silu(%2[:half]), %2[half:])
        %5 = gaudicc.grouped_linear(%4, %down, %group)
        %8 = aten.sum(aten.view(aten.mul(%5, %weights), ...), [1])      ->      %8 = gaudicc.moe(%x, %experts, %weights, ...)

    Refuses experts with biases or gates of their own; each near miss is noted in the trace.
    """

    name: ClassVar[str] = "recognize-moe"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, STATIC})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Looks at every second product of experts."""
        for node in calls(rewriter.graph, grouped_linear):
            found = _match(node)
            if isinstance(found, str):
                yield f"{node.name} ends no mixture of experts: {found}"
            elif found is not None:
                shape = [val(found.x).shape[0], found.chosen]
                experts, weights = (
                    rewriter.emit(aten.view.default, each, shape, like=found.end)
                    for each in (found.group, found.weights)
                )
                made = rewriter.emit(
                    moe, found.x, experts, weights, found.gate_up, found.down, found.activation, like=found.end
                )
                rewriter.replace(found.end, made)


def _match(product: fx.Node) -> _Found | str | None:
    inner, down, group = cast(Any, product.args)
    if copied_rows(inner) is not None:
        return None  # the first product of a mixture
    gated = _gate(inner)
    if isinstance(gated, str):
        return gated
    first, activation = gated
    rows, gate_up, other = cast(Any, first.args)
    if other is not group:
        return "its two products have different groups"
    x = copied_rows(rows)
    if x is None:
        return "its rows are no copies of tokens"
    chosen = val(rows).shape[0] // max(val(x).shape[0], 1)
    summed = _weighted_sum(product, x, chosen)
    if summed is None:
        return "its results are not weighted and summed up by token"
    end, weights = summed
    if val(gate_up).dtype != val(x).dtype or val(down).dtype != val(x).dtype:
        return "its weights are of another dtype than its tokens"
    return _Found(end, x, group, weights, gate_up, down, activation, chosen)


def _gate(inner: Any) -> tuple[fx.Node, str] | str:
    """The product of which one half, activated, is multiplied by the other, and the activation; or why it is none."""
    unknown = "it has no gate that is known"
    if inner.target is not aten.mul.Tensor or not all(isinstance(arg, fx.Node) for arg in inner.args):
        return unknown
    active, up = sorted(cast(Any, inner.args), key=lambda arg: arg.target not in _NAMES)
    if active.target not in _NAMES or argument(active, 1, "approximate", "none") != "none":
        return unknown
    first, second = features(active.args[0]), features(up)
    if first is None or second is None or first.x is not second.x or first.x.target is not grouped_linear:
        return unknown
    if first.neighbours or not first.fits(second):
        return f"{unknown}: its rows are not those of the gate, then those of up"
    return first.x, _NAMES[active.target]


def _weighted_sum(product: fx.Node, x: fx.Node, chosen: int) -> tuple[fx.Node, fx.Node] | None:
    """The sum over the experts of each token, in x's dtype, and the weights."""
    weighted = only_user(product, aten.mul.Tensor)
    viewed = weighted and only_user(weighted, *RESHAPES)
    end = viewed and only_user(viewed, aten.sum.dim_IntList)
    if weighted is None or viewed is None or end is None or weighted.args[0] is not product:
        return None
    tokens, width = val(x).shape
    dims: Any = end.args[1]
    weights, over = weighted.args[1], [dim % 3 for dim in dims]
    if not isinstance(weights, fx.Node) or tuple(val(weights).shape) != (tokens * chosen, 1):
        return None
    if tuple(val(viewed).shape) != (tokens, chosen, width) or over != [1] or argument(end, 2, "keepdim", False):
        return None
    cast = only_user(end, *CASTS)
    end = cast if cast is not None and val(cast).dtype == val(x).dtype else end
    return (end, weights) if val(end).dtype == val(x).dtype else None
