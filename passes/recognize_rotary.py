"""recognize-rotary: rotary position embedding written out by hand -> `gaudicc::rotary`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from gaudicc.invariants import FUNCTIONAL, STATIC, TYPED, WELL_FORMED, Invariant
from gaudicc.kernels import rotary
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import RESHAPES, aten, calls, only_user
from gaudicc.rules.rotations import Rotation, features, joins, rotations


@dataclass(frozen=True)
class RecognizeRotary(GraphPass):
    """Recognises rotary position embedding, of halves (Llama) and of neighbours (GPT-J).

    Gaudi has one fused TPC kernel for it (`hpu::rotary_pos_embedding`); written out it is five kernels, each of which moves the
    whole tensor. The two features of a pair may be turned by themselves, `a c - b s` and `b c + a s`, as complex products are.

        %1 = aten.neg(aten.slice(%x, 3, 64, 128)); %2 = aten.cat([%1, aten.slice(%x, 3, 0, 64)], 3)
        %3 = aten.add(aten.mul(%x, %cos), aten.mul(%2, %sin))           ->      %3 = gaudicc.rotary(%x, %cos, %sin, False)

    Refuses what is no `[batch, heads, length, dim]` or `[batch, length, heads, dim]` with one angle for all heads, and what
    changes dtype in between; each near miss is noted in the trace.
    """

    name: ClassVar[str] = "recognize-rotary"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, STATIC})
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Looks at every `cat` and `stack` of a negated part and another, or of a difference and a sum."""
        for joined in calls(rewriter.graph, aten.cat.default, aten.stack.default):
            if turned := rotations(joined):
                yield from _turn_parts(rewriter, joined, turned)
                continue
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


def _turn_parts(rewriter: Rewriter, joined: fx.Node, turned: list[Rotation]) -> Iterator[str]:
    """Emits the rotation of a tensor by half as many angles as features, each used twice."""
    misfits = [_misfit_of_parts(each) for each in turned]
    if None not in misfits:
        yield f"{joined.name} is no rotary embedding: {misfits[0]}"
        return
    found = turned[misfits.index(None)]
    first, neighbours = found.first, found.first.neighbours
    x = rewriter.emit(aten.view.default, first.x, list(first.shape), like=joined) if first.paired else first.x
    cos, sin = (_twice(rewriter, angles, neighbours, joined) for angles in (found.cos, found.sin))
    made = rewriter.emit(rotary, x, cos, sin, neighbours, like=joined)
    if neighbours:
        made = rewriter.emit(aten.view.default, made, list(val(joined).shape), like=joined)
    rewriter.replace(joined, made)


def _twice(rewriter: Rewriter, angles: fx.Node, neighbours: bool, like: fx.Node) -> fx.Node:
    if not neighbours:
        return rewriter.emit(aten.cat.default, [angles, angles], -1, like=like)
    pairs = rewriter.emit(aten.stack.default, [angles, angles], -1, like=like)
    *sizes, half = val(angles).shape
    return rewriter.emit(aten.view.default, pairs, [*sizes, 2 * half], like=like)


def _misfit_of_parts(found: Rotation) -> str | None:
    cos, sin = val(found.cos), val(found.sin)
    if not cos.dim() or cos.shape != sin.shape or {cos.dtype, sin.dtype} != {val(found.first.x).dtype}:
        return "input, cosine and sine differ in dtype or shape"
    return _no_angles(found.first.shape, (*cos.shape[:-1], 2 * cos.shape[-1]))


def _turned(joined: fx.Node) -> fx.Node | None:
    """The tensor of which a `cat` or `stack` joins the negated second features of all pairs with the first ones."""
    parts = joins(joined)
    if parts is None or parts[0].target is not aten.neg.default:
        return None
    second, first = features(parts[0].args[0]), features(parts[1])
    if first is None or not first.fits(second) or first.neighbours != parts[2] or first.paired:
        return None
    return first.x


def _match(joined: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | str:
    """The sum, cos and sin; or why it is none."""
    turned = joined
    if joined.target is aten.stack.default:
        if (flat := only_user(joined, *RESHAPES)) is None or val(flat).shape != val(x).shape:
            return "its pairs are not laid side by side again"
        turned = flat
    by_sin = only_user(turned, aten.mul.Tensor)
    end = by_sin and only_user(by_sin, aten.add.Tensor)
    if by_sin is None or end is None or end.kwargs:
        return "it is not multiplied by a sine and added"
    by_cos, sin = _other(end, by_sin), _other(by_sin, turned)
    if not isinstance(by_cos, fx.Node) or by_cos.target is not aten.mul.Tensor or x not in by_cos.args:
        return "it is not added to its input times a cosine"
    cos = _other(by_cos, x)
    if not isinstance(cos, fx.Node) or not isinstance(sin, fx.Node):
        return "cosine and sine are not tensors"
    return _misfit(x, cos, sin) or (end, cos, sin)


def _other(call: fx.Node, one: fx.Node) -> object:
    """The other operand of a call of two."""
    return call.args[1] if call.args[0] is one else call.args[0]


def _misfit(x: fx.Node, cos: fx.Node, sin: fx.Node) -> str | None:
    """Why the shapes or dtypes are not those that the kernel takes."""
    value, angles = val(x), val(cos)
    if angles.shape != val(sin).shape or {angles.dtype, val(sin).dtype} != {value.dtype}:
        return "input, cosine and sine differ in dtype or shape"
    return _no_angles(tuple(value.shape), tuple(angles.shape))


def _no_angles(shape: tuple[int, ...], angles: tuple[int, ...]) -> str | None:
    sizes = (1,) * (len(shape) - len(angles)) + angles
    if len(shape) != 4 or len(sizes) != 4 or sizes[3] != shape[3] or 1 not in sizes[1:3]:
        return f"{angles} are no angles for all heads of {shape}"
    return None
