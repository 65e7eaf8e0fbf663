"""LM inference, second step: what the attention of one forward pass writes and reads.

A model sees a cache: it hands over the new keys and values, gets back all that may be attended to, and asks for the
mask between them. How they are stored, and which rows are pads, is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gaudicc.lm.state import Memory

Rule = Callable[[Tensor, Tensor], Tensor]
"""Of positions of queries and keys, broadcast against each other: whether the query may attend the key."""


def causal(query: Tensor, key: Tensor) -> Tensor:
    """A query attends itself and what comes before it."""
    return key <= query


class Cache(Protocol):
    """The cache as a model sees it during one forward pass."""

    @property
    def positions(self) -> Tensor:
        """The position of each query in its request: int64 `[batch, queries]`."""
        ...

    @property
    def keys(self) -> Tensor:
        """The position of each key that `update` gives back: int64 `[batch or 1, keys]`."""
        ...

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values.

        Args:
            layer: which layer.
            keys: `[batch, heads, queries, width]`.
            values: as keys.

        Returns:
            Keys and values to attend to, `[batch, heads, keys, width]`.
        """
        ...


def mask(cache: Cache, rule: Rule = causal) -> Tensor:
    """The boolean mask `[batch, 1, queries, keys]` of a rule on positions."""
    return rule(cache.positions[:, None, :, None], cache.keys[:, None, None, :])


@dataclass(frozen=True)
class _Written:
    """What all caches share.

    Attributes:
        memory: the state.
        positions: see `Cache`.
        keys: see `Cache`.
        rows: int64 `[batch * queries]`, the buffer row that each new key goes to.
    """

    memory: Memory
    positions: Tensor
    keys: Tensor
    rows: Tensor

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        parts = (("keys", keys), ("values", values))
        whole = [self.memory.write(f"{n}_{layer}", self.rows, new.transpose(1, 2).flatten(0, 1)) for n, new in parts]
        return whole[0], whole[1]

    def _by_slot(self, buffer: Tensor) -> Tensor:
        """A buffer as `[slots, context + 1, heads, width]`."""
        limits = self.memory.state.limits
        return buffer.view(limits.slots, limits.context + 1, *buffer.shape[1:])


class FreshCache(_Written):
    """Nothing was stored before: only the new keys are attended to, and the buffers are written, never read."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        self._write(layer, keys, values)
        return keys, values


class FirstSlotsCache(_Written):
    """Row i of the batch is slot i, so that what is attended to is a narrowed view of the buffers."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        batch, length = self.positions.shape[0], self.keys.shape[1]
        whole = self._write(layer, keys, values)
        read_keys, read_values = (self._by_slot(buffer)[:batch, :length].transpose(1, 2) for buffer in whole)
        return read_keys, read_values


@dataclass(frozen=True)
class AnySlotsCache(_Written):
    """The rows of the batch are slots in any order, gathered.

    Attributes:
        slots: int64 `[batch]`, below the number of slots.
    """

    slots: Tensor

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        length = self.keys.shape[1]
        whole = self._write(layer, keys, values)
        read_keys, read_values = (
            torch.index_select(self._by_slot(buffer)[:, :length], 0, self.slots).transpose(1, 2) for buffer in whole
        )
        return read_keys, read_values
