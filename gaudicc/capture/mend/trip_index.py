"""Capture, mending: tensors read and written at the number of a trip, by ops that take the index as a tensor.

`x[:, t]` is a view in eager PyTorch, here it is a copy of one row; what is written to the copy goes to `x` as well.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import Any

import torch

from gaudicc.capture.mend.context import Context
from gaudicc.capture.mend.internals import (
    SYMBOLIC,
    at_least_zero,
    is_constant,
    is_data_dependent,
    same_sizes_as,
    shares_storage,
    unbacked_symbols,
)
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.size_lists import SizeList
from gaudicc.capture.mend.trip_changes import refuse_loop
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.errors import DynamicControlFlowError, Where

_ARITHMETIC = {
    *(f"__{side}{name}__" for side in ("", "r") for name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv")),
    *(f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "iadd", "isub", "imul", "itruediv")),
    *(f"__{side}{name}__" for side in ("", "r", "i") for name in ("and", "or", "xor")),
    "add", "sub", "rsub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge", "pow",
}  # fmt: skip

_LIKE = {torch.bool: True, torch.int64: 1, torch.float64: 1.0}


@dataclass(frozen=True, slots=True)
class Row:
    """A row picked out of a tensor by the number of a trip: `rows = base.index_select(dim, at)`."""

    rows: torch.Tensor
    base: torch.Tensor
    dim: int
    at: torch.Tensor


def reads_trip(context: Context, value: Any) -> bool:
    """Whether a value is a number that differs from trip to trip: computed from the number of a trip, or read in one."""
    if isinstance(value, slice):
        return any(reads_trip(context, part) for part in (value.start, value.stop))
    return isinstance(value, SYMBOLIC) and context.numbers.was_read(value)


def trip_call(context: Context, name: str, args: Any, kwargs: Any) -> Any:
    """What a call with the number of a trip among its arguments means, as a function of no arguments, or None."""
    if name in ("__getitem__", "__setitem__") and any(map(_is_position, (listed := _listed(args[1])))):
        return lambda: _by_numbers(context, name, args, listed)
    if name == "__getitem__" and any(reads_trip(context, part) for part in _listed(args[1])):
        return lambda: _read(context, args[0], _listed(args[1]))
    if name == "__setitem__" and any(reads_trip(context, part) for part in _listed(args[1])):
        return lambda: _write(context, args[0], _listed(args[1]), args[2])
    if name in ("select", "narrow") and not kwargs and reads_trip(context, args[2]):
        before = [slice(None)] * (args[1] % args[0].dim())
        part = args[2] if name == "select" else slice(args[2], args[2] + args[3])
        return lambda: _read(context, args[0], [*before, part])
    if name in _ARITHMETIC and len(args) >= 2 and any(reads_trip(context, arg) for arg in args[:2]):
        tensor = next((arg for arg in args[:2] if isinstance(arg, torch.Tensor)), None)
        if tensor is not None:
            return lambda: _arithmetic(context, tensor, name, args, kwargs)
    return None


def holds_numbers(index: Any) -> bool:
    """Whether an index has a list in it of numbers that data decides, which torch would read, or one as long as sizes say."""
    return any(isinstance(part, SizeList) or _holds_undecided(part) for part in _listed(index))


def with_tensors(context: Context, index: Any) -> Any:
    """The same index, such lists as tensors."""

    def tensor(part: Any) -> Any:
        if isinstance(part, SizeList):
            return part.tensor()
        if not _holds_undecided(part):
            return part
        if any(n is None for n in part):
            raise DynamicControlFlowError(
                "an index is a list of a number that data decides and a None",
                where=Where(source=here()),
                hint="use the index only where it is not None, in the branch that sets it",
            )
        return torch.stack([n if isinstance(n, torch.Tensor) else context.numbers.tensor(n) for n in part])

    parts = tuple(map(tensor, _listed(index)))
    return parts if isinstance(index, tuple) else parts[0]


def _holds_undecided(part: Any) -> bool:
    return isinstance(part, list) and any(map(_is_undecided, part))


def _is_undecided(number: Any) -> bool:
    return _is_position(number) or (isinstance(number, torch.SymInt) and is_data_dependent(number))


def write_through(context: Context, written: list[torch.Tensor]) -> None:
    """Keeps rows and what they were picked from equal after a write to one of them."""
    for row in list(context.rows_of):
        if any(shares_storage(tensor, row.rows) for tensor in written):
            row.base.index_copy_(row.dim, row.at, row.rows)
        elif any(shares_storage(tensor, row.base) for tensor in written):
            row.rows.copy_(row.base.index_select(row.dim, row.at))


def _by_numbers(context: Context, name: str, args: Any, listed: list[Any]) -> Any:
    """`tensor[i]` or `tensor[i] = value`, positions as numbers."""
    index = tuple(context.numbers.read(part.to(torch.int64)) if _is_position(part) else part for part in listed)
    return operator.getitem(args[0], index) if name == "__getitem__" else operator.setitem(args[0], index, args[2])


def _is_position(part: Any) -> bool:
    """Whether a part of an index is a tensor that stands for one number, which torch would read."""
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8)
    return isinstance(part, torch.Tensor) and part.dim() == 0 and part.dtype in kinds and not is_constant(part)


def _listed(index: Any) -> list[Any]:
    return list(index) if isinstance(index, tuple) else [index]


def places(tensor: torch.Tensor, parts: list[Any]) -> tuple[list[Any], list[int]]:
    """The parts of an index without its ellipsis, and the dim that each of them begins at."""
    widths = [_width(part) for part in parts]
    whole = [slice(None)] * (tensor.dim() - sum(widths))
    full = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
    parts = [*parts, *whole] if full is None else [*parts[:full], *whole, *parts[full + 1 :]]
    return parts, [0, *itertools.accumulate(map(_width, parts))][:-1]


def _width(part: Any) -> int:
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.dim() if isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) else 1


def _read(context: Context, tensor: torch.Tensor, parts: list[Any]) -> Any:
    """`tensor[index]`, entry by entry: one row of each dim, which a plain index then drops."""
    parts, dims = places(tensor, parts)
    for place, dim in enumerate(dims):
        if reads_trip(context, parts[place]):
            at, parts[place] = _positions(context, tensor, dim, parts[place])
            rows = tensor.index_select(dim, at)
            context.rows_of.append(Row(rows, tensor, dim, at))
            tensor = rows
    return tensor[tuple(parts)]


def _write(context: Context, tensor: torch.Tensor, parts: list[Any], value: Any) -> None:
    """`tensor[index] = value`: the rows of the first such entry are read, changed and put back."""
    parts, dims = places(tensor, parts)
    place = next(i for i, part in enumerate(parts) if reads_trip(context, part))
    dim = dims[place]
    at, parts[place] = _positions(context, tensor, dim, parts[place])
    rows = _whole_row(tensor, dim, parts, value)
    if rows is None:
        rows = tensor.index_select(dim, at)
        rows[tuple(parts)] = value
    tensor.index_copy_(dim, at, rows)


def _whole_row(tensor: torch.Tensor, dim: int, parts: list[Any], value: Any) -> torch.Tensor | None:
    """The row that `tensor[:, t] = value` stores, where it stores the whole of one; otherwise None."""
    others = [part for i, part in enumerate(parts) if i != dim]
    if (
        not all(isinstance(part, slice) and part == slice(None) for part in others)
        or parts[dim] != 0
        or len(parts) != tensor.dim()
    ):
        return None
    shape = [size for i, size in enumerate(tensor.shape) if i != dim]
    if not isinstance(value, torch.Tensor):
        return tensor.new_full((*shape[:dim], 1, *shape[dim:]), value)
    if value.dim() > len(shape):
        return None
    row: torch.Tensor = value if value.dtype == tensor.dtype else value.to(tensor.dtype)
    return (row if same_sizes_as(row, shape) else row.expand(shape)).unsqueeze(dim)


def _positions(context: Context, tensor: torch.Tensor, dim: int, part: Any) -> tuple[torch.Tensor, Any]:
    """Which rows an entry picks, as an index tensor, and the entry on those rows."""
    size = tensor.shape[dim]
    if not isinstance(part, slice):
        return _in_range(context, tensor, part, part, size).reshape(1), 0
    count = None if None in (part.start, part.stop) or part.step not in (None, 1) else part.stop - part.start
    if isinstance(count, torch.SymInt):
        count = int(count.node.expr) if count.node.expr.is_Integer else None
    if count is None or count < 1:
        refuse_loop("slices a tensor to a length that differs from trip to trip", "mask the whole tensor instead")
    first = _in_range(context, tensor, part.start, part.stop - 1, size, wraps=False)
    return first + torch.arange(count, device=tensor.device), slice(None)


def _in_range(
    context: Context, tensor: torch.Tensor, low: Any, high: Any, size: Any, *, wraps: bool = True
) -> torch.Tensor:
    """The position as a 0-d tensor, counted from the front."""
    at = _on_device(context, low, tensor)
    below, above = _least(context, low), _least(context, size - 1 - high)
    if not above or not (below or (wraps and _least(context, low + size))):
        if wraps and not any(str(symbol) in context.trip_counts for symbol in unbacked_symbols(low)):
            return _checked(context, tensor, at, size)
        if not wraps:
            hint = "pad the dim to a multiple of the step, and loop over its windows: x.unflatten(dim, (-1, step))"
            refuse_loop("slices a tensor past its end in a trip, so that one trip is shorter than the others", hint)
        refuse_loop("indexes a tensor where it may have no element", "loop over the size of that very dim")
    return at if below else torch.where(at < 0, at + _on_device(context, size, tensor), at)


def _checked(context: Context, tensor: torch.Tensor, at: torch.Tensor, size: Any) -> torch.Tensor:
    """A position counted from the front; where there is no such element, what eager PyTorch raises is flagged."""
    length = _on_device(context, size, tensor)
    inside = torch.logical_and(at >= -length, at < length)
    fail(fresh_test(torch.logical_not(inside)), IndexError(f"index is out of bounds for a dimension of size {size}"))
    return torch.where(inside, torch.where(at < 0, at + length, at), torch.zeros_like(at))


def _on_device(context: Context, number: Any, tensor: torch.Tensor) -> torch.Tensor:
    held = context.numbers.tensor(number)
    return held if held.device == tensor.device else held.to(tensor.device)


def _least(context: Context, number: Any) -> bool:
    """Whether a number cannot be negative in any trip: it is linear in the numbers of trips, so the ends decide."""
    return at_least_zero(number, {name: (items.span, abs(items.step)) for name, items in context.trip_counts.items()})


def _arithmetic(context: Context, tensor: torch.Tensor, name: str, args: Any, kwargs: Any) -> Any:
    """A number in arithmetic with a tensor: a 0-d tensor that changes no dtype otherwise than a Python number does."""

    def value(arg: Any) -> Any:
        if not reads_trip(context, arg):
            return arg
        held = _on_device(context, arg, tensor)
        dtype = torch.result_type(tensor, _LIKE[held.dtype])
        return held if torch.result_type(tensor, held) == dtype else held.to(dtype)

    first, *rest = map(value, args)
    if name in ("rsub",):
        return torch.sub(rest[0], first)
    if isinstance(args[0], torch.Tensor):
        return getattr(first, name)(*rest, **kwargs)
    return getattr(torch, name)(first, *rest, **kwargs)
