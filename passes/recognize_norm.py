"""recognize-norm: RMS and layer normalisation written out by hand, and `rms_norm` -> `gaudicc::rms_norm`, `aten::layer_norm`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.kernels import rms_norm
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import CASTS, argument, calls, only_user, same_sizes, through_casts
from gaudicc.rules.norms import ROOTS, Normed, normed, without_mean

aten = torch.ops.aten
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RecognizeNorm(GraphPass):
    """Recognises root-mean-square and layer normalisation over the last dim.

    Gaudi has one fused TPC kernel for each (`hpu::rms_norm`, `native_layer_norm`); written out it is six kernels or more, each of
    which moves the whole tensor. Squares may be powers or products, means may be sums over the size, and the root may be
    multiplied by, divided by, or a power.

        %1 = aten.pow.Tensor_Scalar(%x, 2)
        %2 = aten.mean.dim(%1, [-1], True)                 ->     %6 = gaudicc.rms_norm(%x, %w, 1e-06, False)
        %5 = aten.mul.Tensor(%x, aten.rsqrt(%2 + 1e-06)); %6 = aten.mul.Tensor(%w, %5)

    Refuses other dims, a weight that is not one number per entry of the last dim, statistics that are not float32, variances of
    one less than the size, and casts that lose digits in between; each near miss is noted in the trace.
    """

    name: ClassVar[str] = "recognize-norm"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Looks at every call of `rms_norm`, and at every root, from which both ends of the patterns are near."""
        for node in calls(rewriter.graph, aten.rms_norm.default):
            yield from _call(rewriter, node)
        for node in calls(rewriter.graph, *ROOTS):
            found = normed(node)
            if isinstance(found, Normed):
                found = None if _layer(rewriter, found) else _root_mean_square(rewriter, found)
            if found is not None:
                yield f"{node.name} is no norm: {found}"


def _call(rewriter: Rewriter, node: fx.Node) -> Iterator[str]:
    """PyTorch's own op, which multiplies by the weight before it rounds, and has an epsilon of float32 if none is given."""
    x, shape, weight = (argument(node, i, name) for i, name in enumerate(("input", "normalized_shape", "weight")))
    eps = argument(node, 3, "eps")
    if reason := _unfit(x, shape, weight):
        yield f"{node.name} has no fused form: {reason}"
        return
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    rewriter.replace(node, rewriter.emit(rms_norm, x, weight, eps, True, like=node))


def _unfit(x: fx.Node, shape: list[int], weight: fx.Node | None) -> str | None:
    if len(shape) != 1 or weight is None:
        return "it has no weight" if weight is None else f"it is over {len(shape)} dims"
    if val(x).dtype not in _FLOATS or val(weight).dtype != val(x).dtype:
        return f"its input is {val(x).dtype}, its weight {val(weight).dtype}"
    return None


def _layer(rewriter: Rewriter, found: Normed) -> bool:
    """Layer normalisation: what is normed is without its mean, and a bias follows the weight; whether it was one."""
    source = without_mean(found.x)
    weighted = _times_a_row(found.end, found.x)
    biased = weighted and _plus_a_row(weighted[0], found.x)
    if source is None or weighted is None or biased is None:
        return False
    (end, bias), weight, size = biased, weighted[1], val(source).shape[-1]
    if {val(row).dtype for row in (weight, bias, end)} != {torch.float32}:
        return False
    made = rewriter.emit(aten.layer_norm.default, source, [size], weight, bias, found.eps, like=end)
    rewriter.replace(end, made)
    return True


def _times_a_row(node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    return _with_a_row(node, only_user(node, aten.mul.Tensor), x)


def _plus_a_row(node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    end = only_user(node, aten.add.Tensor)
    return None if end is not None and end.kwargs else _with_a_row(node, end, x)


def _with_a_row(node: fx.Node, end: fx.Node | None, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """A product or sum, and its other operand, if that is one number per entry of the last dim."""
    row = next((arg for arg in end.args if arg is not node), None) if end else None
    is_row = isinstance(row, fx.Node) and same_sizes(val(row).shape, val(x).shape[-1:])
    return (end, row) if is_row else None  # type: ignore[return-value]


def _root_mean_square(rewriter: Rewriter, found: Normed) -> str | None:
    if found.variance:
        return "it is a layer norm without weight and bias of float32"
    matched = _with_weight(found.end, found.x)
    if isinstance(matched, str):
        return matched
    end, x, weight, scale_first = matched
    rewriter.replace(end, rewriter.emit(rms_norm, x, weight, found.eps, scale_first, like=end))
    return None


def _with_weight(normed: fx.Node, wide: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, bool] | str:
    """The two ways to apply the weight: after rounding to the input's dtype (Llama), or before it (Gemma)."""
    source = through_casts(wide)
    x = source if val(source).dtype in _FLOATS else wide
    cast = only_user(normed, *CASTS)
    rounded = cast or normed
    end = only_user(rounded, aten.mul.Tensor)
    if end is None:
        return "it has no weight"
    weighted = _with_a_row(rounded, end, x)
    if weighted is None:
        return "its weight is not one number per entry of the last dim"
    weight = weighted[1]
    if val(rounded).dtype == val(x).dtype:
        return end, x, weight, False
    after = only_user(end, *CASTS)
    if cast is not None or after is None or val(after).dtype != val(x).dtype or val(end).dtype != torch.float32:
        return "it does not return to its input's dtype"
    return after, x, weight, True
