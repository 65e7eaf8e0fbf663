"""Capture, mending: what one trip of a loop does, so that two trips can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from gaudicc.capture.mend.internals import SYMBOLIC, storage_of, unbacked_symbols
from gaudicc.capture.mend.outcomes import here
from gaudicc.errors import DynamicControlFlowError, Where

if TYPE_CHECKING:
    from gaudicc.capture.mend.trip_index import Row

_LITERALS = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Recorder:
    """The torch calls of one trip, in order, with operands named by where they come from.

    Args:
        carried: what the trip is handed by the one before.
        numbers: tensors that hold the number of the trip, and what is computed of it before the trip begins.
        number: the number of the trip, where it is known as one.
    """

    def __init__(
        self, carried: list[torch.Tensor], numbers: list[torch.Tensor], number: torch.SymInt | None = None
    ) -> None:
        self._alive: list[Any] = [*carried, *numbers]
        self._names: dict[int, Any] = {id(tensor): ("given", i) for i, tensor in enumerate(self._alive)}
        self._made = {storage_of(tensor) for tensor in self._alive}
        self._symbols = {} if number is None else {str(number.node.expr): "trip"}
        self._calls: list[tuple[str, Any]] = []
        self._written: dict[int, torch.Tensor] = {}
        self.rows: list[Row] = []

    def call(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Notes a call; returns its arguments, positional and by keyword."""
        self._calls.append((name, self._describe((args, kwargs))))
        return args, kwargs

    def result(self, args: Any, value: Any, written: list[torch.Tensor]) -> None:
        """Notes what a call gave, and the tensors that it wrote to."""
        known = {storage_of(tensor) for tensor in tensors_in(args)}
        for tensor in tensors_in(value):
            if id(tensor) not in self._names:
                self._names[id(tensor)] = ("made", len(self._alive))
            self._alive.append(tensor)
            if storage_of(tensor) not in known:
                self._made.add(storage_of(tensor))
        for tensor in written:
            self._written.setdefault(storage_of(tensor), tensor)

    def written_outside(self, reachable: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors around the loop that the trip wrote to, each storage once."""
        found = []
        for storage in self._written:
            if storage in self._made:
                continue
            owners = [tensor for tensor in reachable if storage_of(tensor) == storage]
            whole = [tensor for tensor in owners if tensor._base is None]
            if not whole and len({id(tensor) for tensor in owners}) != 1:
                _refuse()
            found.append((whole or owners)[0])
        return found

    def refuse_writes_outside(self, carried: list[torch.Tensor]) -> None:
        """Refuses writes to tensors that are not carried."""
        known = {storage_of(tensor) for tensor in carried} | self._made
        if any(storage not in known for storage in self._written):
            _refuse()

    def shared(
        self, kept: list[torch.Tensor], written: list[torch.Tensor], entry: list[torch.Tensor]
    ) -> tuple[set[int], list[int]]:
        """What a trip hands on or appends and others see too, where eager PyTorch would show a later write in both.

        Returns:
            The storages around the loop that kept tensors are parts of, and which of the kept tensors share with another.

        Raises:
            DynamicControlFlowError: the trips themselves write to them.
        """
        bases = {storage_of(row.rows): storage_of(row.base) for row in self.rows}
        own = [storage_of(tensor) for tensor in kept]
        for i, storage in enumerate(own):
            while storage in bases:
                own[i] = storage = bases[storage]
        found = {storage for storage in own if storage not in self._made}
        if any(storage_of(tensor) in found for tensor in written):
            raise DynamicControlFlowError(
                "a loop over a dynamic size keeps a tensor that it goes on to change in place",
                where=Where(source=here()),
                hint="keep a copy: .clone()",
            )
        passed_on = [storage_of(tensor) for tensor in entry]
        return found, [i for i, storage in enumerate(own) if own.count(storage) > 1 or storage in passed_on]

    def difference(self, other: Recorder) -> str | None:
        """What the other trip does otherwise, or None."""
        for mine, theirs in zip(self._calls, other._calls, strict=False):
            if mine != theirs:
                return f"{mine[0]} there is {theirs[0]}" if mine[0] != theirs[0] else f"{mine[0]} on other operands"
        return None if len(self._calls) == len(other._calls) else "it makes more calls in one of them"

    def _describe(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self._alive.append(value)
            return self._names.get(id(value), ("outside", id(value)))
        if isinstance(value, SYMBOLIC):
            names = {
                str(s): self._symbols.setdefault(str(s), f"n{len(self._symbols)}") for s in unbacked_symbols(value)
            }
            return "size", str(value.node.expr.xreplace({s: type(s)(names[str(s)]) for s in unbacked_symbols(value)}))
        if isinstance(value, (list, tuple)):
            return tuple(self._describe(item) for item in value)
        if isinstance(value, dict):
            return tuple((str(key), self._describe(item)) for key, item in value.items())
        if isinstance(value, slice):
            return "slice", self._describe([value.start, value.stop, value.step])
        if isinstance(value, _LITERALS):
            return type(value).__name__, repr(value)
        return type(value).__name__


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a value, through lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _refuse() -> NoReturn:
    raise DynamicControlFlowError(
        "a loop over a dynamic size writes to a tensor through a view of it, and the whole of it is out of reach",
        where=Where(source=here()),
        hint="write to the whole tensor, or collect the rows in a list",
    )
