"""What the CPU device derives from weights: other layouts of them, made once and shared by all recordings.

Deriving is the `prepare` step of a recording. A derived tensor remembers the versions of the weights it was made from
and is made again after they change (`load_state_dict`), at the next replay.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from gaudicc.runtime.cpu_calls import pack_linear

Build = Callable[..., torch.Tensor]
_SETTLED: dict[
    int, weakref.WeakSet[Any]
] = {}  # storage -> what reads it in a layout that it takes for settled, on all devices


class Prepared:
    """One tensor derived from weights.

    Attributes:
        sources: the weights.
        value: the derived tensor. Strided ones are refreshed in place, oneDNN's own are replaced.
        generation: how often `value` was replaced by another tensor object.
    """

    def __init__(self, sources: tuple[torch.Tensor, ...], build: Build) -> None:
        self.sources = sources
        self._build = build
        self._versions = versions(sources)
        self.value = build(*sources)
        self.generation = 0

    @property
    def bytes_held(self) -> int:
        """Bytes of the derived tensor, none if the weights themselves live in it."""
        return 0 if self._adopted() else self.value.numel() * self.value.element_size()

    def adopt(self) -> None:
        """Moves the weights into the derived tensor, a stack of them along dim 0.

        They keep values and shapes; their plain copies are freed and their strides change.
        """
        offset = 0
        for source in self.sources:
            source.data = self.value[offset : offset + source.shape[0]]
            offset += source.shape[0]
        self._versions = versions(self.sources)

    def refresh(self) -> None:
        """Makes the tensor again if a weight has changed since."""
        now = versions(self.sources)
        if now == self._versions:
            return
        self._versions = now
        if self._adopted():
            return
        fresh = self._build(*self.sources)
        if self.value.layout is torch.strided:
            self.value.copy_(fresh)
        else:
            self.value = fresh
            self.generation += 1

    def _adopted(self) -> bool:
        if self.value.layout is not torch.strided:
            return False
        return self.sources[0].untyped_storage().data_ptr() == self.value.untyped_storage().data_ptr()


class PackedWeights:
    """The derived tensors of one device.

    Args:
        release: hold one copy of each weight: weights that run best by columns are moved into that layout (same
            values and shapes, other strides), and no second layout is made for other row counts.
    """

    def __init__(self, *, release: bool = False) -> None:
        self.release = release
        self._derived: weakref.WeakValueDictionary[tuple[Any, ...], Prepared] = weakref.WeakValueDictionary()
        self._pinned: dict[int, weakref.WeakSet[Any]] = {}
        self._lock = threading.RLock()

    @property
    def bytes_held(self) -> int:
        """Bytes of all derived tensors, besides the weights themselves."""
        return sum(prepared.bytes_held for prepared in list(self._derived.values()))

    def derive(self, kind: str, sources: tuple[torch.Tensor, ...], build: Build) -> Prepared:
        """The tensor of this kind for these weights, made on first use.

        Args:
            kind: names the derivation; with the identity of the weights it is the key.
            sources: the weights.
            build: makes the tensor.
        """
        key = _key(kind, sources)
        with self._lock:
            prepared = self._derived.get(key)
            if prepared is None:
                prepared = Prepared(sources, build)
                self._derived[key] = prepared
            prepared.refresh()
        return prepared

    def columns(self, weights: tuple[torch.Tensor, ...], *, adopt: bool) -> Prepared:
        """`[out, in]` weights stacked along `out` and stored column by column (strides `(1, out)`).

        Args:
            weights: the weights.
            adopt: move the weights themselves into the stack, unless a living recording reads them by address or layout.
        """
        prepared = self.derive("columns", weights, _columns)
        if adopt and not any(self.is_pinned(weight) or _SETTLED.get(_storage(weight)) for weight in weights):
            with self._lock:  # the weights move, and with them the key
                del self._derived[_key("columns", weights)]
                prepared.adopt()
                self._derived[_key("columns", weights)] = prepared
        return prepared

    def blocked(self, weights: tuple[torch.Tensor, ...]) -> Prepared:
        """`[out, in]` weights stacked along `out` in oneDNN's layout, one for every row count."""
        return self.derive("blocked", weights, _blocked)

    def pin(self, tensor: torch.Tensor, holder: Any) -> None:
        """Says that `holder` reads this tensor's storage by address, so that it must not be released."""
        self._pinned.setdefault(_storage(tensor), weakref.WeakSet()).add(holder)

    def settle(self, tensor: torch.Tensor, holder: Any) -> None:
        """Says that `holder` reads this tensor in the layout it has now, so that no device may move it."""
        _SETTLED.setdefault(_storage(tensor), weakref.WeakSet()).add(holder)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a living recording reads this tensor's storage by address."""
        return bool(self._pinned.get(_storage(tensor)))

    def refresh(self, prepared: tuple[Prepared, ...]) -> None:
        """Makes again what is out of date."""
        with self._lock:
            for one in prepared:
                one.refresh()


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def versions(tensors: tuple[torch.Tensor, ...]) -> list[int]:
    """How often each tensor has been written; what changes when `load_state_dict` runs."""
    return [tensor._version for tensor in tensors]


def layout_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """How a tensor's bytes are read."""
    return tensor.dtype, tuple(tensor.shape), tensor.stride()


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What makes two tensors the same weight: the same bytes read the same way."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _key(kind: str, sources: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    return (kind, *(identity(source) for source in sources))


def _columns(*weights: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight.detach().t() for weight in weights], dim=1).contiguous().t()


def _blocked(*weights: torch.Tensor) -> torch.Tensor:
    return pack_linear(weights[0] if len(weights) == 1 else torch.cat([weight.detach() for weight in weights]))
