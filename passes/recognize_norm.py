"""recognize-norm: RMS normalisation written out by hand -> `gaudicc::rms_norm`."""

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
from gaudicc.rules.match import CASTS, calls, constant, only_user, same_sizes, through_casts

aten = torch.ops.aten


@dataclass(frozen=True)
class RecognizeNorm(GraphPass):
    """Recognises root-mean-square normalisation over the last dim.

    Gaudi has one fused TPC kernel for it (`hpu::rms_norm`); written out it is six kernels, each of which moves the whole tensor.

        %1 = aten.pow.Tensor_Scalar(%x, 2)
        %2 = aten.mean.dim(%1, [-1], True)                 ->     %6 = gaudicc.rms_norm(%x, %w, 1e-06, False)
        %5 = aten.mul.Tensor(%x, aten.rsqrt(%2 + 1e-06)); %6 = aten.mul.Tensor(%w, %5)

    Refuses other dims, a weight that is not one number per entry of the last dim, statistics that are not float32, and
    casts that lose digits in between; each near miss is noted in the trace.
    """

    name: ClassVar[str] = "recognize-norm"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Looks at every `rsqrt`, from which both ends of the pattern are near."""
        for node in calls(rewriter.graph, aten.rsqrt.default):
            found = _match(node)
            if isinstance(found, str):
                yield f"{node.name} is no rms_norm: {found}"
            elif found is not None:
                end, x, weight, eps, scale_first = found
                rewriter.replace(end, rewriter.emit(rms_norm, x, weight, eps, scale_first, like=end))


def _match(rsqrt: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, float, bool] | str | None:
    shifted = rsqrt.args[0]
    eps = constant(shifted, aten.add.Tensor)
    mean = shifted.args[0] if isinstance(shifted, fx.Node) and eps is not None else None
    if not isinstance(mean, fx.Node) or mean.target is not aten.mean.dim or not isinstance(mean.args[0], fx.Node):
        return None
    square = mean.args[0]
    if square.target is not aten.pow.Tensor_Scalar or square.args[1] != 2:
        return None
    wide = square.args[0]
    assert isinstance(wide, fx.Node), "pow of a literal would have been folded by capture"
    if list(mean.args[1]) not in ([-1], [val(wide).dim() - 1]) or not (len(mean.args) > 2 and mean.args[2]):  # type: ignore[arg-type]
        return f"the mean is over {mean.args[1:]}, not kept over the last dim"
    if val(wide).dtype != torch.float32 or val(mean).dtype != torch.float32:
        return f"its statistics are {val(mean).dtype}"
    scaled = only_user(rsqrt, aten.mul.Tensor)
    # A bfloat16 input times the float32 root is widened by the product itself.
    if scaled is None or not ({wide, through_casts(wide)} & set(scaled.all_input_nodes)):
        return "the reciprocal root is not multiplied with the input"
    return _with_weight(scaled, wide, float(eps))  # type: ignore[arg-type]


def _with_weight(normed: fx.Node, wide: fx.Node, eps: float) -> tuple[fx.Node, fx.Node, fx.Node, float, bool] | str:
    """The two ways to apply the weight: after rounding to the input's dtype (Llama), or before it (Gemma)."""
    source = through_casts(wide)
    x = source if val(source).dtype in (torch.float32, torch.bfloat16, torch.float16) else wide
    cast = only_user(normed, *CASTS)
    rounded = cast or normed
    end = only_user(rounded, aten.mul.Tensor)
    if end is None:
        return "it has no weight"
    weight = next((arg for arg in end.args if arg is not rounded), None)
    if not isinstance(weight, fx.Node) or not same_sizes(val(weight).shape, val(x).shape[-1:]):
        return "its weight is not one number per entry of the last dim"
    if val(rounded).dtype == val(x).dtype:
        return end, x, weight, eps, False
    after = only_user(end, *CASTS)
    if cast is not None or after is None or val(after).dtype != val(x).dtype or val(end).dtype != torch.float32:
        return "it does not return to its input's dtype"
    return after, x, weight, eps, True
