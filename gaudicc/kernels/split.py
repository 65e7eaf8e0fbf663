"""Attention in slices: the vector part of one slice as one op, the exact merge of partial results, and their assembly.

`softmax_tile` stands between the two matrix products of a slice that sees whole rows of scores, `softmax_part` in one
that sees some of the keys. Each is one node because Gaudi's graph compiler pipelines MME -> one TPC node -> MME and
nothing longer. Partial results carry their row maximum and row sum, so `merge_parts` is exact, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gaudicc.kernels.registry import define

if TYPE_CHECKING:
    from gaudicc.machine.attention import Tile

Part = tuple[Tensor, Tensor, Tensor]
Span = tuple[int, int]
_LOWEST = torch.finfo(torch.float32).min


def _masked_scores(scores: Tensor, mask: Tensor | None, diagonal: int | None, scale: float) -> Tensor:
    """Scaled scores in float32, minus infinity where a key is masked."""
    wide = _cast(scores, torch.float32) * scale
    if mask is not None:
        wide = wide.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else wide + mask
    if diagonal is not None:
        rows = torch.arange(scores.shape[-2], device=scores.device).unsqueeze(1) + diagonal
        hidden = torch.arange(scores.shape[-1], device=scores.device).unsqueeze(0) > rows
        wide = wide.masked_fill(hidden, float("-inf"))
    return wide


def plain_softmax_part(
    scores: Tensor, mask: Tensor | None, sink: Tensor | None, diagonal: int | None, scale: float
) -> Part:
    """The same in plain ATen, in float32: scale, mask, maximum, exponential, sum, division."""
    wide = _masked_scores(scores, mask, diagonal, scale)
    # A row without any key has no maximum; with a finite one its weights are exp(-inf) = 0 and not NaN.
    maximum = torch.amax(wide, -1, keepdim=True).clamp(min=_LOWEST)
    if sink is not None:
        maximum = torch.maximum(maximum, _cast(sink, torch.float32))
    weights = torch.exp(wide - maximum)
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(_cast(sink, torch.float32) - maximum)
    # The largest key (or the sink) adds exp(0) = 1, so a sum below 1 is that of a row without any key.
    weights = weights / total.clamp(min=1.0)
    return _cast(weights, scores.dtype), maximum, total


def plain_softmax_tile(
    scores: Tensor, mask: Tensor | None, sink: Tensor | None, diagonal: int | None, scale: float
) -> Tensor:
    """The same in plain ATen."""
    return plain_softmax_part(scores, mask, sink, diagonal, scale)[0]


def _reference_tile(
    scores: Tensor, mask: Tensor | None, sink: Tensor | None, diagonal: int | None, scale: float
) -> Tensor:
    if sink is not None:
        return plain_sink_softmax(scores, mask, sink, diagonal, scale)
    wide = _masked_scores(scores, mask, diagonal, scale)
    return _cast(torch.ops.aten._safe_softmax.default(wide, -1), scores.dtype)  # one pass instead of six on a CPU


def plain_sink_softmax(scores: Tensor, mask: Tensor | None, sink: Tensor, diagonal: int | None, scale: float) -> Tensor:
    """`softmax_tile` with a sink as models write it: the sink is one more column, which the softmax sees and nothing else."""
    wide = _masked_scores(scores, mask, diagonal, scale)
    # A finite sink leaves no row without a maximum: one that is masked throughout gives it all and its keys zero.
    column = _cast(sink, torch.float32).clamp(min=_LOWEST).expand(*wide.shape[:-1], 1)
    weights = torch.ops.aten._softmax.default(torch.cat([wide, column], -1), -1, False)
    return _cast(torch.ops.aten.slice.Tensor(weights, -1, 0, scores.shape[-1]), scores.dtype)


def plain_merge_parts(
    out: Tensor, maximum: Tensor, total: Tensor, other: Tensor, other_maximum: Tensor, other_total: Tensor
) -> Part:
    """The same in plain ATen: statistics of both parts side by side, so that each is one op; then a weighted mean in one op."""
    maxima = torch.cat([maximum.unsqueeze(0), other_maximum.unsqueeze(0)])
    top = torch.amax(maxima, 0)
    totals = torch.cat([total.unsqueeze(0), other_total.unsqueeze(0)]) * torch.exp(maxima - top)
    merged = totals.sum(0)
    share = totals[1] / merged.clamp(min=1.0)
    return torch.lerp(_cast(out, torch.float32), _cast(other, torch.float32), share), top, merged


def _fake_tile(scores: Tensor, mask: Tensor | None, sink: Tensor | None, diagonal: int | None, scale: float) -> Tensor:
    return scores.new_empty(scores.shape)


def _fake_part(scores: Tensor, mask: Tensor | None, sink: Tensor | None, diagonal: int | None, scale: float) -> Part:
    maximum = scores.new_empty((*scores.shape[:-1], 1), dtype=torch.float32)
    return scores.new_empty(scores.shape), maximum, torch.empty_like(maximum)


def _fake_merge(
    out: Tensor, maximum: Tensor, total: Tensor, other: Tensor, other_maximum: Tensor, other_total: Tensor
) -> Part:
    return out.new_empty(out.shape, dtype=torch.float32), torch.empty_like(maximum), torch.empty_like(total)


softmax_tile = define(
    "softmax_tile(Tensor scores, Tensor? mask, Tensor? sink, int? diagonal, float scale) -> Tensor",
    _reference_tile,
    _fake_tile,
)
"""Attention weights of whole rows: softmax(scores * scale + mask) over the last dim.

Args:
    scores: `[..., rows, keys]`, floating point; all keys that the rows may see.
    mask: None, or broadcastable to the scores: bool (True = attend) or added to the scaled scores.
    sink: None, or broadcastable to `[..., rows, 1]`: the score of one more key whose value is zero.
    diagonal: None, or row i sees keys 0 .. i + diagonal only.
    scale: factor on the scores.

Returns:
    Weights of the scores' shape and dtype; statistics are float32. A row without any key gets zeros.
"""

softmax_part = define(
    "softmax_part(Tensor scores, Tensor? mask, Tensor? sink, int? diagonal, float scale) -> (Tensor, Tensor, Tensor)",
    plain_softmax_part,
    _fake_part,
)
"""As `softmax_tile` over some of the keys, with what merging needs.

Returns:
    Weights normalised within these keys, the row maximum `[..., rows, 1]` (the lowest float32 for a row without any
    key) and the sum of exp(score - maximum), both float32. Give the sink to one part of each row only.
"""

merge_parts = define(
    "merge_parts(Tensor out, Tensor maximum, Tensor total, Tensor other, Tensor other_maximum, Tensor other_total)"
    " -> (Tensor, Tensor, Tensor)",
    plain_merge_parts,
    _fake_merge,
)
"""Attention over the keys of two parts, from the results over each.

Args:
    out: `[..., rows, value_dim]`, the result over the keys of one part.
    maximum: its row maximum, `[..., rows, 1]`, float32.
    total: its row sum, likewise.
    other: the result over other keys.
    other_maximum: its row maximum.
    other_total: its row sum.

Returns:
    Result, maximum and sum over both, float32. Associative and commutative up to rounding.
"""


def sliced_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, tiles: Iterable[Tile],
    sink: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`gaudicc::attention` as independent slices, each two matrix products around one vector op.

    Args:
        q: as for `gaudicc::attention`, like the five that follow.
        k: grouped keys.
        v: grouped values.
        mask: None or a mask; cut to each tile.
        causal: query i attends keys 0 .. i only.
        scale: factor on the scores.
        tiles: what each slice computes, those of one block of rows following each other in the order of their keys. Keys that
            no tile names are taken to be masked.
        sink: None, or `[heads]`: the score of one more key per head whose value is zero.

    Returns:
        `[batch, heads, queries, value_dim]`, laid out as `gaudicc::attention` lays it out.
    """
    blocks: dict[tuple[int, int, int, int], dict[int, Tensor]] = {}
    running: dict[tuple[tuple[int, int, int, int], int], Part] = {}
    operands = _Operands(q, k, v, mask, causal, sink)
    for tile in tiles:
        place, row = (*tile.batch, *tile.heads), tile.rows[0]
        done = blocks.setdefault(place, {})
        scores, values, extra = operands.of(tile)
        if tile.first and tile.last:
            done[row] = torch.matmul(torch.ops.gaudicc.softmax_tile.default(scores, *extra, scale), values)
            continue
        weights, *statistics = torch.ops.gaudicc.softmax_part.default(scores, *extra, scale)
        part = (torch.matmul(weights, values), *statistics)
        merged = part if tile.first else torch.ops.gaudicc.merge_parts.default(*running.pop((place, row)), *part)
        if tile.last:
            done[row] = _cast(merged[0], q.dtype)
        else:
            running[place, row] = merged
    return _assemble(blocks, v.shape[-1])


def join_blocks(results: Sequence[Tensor], blocks: Sequence[tuple[Span, Span]]) -> Tensor:
    """Attention of the whole batch from that of blocks of heads.

    Args:
        results: `[sequences, heads, queries, value_dim]` each, laid out as `gaudicc::attention` lays it out.
        blocks: (sequences, heads) of each.

    Returns:
        `[batch, heads, queries, value_dim]`, laid out likewise.
    """
    placed = {(*batch, *heads): {0: result} for (batch, heads), result in zip(blocks, results, strict=True)}
    return _assemble(placed, results[0].shape[-1])


class _Operands:
    """What tiles compute with; blocks of rows and of keys that several tiles share are cut once."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, sink: Tensor | None) -> None:
        self.q, self.k, self.v, self.mask, self.causal, self.sink = q, k, v, mask, causal, sink
        self.groups = q.shape[1] // k.shape[1]
        self._rows: dict[tuple[Span, ...], Tensor] = {}
        self._keys: dict[tuple[Span, ...], tuple[Tensor, Tensor]] = {}

    def of(self, tile: Tile) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, int | None]]:
        """(Scores, values, (mask, sink, diagonal)); with grouped heads as `[batch, kv_heads, group, ...]`."""
        low, high = tile.heads
        kv_heads = (low // self.groups, -(-high // self.groups))
        split = (kv_heads[1] - kv_heads[0], (high - low) // (kv_heads[1] - kv_heads[0])) if self.groups > 1 else None
        place, block = (tile.batch, tile.heads, tile.rows), (tile.batch, kv_heads, tile.keys)
        if place not in self._rows:
            self._rows[place] = _grouped(_block(self.q, place), split)
        if block not in self._keys:
            keys, values = (_block(x, block) for x in (self.k, self.v))
            if split:
                keys, values = keys.unsqueeze(2), values.unsqueeze(2)
            self._keys[block] = keys.transpose(-2, -1), values
        keys, values = self._keys[block]
        crossed = self.causal and tile.keys[1] - 1 > tile.rows[0]
        extra = self._mask(tile, split), self._sink(tile, split), tile.rows[0] - tile.keys[0] if crossed else None
        return torch.matmul(self._rows[place], keys), values, extra

    def _mask(self, tile: Tile, split: Span | None) -> Tensor | None:
        if self.mask is None:
            return None
        mask = self.mask.view((1,) * (4 - self.mask.dim()) + tuple(self.mask.shape))
        for dim, span in enumerate((tile.batch, tile.heads, tile.rows, tile.keys)):
            mask = _cut(mask, dim, span) if mask.shape[dim] > 1 else mask
        return mask.unsqueeze(2) if split and mask.shape[1] == 1 else _grouped(mask, split)

    def _sink(self, tile: Tile, split: Span | None) -> Tensor | None:
        if self.sink is None or not tile.first:
            return None
        low, high = tile.heads
        return _grouped(_cut(self.sink, 0, tile.heads).view(1, high - low, 1, 1), split)


def _block(x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    for dim, span in enumerate(spans):
        x = _cut(x, dim, span)
    return x


def _grouped(x: Tensor, split: Span | None) -> Tensor:
    """`[batch, heads, ...]` -> `[batch, kv_heads, group, ...]`, a view; as it is without groups."""
    return x if split is None else x.view(x.shape[0], *split, *x.shape[2:])


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # `Tensor.to` is a composite, which no pass may bring back once they are decomposed.
    return x if x.dtype == dtype else torch.ops.aten._to_copy.default(x, dtype=dtype)


def _cut(x: Tensor, dim: int, span: Span) -> Tensor:
    return x if span == (0, x.shape[dim]) else torch.ops.aten.slice.Tensor(x, dim, *span)


def _assemble(blocks: dict[tuple[int, int, int, int], dict[int, Tensor]], width: int) -> Tensor:
    """`[batch, heads, queries, width]` of the results by (batch, heads) and first row."""
    by_batch: dict[int, list[Tensor]] = {}
    for (start, _, low, high), done in sorted(blocks.items()):
        results = (done[row] for row in sorted(done))
        laid = [x.view(x.shape[0], high - low, x.shape[-2], width).transpose(1, 2) for x in results]
        by_batch.setdefault(start, []).append(_joined(laid, 1))
    batches = [_joined(parts, 2) for _, parts in sorted(by_batch.items())]
    return _joined(batches, 0).transpose(1, 2)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
