"""LM inference, second step: what the attention of one forward pass writes and reads.

A model sees a cache: it hands over the new keys and values, gets back all that may be attended to, and asks for the
mask between them. How they are stored, and which rows are pads, is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gaudicc.lm.state import LmState, Memory

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

    def update_keys(self, layer: int, keys: Tensor) -> Tensor:
        """As `update`, of a layer that has keys only."""
        ...

    @property
    def continues(self) -> bool:
        """Whether something was read before."""
        ...

    def carried(self, name: str) -> Tensor:
        """What a recurrence carried here, `[batch, ...]`; only if this pass `continues`."""
        ...

    def carry(self, name: str, value: Tensor) -> None:
        """Stores what a recurrence carries on."""
        ...


def mask(cache: Cache, rule: Rule = causal) -> Tensor:
    """The boolean mask `[batch, 1, queries, keys]` of a rule on positions."""
    return rule(cache.positions[:, None, :, None], cache.keys[:, None, None, :])


@dataclass(frozen=True)
class StepCache:
    """What all caches share.

    Attributes:
        memory: the state.
        positions: see `Cache`.
        keys: see `Cache`.
        rows: heads of a layer -> int64 `[batch * queries * heads]`, the buffer row that each new key goes to.
        owners: int64 `[batch]`, the slot, or the dump slot, that what each row carries goes to.
    """

    memory: Memory
    positions: Tensor
    keys: Tensor
    rows: Mapping[int, Tensor]
    owners: Tensor

    @property
    def continues(self) -> bool:
        """See `Cache.continues`."""
        return True

    def carried(self, name: str) -> Tensor:
        """See `Cache.carried`."""
        raise NotImplementedError

    def carry(self, name: str, value: Tensor) -> None:
        """See `Cache.carry`."""
        self.memory.write(name, self.owners, value)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        return self._stored("keys", layer, keys), self._stored("values", layer, values)

    def update_keys(self, layer: int, keys: Tensor) -> Tensor:
        """See `Cache.update_keys`."""
        return self._stored("keys", layer, keys)

    def _stored(self, name: str, layer: int, new: Tensor) -> Tensor:
        """Writes `[batch, heads, queries, width]`; gives back what may be attended to, `[batch, heads, keys, width]`."""
        raise NotImplementedError

    def _put(self, name: str, layer: int, new: Tensor) -> Tensor:
        """Writes new rows; gives back the buffer as `[slots, heads, context + 1, width]`."""
        limits, heads = self.memory.state.limits, self.memory.state.heads[layer]
        buffer = self.memory.write(f"{name}_{layer}", self.rows[heads], new.transpose(1, 2).flatten(0, 2))
        return buffer.view(limits.slots, heads, limits.context + 1, -1)


def rows_by_heads(state: LmState, slots: Tensor, columns: Tensor) -> dict[int, Tensor]:
    """The buffer rows of new keys, for every number of heads that a layer has.

    Args:
        state: the buffers.
        slots: int64 `[batch]`, below the number of slots.
        columns: int64 `[batch, queries]`, the position of each key, or the dump row's.

    Returns:
        heads -> int64 `[batch * queries * heads]`.
    """
    rows = {}
    for heads in sorted(set(state.heads)):
        head = slots[:, None] * heads + torch.arange(heads, device=slots.device)
        rows[heads] = (head[:, None, :] * (state.limits.context + 1) + columns[:, :, None]).flatten()
    return rows


class FreshCache(StepCache):
    """Nothing was stored before: only the new keys are attended to, and the buffers are written, never read."""

    @property
    def continues(self) -> bool:
        """See `Cache.continues`."""
        return False

    def carried(self, name: str) -> Tensor:
        """See `Cache.carried`."""
        raise AssertionError(f"nothing was read before that {name} could have carried")

    def _stored(self, name: str, layer: int, new: Tensor) -> Tensor:
        self._put(name, layer, new)
        return new


class FirstSlotsCache(StepCache):
    """Row i of the batch is slot i, so that what is attended to is a narrowed view of the buffers."""

    def carried(self, name: str) -> Tensor:
        """See `Cache.carried`."""
        return self.memory.read(name)[: self.positions.shape[0]]

    def _stored(self, name: str, layer: int, new: Tensor) -> Tensor:
        batch, length = self.positions.shape[0], self.keys.shape[1]
        return self._put(name, layer, new)[:batch, :, :length]


@dataclass(frozen=True)
class AnySlotsCache(StepCache):
    """The rows of the batch are slots in any order, gathered.

    Attributes:
        slots: int64 `[batch]`, below the number of slots.
    """

    slots: Tensor

    def carried(self, name: str) -> Tensor:
        """See `Cache.carried`."""
        return torch.index_select(self.memory.read(name), 0, self.slots)

    def _stored(self, name: str, layer: int, new: Tensor) -> Tensor:
        length = self.keys.shape[1]
        return torch.index_select(self._put(name, layer, new)[:, :, :length], 0, self.slots)
