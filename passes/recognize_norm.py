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
from gaudicc.rules.match import CASTS, argument, calls, only_user, through_casts
from gaudicc.rules.norms import ROOTS, Normed, is_row, normed, without_mean

aten = torch.ops.aten
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RecognizeNorm(GraphPass):
    """Recognises root-mean-square and layer normalisation over the last dim.

    Gaudi has one fused TPC kernel for each (`hpu::rms_norm`, `native_layer_norm`); written out it is six kernels or more, each of
    which moves the whole tensor. Squares may be powers or products, means may be sums over the size, and the root may be
    multiplied by, divided by, or a power. A norm without weight, or with a factor that is none, is one whose weight is 1.

        %1 = aten.pow.Tensor_Scalar(%x, 2)
        %2 = aten.mean.dim(%1, [-1], True)                 ->     %6 = gaudicc.rms_norm(%x, %w, 1e-06, False)
        %5 = aten.mul.Tensor(%x, aten.rsqrt(%2 + 1e-06)); %6 = aten.mul.Tensor(%w, %5)

    Refuses other dims, statistics that are not float32, variances of one less than the size, and roots that are drawn before the
    epsilon is added; each near miss is noted in the trace.
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
            if isinstance(found, Normed) and not _layer(rewriter, found):
                found = _root_mean_square(rewriter, found)
            if isinstance(found, str):
                yield f"{node.name} is no norm: {found}"


def _call(rewriter: Rewriter, node: fx.Node) -> Iterator[str]:
    """PyTorch's own op, which multiplies by the weight before it rounds, and has an epsilon of float32 if none is given."""
    x, shape, weight = (argument(node, i, name) for i, name in enumerate(("input", "normalized_shape", "weight")))
    eps = argument(node, 3, "eps")
    if reason := _unfit(x, shape, weight):
        yield f"{node.name} has no fused form: {reason}"
        return
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    weight = weight or _ones(rewriter, x, like=node)
    rewriter.replace(node, rewriter.emit(rms_norm, x, weight, eps, True, like=node))


def _unfit(x: fx.Node, shape: list[int], weight: fx.Node | None) -> str | None:
    if len(shape) != 1:
        return f"it is over {len(shape)} dims"
    if val(x).dtype not in _FLOATS or val(weight or x).dtype != val(x).dtype:
        return f"its input is {val(x).dtype}" + (f", its weight {val(weight).dtype}" if weight else "")
    return None


def _ones(rewriter: Rewriter, x: fx.Node, like: fx.Node) -> fx.Node:
    options = {"dtype": val(x).dtype, "device": val(x).device}
    return rewriter.emit(aten.full.default, [val(x).shape[-1]], 1.0, like=like, **options)


def _layer(rewriter: Rewriter, found: Normed) -> bool:
    """Layer normalisation: what is normed is without its mean; a weight and a bias may follow. Whether it was one."""
    source = without_mean(found.x)
    if source is None or {val(source).dtype, val(found.end).dtype} != {torch.float32}:
        return False
    end, weight, bias = found.end, found.weight, None
    if weight is None and (weighted := _float_row(end, only_user(end, aten.mul.Tensor), found.x)):
        end, weight = weighted
    if weight is not None and (biased := _float_row(end, only_user(end, aten.add.Tensor), found.x)):
        end, bias = biased
    size = val(source).shape[-1]
    made = rewriter.emit(aten.layer_norm.default, source, [size], weight, bias, found.eps, like=end)
    rewriter.replace(end, made)
    return True


def _float_row(node: fx.Node, end: fx.Node | None, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    found = None if end is None or end.kwargs else _with_a_row(node, end, x)
    return found if found and {val(each).dtype for each in found} == {torch.float32} else None


def _with_a_row(node: fx.Node, end: fx.Node | None, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """A product or sum, and its other operand, if that is one number per entry of the last dim."""
    row = next((arg for arg in end.args if arg is not node), None) if end else None
    return (end, row) if end and isinstance(row, fx.Node) and is_row(row, x) else None


def _root_mean_square(rewriter: Rewriter, found: Normed) -> str | None:
    source = through_casts(found.x)
    x = source if val(source).dtype in _FLOATS else found.x
    end, weight, scale_first = _with_weight(found, x)
    if (weight is None or scale_first) and val(end).dtype != val(x).dtype:
        x = found.x  # what is not rounded back to the input's dtype has the dtype of the statistics
    if weight is None:
        if not isinstance(val(x).shape[-1], int):
            return "it has no weight, and its size is symbolic"
        weight = _ones(rewriter, x, like=end)
    rewriter.replace(end, rewriter.emit(rms_norm, x, weight, found.eps, scale_first, like=end))
    return None


def _with_weight(found: Normed, x: fx.Node) -> tuple[fx.Node, fx.Node | None, bool]:
    """The last node of a norm, its weight, and whether that comes before rounding (Gemma) or after it (Llama)."""
    dtype = val(x).dtype
    cast = only_user(found.end, *CASTS)
    if found.weight is not None:
        rounds = cast is not None and val(cast).dtype == dtype
        return (cast, found.weight, True) if cast and rounds else (found.end, found.weight, True)
    rounded = cast if cast is not None and val(cast).dtype == dtype else found.end
    weighted = _with_a_row(rounded, only_user(rounded, aten.mul.Tensor), x)
    if weighted is None:
        return rounded, None, False
    end, weight = weighted
    if val(rounded).dtype == dtype:
        return end, weight, False
    after = only_user(end, *CASTS)
    if after is None or val(after).dtype != dtype or val(end).dtype != torch.float32:
        return rounded, None, False
    return after, weight, True
