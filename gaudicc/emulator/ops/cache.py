"""Key/value caches of beam search, and indexing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BEAMS = 4


def kv_reorder_(self: Tensor, start: Tensor, end: Tensor, beam_idx: Tensor) -> Tensor:
    """Of each batch entry, positions start to end take the beams named by four 2-bit numbers packed in a byte.

    Args:
        self: `[batch, beams, ..., positions, dim]`, changed in place.
        start: `[batch]`, the first position.
        end: `[batch]`, one past the last.
        beam_idx: `[batch]`, uint8; the first beam's number is in the two highest bits.
    """
    if self.is_meta:
        return self
    for entry in range(self.shape[0]):
        packed = int(beam_idx.reshape(-1)[entry])
        beams = [(packed >> shift) & 3 for shift in (6, 4, 2, 0)]
        first, last = int(start.reshape(-1)[entry]), int(end.reshape(-1)[entry])
        part = self[entry].narrow(-2, first, last - first)
        part.copy_(torch.stack([part[beam] for beam in beams]))
    return self


def kv_reorder(self: Tensor, start: Tensor, end: Tensor, beam_idx: Tensor) -> Tensor:
    """The same on a copy."""
    return kv_reorder_(self.clone(), start, end, beam_idx)


def in_place_interleave_(self: Tensor) -> Tensor:
    """Row i of the first quarter goes to rows 4i to 4i+3."""
    first = self[: self.shape[0] // BEAMS]
    return self.copy_(torch.stack([first] * BEAMS, 1).reshape(self.shape))


def in_place_interleave(self: Tensor) -> Tensor:
    """The same on a copy."""
    return in_place_interleave_(self.clone())


def plain_index(self: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """`self[indices]`, all of them tensors of numbers."""
    return self[tuple(index.to(torch.int64) for index in indices)]


OPS: dict[str, Callable[..., Any]] = {
    "kv_reorder_(Tensor(a!) self, Tensor start, Tensor end, Tensor beam_idx) -> Tensor(a!)": kv_reorder_,
    "kv_reorder(Tensor self, Tensor start, Tensor end, Tensor beam_idx) -> Tensor": kv_reorder,
    "in_place_interleave_(Tensor(a!) self) -> Tensor(a!)": in_place_interleave_,
    "in_place_interleave(Tensor self) -> Tensor": in_place_interleave,
    "plain_index(Tensor self, Tensor[] indices) -> Tensor": plain_index,
}
