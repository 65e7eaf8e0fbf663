"""recognize-rotary: rotary position embedding written out by hand -> `gaudicc::rotary`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from gaudicc.invariants import FUNCTIONAL, STATIC, TYPED, WELL_FORMED, Invariant
from gaudicc.kernels import rotary
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import RESHAPES, argument, aten, calls, only_user


@dataclass(frozen=True)
class RecognizeRotary(GraphPass):
    """Recognises rotary position embedding, of halves (Llama) and of neighbours (GPT-J).

    Gaudi has one fused TPC kernel for it (`hpu::rotary_pos_embedding`); written out it is five kernels, each of which moves the
    whole tensor.

        %1 = aten.neg(aten.slice(%x, 3, 64, 128)); %2 = aten.cat([%1, aten.slice(%x, 3, 0, 64)], 3)
        %3 = aten.add(aten.mul(%x, %cos), aten.mul(%2, %sin))           ->      %3 = gaudicc.rotary(%x, %cos, %sin, False)

    Refuses what is no `[batch, heads, length, dim]` or `[batch, length, heads, dim]` with one angle for all heads, and what
    changes dtype in between; each near miss is noted in the trace.
    """

    name: ClassVar[str] = "recognize-rotary"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, STATIC})
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Looks at every `cat` and `stack` of a negated part and another."""
        for joined in calls(rewriter.graph, aten.cat.default, aten.stack.default):
            x = _turned(joined)
            if x is None:
                continue
            found = _match(joined, x)
            if isinstance(found, str):
                yield f"{joined.name} is no rotary embedding: {found}"
            else:
                end, cos, sin = found
                made = rewriter.emit(rotary, x, cos, sin, joined.target is aten.stack.default, like=end)
                rewriter.replace(end, made)


def _turned(joined: fx.Node) -> fx.Node | None:
    """The tensor of which a `cat` or `stack` joins the negated second features of all pairs with the first ones."""
    parts: Any = joined.args[0]
    last = val(joined).dim() - 1
    if argument(joined, 1, "dim", 0) not in (-1, last) or len(parts) != 2 or parts[0].target is not aten.neg.default:
        return None
    second, first = parts[0].args[0], parts[1]
    x = first.args[0] if first.target is aten.slice.Tensor else None
    if not isinstance(x, fx.Node) or second.target is not aten.slice.Tensor or second.args[0] is not x:
        return None
    width = val(x).shape[-1]
    expected = (
        ((1, 0, 2), (0, 0, 2)) if joined.target is aten.stack.default else ((width // 2, 0, 1), (0, width // 2, 1))
    )
    if width % 2 or _span(second) != _spelled(expected[0], width) or _span(first) != _spelled(expected[1], width):
        return None
    return x


def _spelled(span: tuple[int, int, int], width: int) -> tuple[int, int, int]:
    start, end, step = span
    return start, end or width, step


def _span(part: fx.Node) -> tuple[int, int, int] | None:
    """Start, end and step of a slice of the last dim."""
    source: Any = part.args[0]
    dim, start, end, step = (argument(part, i, name) for i, name in enumerate(("dim", "start", "end", "step"), 1))
    width = val(source).shape[-1]
    if (dim or 0) % val(source).dim() != val(source).dim() - 1:
        return None
    return start or 0, width if end is None else min(end, width), 1 if step is None else step


def _match(joined: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | str:
    """The sum, cos and sin; or why it is none."""
    turned = joined
    if joined.target is aten.stack.default:
        if (flat := only_user(joined, *RESHAPES)) is None or val(flat).shape != val(x).shape:
            return "its pairs are not laid side by side again"
        turned = flat
    by_sin = only_user(turned, aten.mul.Tensor)
    end = by_sin and only_user(by_sin, aten.add.Tensor)
    if by_sin is None or end is None or end.kwargs or end.args[1] is not by_sin:
        return "it is not multiplied by a sine and added"
    by_cos, sin = end.args[0], by_sin.args[1]
    if not isinstance(by_cos, fx.Node) or by_cos.target is not aten.mul.Tensor or by_cos.args[0] is not x:
        return "it is not added to its input times a cosine"
    cos = by_cos.args[1]
    if not isinstance(cos, fx.Node) or not isinstance(sin, fx.Node):
        return "cosine and sine are not tensors"
    return _misfit(x, cos, sin) or (end, cos, sin)


def _misfit(x: fx.Node, cos: fx.Node, sin: fx.Node) -> str | None:
    """Why the shapes or dtypes are not those that the kernel takes."""
    value, angles = val(x), val(cos)
    if angles.shape != val(sin).shape or {angles.dtype, val(sin).dtype} != {value.dtype}:
        return "input, cosine and sine differ in dtype or shape"
    sizes = (1,) * (value.dim() - angles.dim()) + tuple(angles.shape)
    if value.dim() != 4 or len(sizes) != 4 or sizes[3] != value.shape[3] or 1 not in sizes[1:3]:
        return f"{tuple(angles.shape)} are no angles for all heads of {tuple(value.shape)}"
    return None
