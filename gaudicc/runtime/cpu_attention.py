"""Third step of recording on the CPU: attention becomes the calls that are fastest for its sizes.

- One query reads every key once and is bound by memory: two products and a softmax take 0.8 of the time of PyTorch's flash
  kernel (measured on CPU, 256 keys from memory).
- Many queries that see what is before them: tiles of queries and one oneDNN product per head, which reaches twice the
  rate of the products inside the flash kernel (fp32; measured on CPU: 0.8 of its time at 256 tokens, 0.55 at 512).
- With native kernels both of these are one call (`cpu_native_calls`).
- Everything else is the flash kernel, called by itself; with keys once per query head where PyTorch's does not share them.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import can_pack, packed_linear
from gaudicc.runtime.cpu_edit import Editor, has_view, is_call
from gaudicc.runtime.cpu_native_calls import native_attention, native_causal

_aten = torch.ops.aten
_TILE = 256  # queries of one tile
_TILED_FROM = 256  # queries from which tiles are faster than the flash kernel


class _Attention(NamedTuple):
    """One call: tensors `[batch, heads, rows, width]`, keys and values with as many heads or a divisor of them."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    causal: bool
    scale: float


def lower_attention(editor: Editor) -> None:
    """Rewrites every attention of the graph whose kernel is known to compute it exactly."""
    masks: dict[fx.Node, fx.Node] = {}
    seen: dict[fx.Node, fx.Node] = {}
    for node in editor.calls():
        if node.target is not _aten.scaled_dot_product_attention.default:
            continue
        call = _match(editor, node)
        if call is None:
            continue
        if call.mask is not None and call.mask.meta["val"].dtype == torch.bool:
            if call.mask not in masks:
                masks[call.mask] = _additive(editor, call.mask, call.query.meta["val"].dtype)
            call = call._replace(mask=masks[call.mask])
        editor.before(node)
        result = _one_query(editor, call, seen) or _causal(editor, call) or _tiled(editor, call) or _flash(editor, call)
        editor.replace(node, result)


def _match(editor: Editor, node: fx.Node) -> _Attention | None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    query, key, value = given["query"], given["key"], given["value"]
    mask, grouped, causal = given.get("attn_mask"), bool(given.get("enable_gqa")), bool(given.get("is_causal"))
    if given.get("dropout_p"):
        return None
    if isinstance(key, fx.Node) and isinstance(value, fx.Node) and not grouped:
        once = _unrepeated(key), _unrepeated(value)
        if None not in once:
            (key, value), grouped = once, True
    if not _flash_takes(query, key, value, mask, grouped):
        return None
    if isinstance(mask, fx.Node) and not causal and _is_causal(editor, mask, query.meta["val"].shape[2]):
        mask, causal = None, True  # what is hidden is left out
    scale = given.get("scale")
    return _Attention(query, key, value, mask, causal, query.meta["val"].shape[-1] ** -0.5 if scale is None else scale)


def _flash(editor: Editor, call: _Attention) -> fx.Node:
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu.default
    key, value = call.key, call.value
    if key.meta["val"].shape[1] != call.query.meta["val"].shape[1] and not kernel_shares_keys():
        key, value = (_repeated(editor, node, call.query.meta["val"].shape[1]) for node in (key, value))
    both = editor.call(kernel, call.query, key, value, 0.0, call.causal, attn_mask=call.mask, scale=call.scale)
    return editor.call(operator.getitem, both, 0)


@functools.cache
def kernel_shares_keys() -> bool:
    """Whether the flash kernel of this PyTorch takes keys that several query heads share; that of 2.7 reads past them.

    Asked with keys behind which lie other numbers of ours, so that a kernel that reads on reads no foreign memory.
    """
    query, keys = torch.ones(1, 2, 1, 8), torch.zeros(1, 2, 1, 8)
    keys[:, 1] = math.nan
    result, _ = torch._scaled_dot_product_flash_attention_for_cpu(
        query, keys[:, :1], keys[:, :1], 0.0, False, scale=1.0
    )
    return not bool(result.isnan().any())


def _repeated(editor: Editor, node: fx.Node, heads: int) -> fx.Node:
    """Keys or values once per query head."""
    batch, groups, keys, width = node.meta["val"].shape
    grouped = editor.call(_aten.unsqueeze.default, node, 2)
    wide = editor.call(_aten.expand.default, grouped, [batch, groups, heads // groups, keys, width])
    return editor.flat_view(wide, [batch, heads, keys, width])


def _one_query(editor: Editor, call: _Attention, seen: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """A product, a softmax and a product; a query that sees nothing gives zeros, as in the flash kernel."""
    (batch, heads, queries, width), groups = call.query.meta["val"].shape, call.key.meta["val"].shape[1]
    keys, folded = call.key.meta["val"].shape[2], batch * groups
    joint = all(has_view(node.meta["val"], (folded, keys, width)) for node in (call.key, call.value))
    if queries != 1 or call.causal or call.query.meta["val"].dtype != torch.float32 or not joint:
        return None
    if call.mask is not None:
        operands = (call.query, call.key, call.value, call.mask)
        if (made := native_attention(editor, editor.point, operands, call.scale)) is not None:
            return made
    query = editor.flat_view(call.query, [folded, heads // groups, width])
    key, value = (editor.flat_view(node, [folded, keys, width]) for node in (call.key, call.value))
    if call.mask is None:
        added = editor.number(0.0, "zero")
    else:
        wide = editor.call(_aten.expand.default, call.mask, [batch, heads, 1, keys])
        added = editor.flat_view(wide, [folded, heads // groups, keys])
    turned = editor.call(_aten.transpose.int, key, 1, 2)
    scores = editor.call(_aten.baddbmm.default, added, query, turned, alpha=call.scale)
    weights = editor.call(_aten._softmax.default, scores, -1, False)
    result = editor.flat_view(editor.call(_aten.bmm.default, weights, value), [batch, heads, 1, width])
    if call.mask is None:
        return result
    zero = editor.number(0.0, "zero")
    return editor.call(_aten.where.self, _sees(editor, call.mask, seen), result, zero)


def _sees(editor: Editor, mask: fx.Node, seen: dict[fx.Node, fx.Node]) -> fx.Node:
    """Whether a query sees any key: the mask's shape with one key, made once for all layers."""
    if mask not in seen:
        point = editor.point
        highest = editor.before(_behind(mask)).call(_aten.amax.default, mask, [-1], True)
        seen[mask] = editor.call(_aten.gt.Scalar, highest, -math.inf)
        editor.before(point)
    return seen[mask]


def attend_tiles(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention of as many queries as keys, by tiles of queries.

    Args:
        query: float32 `[batch, heads, tokens, width]`.
        key: `[batch, groups, tokens, width]`.
        value: as key.
        hidden: float32 `[tile, tile]`, minus infinity above the diagonal, zero elsewhere; its size is that of a tile.
        scale: of the scores.

    Returns:
        `[batch, heads, tokens, width]`, tokens outermost in memory, as the flash kernel lays them.
    """
    (batch, heads, tokens, width), groups, tile = query.shape, key.shape[1], hidden.shape[0]
    result = query.new_empty(batch, tokens, heads, width)
    share = heads // groups
    scaled = query * scale
    for row in range(batch):
        for group in range(groups):
            first = group * share
            keys, values = key[row, group].contiguous(), value[row, group].contiguous()
            for start in range(0, tokens, tile):
                end = min(start + tile, tokens)
                size = end - start
                rows = scaled[row, first : first + share, start:end].reshape(share * size, width)
                scores = packed_linear(rows, keys[:end], None, "none", [], "")
                scores.view(share, size, end)[:, :, start:].add_(hidden[:size, :size])
                weights = torch._softmax(scores, -1, False)
                mixed = packed_linear(weights, values[:end].t(), None, "none", [], "")
                result[row, start:end, first : first + share] = mixed.view(share, size, width).transpose(0, 1)
    return result.transpose(1, 2)


def _causal(editor: Editor, call: _Attention) -> fx.Node | None:
    if not call.causal or call.mask is not None:
        return None
    return native_causal(editor, editor.point, (call.query, call.key, call.value), call.scale)


def _tiled(editor: Editor, call: _Attention) -> fx.Node | None:
    value, keys = call.query.meta["val"], call.key.meta["val"].shape[2]
    suits = call.causal and call.mask is None and value.dtype == torch.float32 and can_pack(torch.float32)
    if not suits or keys != value.shape[2] or keys < _TILED_FROM:
        return None
    hidden = editor.bind("hidden", _above_diagonal())
    batch, heads, tokens, width = value.shape
    like = torch.empty(batch, tokens, heads, width, device="meta").transpose(1, 2)
    return editor.opaque(attend_tiles, (call.query, call.key, call.value, hidden, call.scale), like=like)


@functools.cache
def _above_diagonal() -> torch.Tensor:
    return torch.full((_TILE, _TILE), -math.inf).triu(1)


def _unrepeated(node: fx.Node) -> Any:
    """Keys or values before each head was repeated for its group of query heads; the kernel does that by itself."""
    cloned: Any = node.args[0] if node.target in (_aten._unsafe_view.default, _aten.view.default) else None
    if not is_call(cloned, _aten.clone.default) or not is_call(cloned.args[0], _aten.expand.default):
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
    hidden = editor.number(-math.inf, "hidden", dtype)
    kept = editor.number(0.0, "kept", dtype)
    return editor.before(_behind(mask)).call(_aten.where.self, mask, kept, hidden)


def _behind(node: fx.Node) -> fx.Node:
    """The first node after this one that is no placeholder."""
    after = node.next
    while after.op == "placeholder":
        after = after.next
    return after
