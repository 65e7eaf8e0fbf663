"""Third step of recording on the CPU: chains of small ops become the fewest calls that compute the same.

One row of a decode step costs about 2 us of dispatch per call whatever it computes, so fewer calls are all that counts
there; with many rows the chains stay as they are where that is as fast.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_edit import Editor
from gaudicc.runtime.cpu_flatten import is_dense
from gaudicc.runtime.cpu_weights import PackedWeights

_aten = torch.ops.aten


def fuse(editor: Editor, weights: PackedWeights) -> None:
    """Rewrites norms, rotary embeddings and attention."""
    masks: dict[fx.Node, fx.Node] = {}
    for node in editor.calls():
        if node.target is _aten.scaled_dot_product_attention.default:
            _fuse_attention(editor, node, masks)
        elif node.target is _aten.mul.Tensor:
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


def _of(node: Any, target: Any, uses: int = 1) -> bool:
    return isinstance(node, fx.Node) and node.target is target and len(node.users) == uses


def _fuse_rms_norm(editor: Editor, node: fx.Node, weights: PackedWeights) -> None:
    """`weight * (x * rsqrt(mean(x ** 2) + eps))` of one fp32 row: norm, hypot, div, mul instead of six calls."""
    for scaled, gain in (node.args, reversed(node.args)):
        weight = editor.weight(gain)
        if not _of(scaled, _aten.mul.Tensor) or weight is None or node.kwargs or not editor.can_derive(weight):
            continue
        for x, factor in (scaled.args, reversed(scaled.args)):  # type: ignore[union-attr]
            eps = _mean_square_eps(x, factor)
            if isinstance(x, fx.Node) and eps is not None and _is_row(x, weight, node):
                width = weight.shape[0]
                scale = weights.derive("root-width", (weight,), lambda w: w.detach() * math.sqrt(w.shape[0]))
                floor = editor.bind("eps", torch.tensor(math.sqrt(width * eps)))
                length = editor.before(node).call(_aten.linalg_vector_norm.default, x, 2, [-1], True)
                length = editor.call(_aten.hypot.default, length, floor)
                unit = editor.call(_aten.div.Tensor, x, length)
                editor.replace(node, editor.call(_aten.mul.Tensor, unit, editor.bind_prepared("scale", scale)))
                return


def _mean_square_eps(x: Any, factor: Any) -> float | None:
    """`eps` if `factor` is `rsqrt(mean(x ** 2, -1, keepdim) + eps)`."""
    if not _of(factor, _aten.rsqrt.default) or not _of(factor.args[0], _aten.add.Tensor):
        return None
    mean, eps = factor.args[0].args[:2]
    if not _of(mean, _aten.mean.dim) or not isinstance(eps, float) or factor.args[0].kwargs or mean.kwargs:
        return None
    square, *how = mean.args
    if how not in ([[-1], True], [[x.meta["val"].dim() - 1], True]) or not _of(square, _aten.pow.Tensor_Scalar):
        return None
    return eps if square.args == (x, 2) and eps >= 0 else None


def _is_row(x: fx.Node, weight: torch.Tensor, node: fx.Node) -> bool:
    value = x.meta["val"]
    same = value.dtype == weight.dtype == torch.float32 and node.meta["val"].shape == value.shape
    return bool(same and weight.dim() == 1 and value.numel() == weight.shape[0] == value.shape[-1])


def _fuse_rotary(editor: Editor, node: fx.Node) -> None:
    """`x * cos + cat([-x2, x1]) * sin` becomes one multiplication and two in-place multiply-adds."""
    if node.kwargs or not all(_of(product, _aten.mul.Tensor) for product in node.args):
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
    last, width = x.meta["val"].dim() - 1, x.meta["val"].shape[-1]
    if not _of(joined, _aten.cat.default) or joined.args[1:] not in ((-1,), (last,)) or len(joined.args[0]) != 2:
        return False
    negated, first = joined.args[0]
    if not _of(negated, _aten.neg.default):
        return False
    second = negated.args[0]
    return width % 2 == 0 and _is_part(first, x, 0, width // 2) and _is_part(second, x, width // 2, width)


def _is_part(node: Any, x: fx.Node, start: int, end: int) -> bool:
    if not _of(node, _aten.slice.Tensor) or node.args[0] is not x or len(node.args) != 4:
        return False
    dim, low, high = node.args[1:]
    dims, width = x.meta["val"].dim(), x.meta["val"].shape[-1]
    return dim in (-1, dims - 1) and low == start and min(high, width) == end


def _fuse_attention(editor: Editor, node: fx.Node, masks: dict[fx.Node, fx.Node]) -> None:
    """The kernel that PyTorch would choose is called by itself, and a boolean mask is converted once for all layers."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    query, key, value = given["query"], given["key"], given["value"]
    mask = given.get("attn_mask")
    grouped = bool(given.get("enable_gqa"))
    if given.get("dropout_p"):
        return
    if isinstance(key, fx.Node) and isinstance(value, fx.Node) and not grouped:
        once = _unrepeated(key), _unrepeated(value)
        if None not in once:
            (key, value), grouped = once, True
    if not _flash_takes(query, key, value, mask, grouped):
        return
    causal = bool(given.get("is_causal"))
    if isinstance(mask, fx.Node) and not causal and _is_causal(editor, mask, query.meta["val"].shape[2]):
        mask, causal = None, True  # the kernel leaves out what is hidden
    if isinstance(mask, fx.Node) and mask.meta["val"].dtype == torch.bool:
        if mask not in masks:
            masks[mask] = _additive(editor, mask, query.meta["val"].dtype)
        mask = masks[mask]
    how = {"attn_mask": mask, "scale": given.get("scale")}
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu.default
    both = editor.before(node).call(kernel, query, key, value, 0.0, causal, **how)
    editor.replace(node, editor.call(operator.getitem, both, 0))


def _unrepeated(node: fx.Node) -> Any:
    """Keys or values before each head was repeated for its group of query heads; the kernel does that by itself."""
    cloned: Any = node.args[0] if node.target in (_aten._unsafe_view.default, _aten.view.default) else None
    if not _of(cloned, _aten.clone.default) or not _of(cloned.args[0], _aten.expand.default):
        return None
    inserted: Any = cloned.args[0].args[0]
    if not isinstance(inserted, fx.Node) or inserted.target is not _aten.unsqueeze.default or inserted.args[1] != 2:
        return None
    base: Any = inserted.args[0]
    batch, heads, *rest = base.meta["val"].shape
    wide = cloned.meta["val"].shape
    repeated = len(wide) == 5 and wide[:2] == (batch, heads) and list(wide[3:]) == rest
    return base if repeated and list(node.meta["val"].shape) == [batch, heads * wide[2], *rest] else None


def _flash_takes(query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None, grouped: bool) -> bool:
    """Whether the flash kernel computes this attention exactly; the conditions are the kernel's own."""
    q, k, v = (node.meta["val"] for node in (query, key, value))
    if not (q.dim() == k.dim() == v.dim() == 4 and q.dtype == k.dtype == v.dtype and k.shape == v.shape):
        return False
    if q.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16) or q.shape[-1] != k.shape[-1]:
        return False
    heads = q.shape[1] % k.shape[1] == 0 if grouped and k.shape[1] else q.shape[1] == k.shape[1]
    if not heads or q.shape[0] != k.shape[0] or 0 in (*q.shape, *k.shape):
        return False
    if any(t.stride(-1) != 1 for t in (q, k, v)):
        return False
    if mask is None:
        return True
    m = mask.meta["val"]
    return (
        m.dim() in (2, 4)
        and m.dtype in (torch.bool, q.dtype)
        and all(
            have in (1, want)
            for have, want in zip(reversed(m.shape), (k.shape[2], q.shape[2], q.shape[1], q.shape[0]), strict=False)
        )
    )


def _is_causal(editor: Editor, mask: fx.Node, queries: int) -> bool:
    """Whether a mask that is known when recording lets each query see the keys up to its own, of as many."""
    if "hoisted" not in mask.meta or mask.meta["val"].dtype != torch.bool or mask.meta["val"].shape[-1] != queries:
        return False
    known = editor.flat.bound[mask]
    return torch.equal(known, known.new_ones(queries, queries).tril().expand_as(known))


def _additive(editor: Editor, mask: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A boolean mask as zeros and minus infinities, made where the mask is."""
    hidden = editor.bind("hidden", torch.tensor(-math.inf, dtype=dtype))
    kept = editor.bind("kept", torch.tensor(0.0, dtype=dtype))
    after = mask.next
    while after.op == "placeholder":
        after = after.next
    return editor.before(after).call(_aten.where.self, mask, kept, hidden)
