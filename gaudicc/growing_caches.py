"""The caches of a compiled model that grow: taken from a call's arguments, kept in state, given back as views of it.

A caller keeps the model's own signature: it passes a cache and gets one back with more rows. What comes back is a view of the
first rows of a state buffer. Passed on as it is, nothing is copied; anything else is copied into the buffer once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gaudicc.calling import GrowingCache, marker_of
from gaudicc.calls import Expected, Prologue
from gaudicc.errors import ShapeError, StateError, Where
from gaudicc.padding.host import Size, size_function
from gaudicc.program import Program


@dataclass(eq=False)
class Held:
    """One state buffer and what the last call gave back of it.

    Attributes:
        buffer: of the largest size; 0 behind the valid rows, which the certificate of padding rests on.
        returned: the view of its first rows that the last call returned; None before the first.
        length: how many rows these are.
    """

    buffer: torch.Tensor
    returned: torch.Tensor | None = None
    length: int = 0

    def __post_init__(self) -> None:
        _OWNERS[_memory(self.buffer)] = self


_OWNERS: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
"""Every buffer that is held, of all models and sessions, by its memory."""


def _held(buffer: torch.Tensor) -> Held:
    """What is known of a buffer; models that share one share this too."""
    owner = _OWNERS.get(_memory(buffer))
    return owner if owner is not None and owner.buffer is buffer else Held(buffer)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(slots=True)
class _Slot:
    """One cache of a program: what its arguments must be, and where it is held."""

    spec: GrowingCache
    expected: Expected
    held: Held


Foreign = list[tuple[_Slot, torch.Tensor]]


class GrowingCaches:
    """The caches of one compiled model. Like all state they serve one call at a time.

    Args:
        program: the symbolic program.
        state: source name -> buffer, those of the caches among others.
        fetch: brings a buffer up to date that a device keeps a copy of.
    """

    def __init__(
        self, program: Program, state: Mapping[str, torch.Tensor], fetch: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        dims = {dim.name: dim for dim in program.dimensions}
        self._fetch = fetch
        self._slots: list[_Slot] = []
        self._grown: dict[str, Size] = {cache.grown: size_function(cache.grown) for cache in program.calling.caches}
        self._markers: dict[int, tuple[str, int, torch.Tensor]] = {}
        for cache in program.calling.caches:
            buffer = state[cache.state]
            sizes: list[Any] = list(buffer.shape)
            sizes[cache.dim] = dims[cache.dimension]
            path = program.calling.paths[cache.argument]
            expected = Expected(cache.argument, path, buffer.dtype, buffer.device, sizes)
            self._slots.append(_Slot(cache, expected, _held(buffer)))
            if all(name != cache.dimension for name, _, _ in self._markers.values()):
                self._markers[cache.argument] = cache.dimension, cache.dim, marker_of(buffer, cache.dim)

    def take(self, leaves: Sequence[Any], prologue: Prologue) -> tuple[list[Any], Foreign]:
        """Looks at the caches of a call.

        Args:
            leaves: of the call's arguments.
            prologue: checks what the last call did not return.

        Returns:
            The leaves with sizes in the place of caches, and the caches that must be copied.

        Raises:
            InputError, ShapeError: a cache is not what the model was compiled for.
            StateError: it is an earlier view of the state, which may have been overwritten.
        """
        sizes: dict[str, int] = {}
        foreign: Foreign = []
        replaced = list(leaves)
        for slot in self._slots:
            name, held, given = slot.spec.dimension, slot.held, leaves[slot.spec.argument]
            if given is held.returned and given is not None:
                if sizes.setdefault(name, held.length) != held.length:
                    raise _uneven(slot, held.length, sizes[name])
            else:
                prologue.check(slot.expected, given, sizes)
                _refuse_view(slot, given)
                foreign.append((slot, given))
        for place, (name, dim, marker) in self._markers.items():
            replaced[place] = marker.narrow(dim, 0, sizes[name])
        return replaced, foreign

    @contextmanager
    def holding(self, foreign: Foreign, sizes: Mapping[str, int]) -> Iterator[dict[int, torch.Tensor]]:
        """Around a replay: copies caches in before it; if it raises, the buffers are as they were.

        Args:
            foreign: what to copy.
            sizes: dimension name -> logical size.

        Yields:
            Output leaf -> the grown cache.
        """
        grown = {text: size(sizes) for text, size in self._grown.items()}
        lengths = [grown[slot.spec.grown] for slot in self._slots]
        saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        try:
            for slot, given in foreign:
                saved[slot.spec.argument] = self._copy_in(slot, given, grown[slot.spec.grown])
            views = {
                slot.spec.result: slot.held.buffer.narrow(slot.spec.dim, 0, length)
                for slot, length in zip(self._slots, lengths, strict=True)
            }
            yield views
        except BaseException:
            for slot, length in zip(self._slots, lengths, strict=True):
                self._undo(slot, saved.get(slot.spec.argument), length)
            raise
        for slot, length in zip(self._slots, lengths, strict=True):
            self._fetch(slot.held.buffer)
            slot.held.returned, slot.held.length = views[slot.spec.result], length

    @torch.no_grad()
    def _copy_in(self, slot: _Slot, given: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies a cache into its buffer and clears what lies behind it; returns all rows that a call may change, and a copy."""
        dim, rows, buffer = slot.spec.dim, given.shape[slot.spec.dim], self._fetch(slot.held.buffer)
        touched = buffer.narrow(dim, 0, max(length, slot.held.length))
        old = touched.clone()
        touched.narrow(dim, 0, rows).copy_(given)
        touched.narrow(dim, rows, touched.shape[dim] - rows).zero_()
        return touched, old

    @torch.no_grad()
    def _undo(self, slot: _Slot, saved: tuple[torch.Tensor, torch.Tensor] | None, length: int) -> None:
        """Brings a buffer back to what it was before a call, which may have written new rows."""
        self._fetch(slot.held.buffer)
        if saved is not None:
            saved[0].copy_(saved[1])
        elif length > slot.held.length:
            slot.held.buffer.narrow(slot.spec.dim, slot.held.length, length - slot.held.length).zero_()


def _uneven(slot: _Slot, length: int, known: int) -> ShapeError:
    return ShapeError(
        f"{slot.expected.path} has {length} rows, but another cache has {known}",
        where=Where(stage="the call"),
        hint="these sizes were declared equal",
    )


def _refuse_view(slot: _Slot, given: torch.Tensor) -> None:
    """Refuses a view of a buffer, of this model or of another, that is not what its last call returned.

    Raises:
        StateError: its rows may not be those that it was returned with.
    """
    owner = _OWNERS.get(_memory(given)) if given.numel() else None
    if owner is not None and given is not owner.returned:
        raise StateError(
            f"argument {slot.expected.path} is a view of a compiled model's state, and not the one that its last call "
            "returned: its rows may have been overwritten",
            where=Where(stage="the call"),
            hint="pass on what the last call returned as it is, or keep a copy of what you go back to: cache.clone(), "
            "taken before the next call",
        )
