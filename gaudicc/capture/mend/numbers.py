"""Capture, mending: Python numbers whose value is known only at run time.

A number that depends on data is a symbolic number of torch, so that every torch function takes it with the type
promotion of a Python number. This table remembers the 0-d tensor each came from, so that predicates stay tensors.
"""

from __future__ import annotations

import torch

from gaudicc.capture.mend.internals import Number

KINDS = {
    bool: torch.bool, int: torch.int64, float: torch.float64,
    torch.SymBool: torch.bool, torch.SymInt: torch.int64, torch.SymFloat: torch.float64,
}  # fmt: skip
PLAIN = {torch.bool: bool, torch.int64: int, torch.float64: float}


class Numbers:
    """Two-way table between symbolic numbers and the 0-d tensors that hold them."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[Number, torch.Tensor, int]] = {}
        self._names: set[str] = set()
        self.reading = False  # the item() that runs now is this table's own

    def remember(self, number: Number, tensor: torch.Tensor) -> None:
        """Note that `number` was read from `tensor` (0-d, of the number's own dtype)."""
        node = getattr(number, "node", None)
        if node is not None:
            self._tensors[id(node)] = (number, tensor, tensor._version)
            self._names |= {str(symbol) for symbol in node.expr.free_symbols}

    def was_read(self, size: torch.SymInt | torch.SymFloat | torch.SymBool) -> bool:
        """Whether a size is computed from numbers read from tensors (not from the shape of an existing tensor)."""
        return any(str(symbol) in self._names for symbol in size.node.expr.free_symbols)

    def tensor(self, number: Number) -> torch.Tensor:
        """The 0-d tensor that holds a number: int64, float64 or bool."""
        node = getattr(number, "node", None)
        _, known, version = self._tensors.get(id(node), (None, None, -1))
        if known is not None and known._version == version:
            return known
        if isinstance(number, torch.SymBool):
            return torch.scalar_tensor(torch.sym_ite(number, 1, 0), dtype=torch.int64).ne(0)
        return torch.scalar_tensor(number, dtype=KINDS[type(number)])  # type: ignore[arg-type]

    def read(self, tensor: torch.Tensor) -> Number:
        """The number in a 0-d tensor of dtype bool, int64 or float64."""
        self.reading = True
        try:
            number: Number = tensor.item()
        finally:
            self.reading = False
        self.remember(number, tensor)
        return number
