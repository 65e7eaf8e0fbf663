"""Third step of recording on the CPU: chains of small ops become the fewest calls that compute the same.

One row of a decode step costs about 2 us of dispatch per call whatever it computes, so fewer calls are all that counts
there; with many rows the chains stay as they are where that is as fast.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_edit import Editor, is_call
from gaudicc.runtime.cpu_flatten import is_dense
from gaudicc.runtime.cpu_weights import PackedWeights

_aten = torch.ops.aten


def fuse(editor: Editor, weights: PackedWeights) -> None:
    """Rewrites norms and rotary embeddings."""
    for node in editor.calls():
        if node.target is _aten.mul.Tensor:
            _fuse_rms_norm(editor, node, weights)
        elif node.target is _aten.add.Tensor:
            _fuse_rotary(editor, node)


def rotary(
    x: torch.Tensor,
    halves: tuple[torch.Tensor, torch.Tensor],
    cos: torch.Tensor,
    sines: tuple[torch.Tensor, torch.Tensor],
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """`x * cos + cat([-x2, x1]) * sin`, written to `out`, which must not overlap `x`.

    Stands for the three calls in its body, which the recorder emits by themselves with `out`'s halves made once.
    """
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(halves[1], sines[0], value=-1)
    out[..., half:].addcmul_(halves[0], sines[1])
    return out


def _fuse_rms_norm(editor: Editor, node: fx.Node, weights: PackedWeights) -> None:
    """`weight * (x * rsqrt(mean(x ** 2) + eps))` of one fp32 row: norm, hypot, div, mul instead of six calls."""
    for scaled, gain in (node.args, reversed(node.args)):
        weight = editor.weight(gain)
        if not is_call(scaled, _aten.mul.Tensor) or weight is None or node.kwargs or not editor.can_derive(weight):
            continue
        for x, factor in (scaled.args, reversed(scaled.args)):  # type: ignore[union-attr]
            eps = _mean_square_eps(x, factor)
            if isinstance(x, fx.Node) and eps is not None and _is_row(x, weight, node):
                width = weight.shape[0]
                scale = weights.derive("root-width", (weight,), lambda w: w.detach() * math.sqrt(w.shape[0]))
                floor = editor.number(math.sqrt(width * eps), "eps")
                length = editor.before(node).call(_aten.linalg_vector_norm.default, x, 2, [-1], True)
                length = editor.call(_aten.hypot.default, length, floor)
                unit = editor.call(_aten.div.Tensor, x, length)
                editor.replace(node, editor.call(_aten.mul.Tensor, unit, editor.bind_prepared("scale", scale)))
                return


def _mean_square_eps(x: Any, factor: Any) -> float | None:
    """`eps` if `factor` is `rsqrt(mean(x ** 2, -1, keepdim) + eps)`."""
    if not is_call(factor, _aten.rsqrt.default) or not is_call(factor.args[0], _aten.add.Tensor):
        return None
    mean, eps = factor.args[0].args[:2]
    if not is_call(mean, _aten.mean.dim) or not isinstance(eps, float) or factor.args[0].kwargs or mean.kwargs:
        return None
    square, *how = mean.args
    if how not in ([[-1], True], [[x.meta["val"].dim() - 1], True]) or not is_call(square, _aten.pow.Tensor_Scalar):
        return None
    return eps if square.args == (x, 2) and eps >= 0 else None


def _is_row(x: fx.Node, weight: torch.Tensor, node: fx.Node) -> bool:
    value = x.meta["val"]
    same = value.dtype == weight.dtype == torch.float32 and node.meta["val"].shape == value.shape
    return bool(same and weight.dim() == 1 and value.numel() == weight.shape[0] == value.shape[-1])


def _fuse_rotary(editor: Editor, node: fx.Node) -> None:
    """`x * cos + cat([-x2, x1]) * sin` becomes one multiplication and two in-place multiply-adds."""
    if node.kwargs or not all(is_call(product, _aten.mul.Tensor) for product in node.args):
        return
    direct, turned = node.args
    x, cos = direct.args  # type: ignore[union-attr]
    joined, sin = turned.args  # type: ignore[union-attr]
    if not (
        isinstance(x, fx.Node) and isinstance(cos, fx.Node) and isinstance(sin, fx.Node) and _is_half_turn(joined, x)
    ):
        return
    value = x.meta["val"]
    widths = {n.meta["val"].shape[-1] for n in (x, cos, sin)}
    if (
        widths == {value.shape[-1]}
        and is_dense(node.meta["val"])
        and node.meta["val"].shape == value.shape
        and _one_dtype(x, cos, sin)
    ):
        halves, sines = editor.before(node).halves(x), editor.halves(sin)
        editor.replace(node, editor.opaque(rotary, (x, halves, cos, sines), like=node.meta["val"]))


def _one_dtype(*nodes: fx.Node) -> bool:
    return {n.meta["val"].dtype for n in nodes} == {torch.float32}


def _is_half_turn(joined: Any, x: fx.Node) -> bool:
    """Whether `joined` is `cat([-x[..., half:], x[..., :half]], -1)`."""
    last = x.meta["val"].dim() - 1
    if not is_call(joined, _aten.cat.default) or joined.args[1:] not in ((-1,), (last,)) or len(joined.args[0]) != 2:
        return False
    negated, first = joined.args[0]
    if last < 0 or not is_call(negated, _aten.neg.default):
        return False
    second, width = negated.args[0], x.meta["val"].shape[-1]
    return width % 2 == 0 and _is_part(first, x, 0, width // 2) and _is_part(second, x, width // 2, width)


def _is_part(node: Any, x: fx.Node, start: int, end: int) -> bool:
    if not is_call(node, _aten.slice.Tensor) or node.args[0] is not x or len(node.args) != 4:
        return False
    dim, low, high = node.args[1:]
    dims, width = x.meta["val"].dim(), x.meta["val"].shape[-1]
    return dim in (-1, dims - 1) and low == start and min(high, width) == end
