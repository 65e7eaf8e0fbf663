"""Capture, beside export: the calls that one layer makes into torch, noted, compared, and answered from notes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_IN_PLACE = re.compile(r"\w*[^_]_|__i(?!nvert|nt|ndex)\w+__|__set\w*__|__delete__")
_READS = frozenset({"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__"})


class _Size:
    """A symbolic size, to be compared by what is known of it by then: tracing finds out that symbols are equal as it goes."""

    def __init__(self, size: Any) -> None:
        self._size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Size) and str(self._size) == str(other._size)

    __hash__ = None  # type: ignore[assignment]  # what is equal may change


class Same:
    """Any other object, to be compared by identity; held, so that no later one gets its id."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]  # nothing is looked up by it


@dataclass
class Notes:
    """What one layer did.

    Attributes:
        operands: tensors that it read from outside, in the order of first use.
        made: the tensors that its calls gave, in order.
        calls: every call: the function, its arguments with tensors by number, and what it gave.
        results: those of `made` that are read outside, in order.
        repeatable: no call read data or wrote to a tensor.
        numbers: id of a tensor -> whether it is an operand or made, and which.
    """

    operands: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    calls: list[tuple[Any, Any, Any]] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    repeatable: bool = True
    numbers: dict[int, tuple[str, int]] = field(default_factory=dict)

    def describe(self, value: Any) -> Any:
        """An argument with tensors by number, to be compared; unknown tensors become operands."""
        if isinstance(value, Tensor):
            return self.numbers.get(id(value)) or self._outside(value)
        if isinstance(value, _SYMBOLS):
            return _Size(value)
        if isinstance(value, (tuple, list)):
            return type(value), *map(self.describe, value)
        if isinstance(value, dict):
            return dict, *((key, self.describe(item)) for key, item in value.items())
        if isinstance(value, slice):
            return slice, *map(self.describe, (value.start, value.stop, value.step))
        if isinstance(value, (int, float, complex, str, type(None), torch.dtype, torch.device, torch.memory_format)):
            return type(value), str(value)
        return Same(value)

    def _outside(self, tensor: Tensor) -> tuple[str, int]:
        self.numbers[id(tensor)] = ("operand", len(self.operands))
        self.operands.append(tensor)
        return self.numbers[id(tensor)]

    def note(self, function: Any, arguments: Any, output: Any) -> None:
        """Adds a call and what it gave."""
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf) not in self.numbers:
                self.numbers[id(leaf)] = ("made", len(self.made))
                self.made.append(leaf)
        self.calls.append((function, arguments, output))

    def made_in(self, value: Any) -> list[Tensor]:
        """The tensors of a value that a call gave, each once, in the order they were made."""
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        found = {self.numbers[id(leaf)]: leaf for leaf in leaves if self.numbers.get(id(leaf), "?")[0] == "made"}
        return [found[number] for number in sorted(found)]


class LayerCalls(TorchFunctionMode):
    """One run of a layer: its calls are answered from notes while they are those of a known kind, then traced.

    Args:
        kinds: the known kinds.

    Attributes:
        kinds: those whose calls are the same so far; empty: traced.
        notes: of this run. While it is answered, tensors of a kind stand for this layer's.
    """

    def __init__(self, kinds: Sequence[Notes]) -> None:
        super().__init__()
        self.kinds, self.notes = list(kinds), Notes()
        self._done: list[tuple[Any, Any, Any]] = []
        self._traced: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        if self.kinds:
            known, at = len(self.notes.operands), len(self.notes.calls)
            arguments = self.notes.describe(given)
            same = [kind for kind in self.kinds if self._fits(kind, at, known, func, arguments)]
            if same:
                self.kinds = same
                output = pytree.tree_map(partial(self._mine, same[0]), same[0].calls[at][2])
                self.notes.note(func, arguments, output)
                self._done.append((func, given, output))
                return output
            self.trace_all()
        return self._trace(func, given)

    def _fits(self, kind: Notes, at: int, known: int, function: Any, arguments: Any) -> bool:
        if at == len(kind.calls) or kind.calls[at][:2] != (function, arguments):
            return False
        mine = self.notes.operands[known:]
        return list(map(_type, mine)) == list(map(_type, kind.operands[known : known + len(mine)]))

    def _mine(self, kind: Notes, leaf: Any) -> Any:
        number = kind.numbers.get(id(leaf)) if isinstance(leaf, Tensor) else None
        return self.notes.operands[number[1]] if number is not None and number[0] == "operand" else leaf

    def trace_all(self) -> None:
        """Makes the calls that were answered so far: the layer is of no known kind."""
        self.kinds, self.notes = [], Notes()
        for function, given, answer in self._done:
            output = self._trace(function, given)
            for old, new in zip(pytree.tree_leaves(answer), pytree.tree_leaves(output), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    self._traced[id(old)] = new

    def _trace(self, function: Any, given: Any) -> Any:
        args, kwargs = pytree.tree_map(self.actual, given)
        arguments = self.notes.describe((args, kwargs))
        output = function(*args, **kwargs)
        self.notes.repeatable &= not (_writes(function, kwargs) or _depends_on_data(output))
        self.notes.note(function, arguments, output)
        return output

    def actual(self, leaf: Any) -> Any:
        """This layer's own tensor, for one that stood for it."""
        return self._traced.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf


def _type(tensor: Tensor) -> Any:
    return str(tuple(tensor.shape)), str(tensor.stride()), tensor.dtype, tensor.device, type(tensor)


def _writes(function: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call writes to a tensor, or reads its data."""
    name = getattr(function, "__name__", "")
    if _IN_PLACE.fullmatch(name) or name in _READS or "out" in kwargs or kwargs.get("inplace"):
        return True
    packet = function.overloadpacket if isinstance(function, torch._ops.OpOverload) else function
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return isinstance(function, torch._ops.HigherOrderOperator)
    return any(getattr(packet, overload)._schema.is_mutable for overload in packet.overloads())


def _depends_on_data(output: Any) -> bool:
    """Whether a size of what a call gave depends on the values of a tensor."""
    leaves = pytree.tree_leaves(output)
    sizes = [size for leaf in leaves for size in (leaf.shape if isinstance(leaf, Tensor) else (leaf,))]
    return any(isinstance(size, _SYMBOLS) and size.node.hint is None for size in sizes)
