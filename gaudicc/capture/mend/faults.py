"""Capture, mending: arguments with which an operation cannot fail where it is not meant to run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from gaudicc.capture.mend.context import Context
from gaudicc.capture.mend.internals import is_data_dependent, symbol_name
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.size_tensors import safe_number
from gaudicc.capture.mend.trip_index import places
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.capture.mend.values import replace

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_INDEXING = {
    "__getitem__", "__setitem__", "index_select", "index_add", "index_add_", "index_copy", "index_copy_", "index_fill",
    "index_fill_", "index_put", "index_put_", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_",
    "scatter_reduce", "scatter_reduce_", "take", "take_along_dim", "select", "narrow", "embedding", "one_hot",
    "bincount", "repeat_interleave", "cross_entropy", "nll_loss", "put_", "embedding_bag", "unravel_index",
}  # fmt: skip
_DATA_FIRST = _INDEXING - {"embedding", "one_hot", "bincount", "embedding_bag", "unravel_index"}
_DIVIDING = {
    "div", "div_", "divide", "floor_divide", "floor_divide_", "remainder", "remainder_", "fmod", "fmod_", "__floordiv__",
    "__mod__", "__ifloordiv__", "__imod__", "__rfloordiv__", "__rmod__", "floordiv", "mod",
}  # fmt: skip
_NEED_ITEMS = {"max", "min", "amax", "amin", "aminmax", "argmax", "argmin", "median", "nanmedian", "mode"}
HARMLESS = {
    "add", "add_", "sub", "sub_", "mul", "mul_", "truediv", "where", "clone", "eq", "ne", "lt", "le", "gt", "ge",
    "__add__", "__sub__", "__mul__", "__truediv__", "__radd__", "__rsub__", "__rmul__", "__rtruediv__", "__get__",
    "__iadd__", "__isub__", "__imul__", "__itruediv__", "clamp", "maximum", "minimum", "item", "scalar_tensor",
    "full_like", "logical_and", "logical_or", "logical_not", "dim", "size", "fill_", "copy_", "pow", "__pow__", "neg",
}  # fmt: skip
"""Operations that no value of an operand can make fail."""


def safe_arguments(
    context: Context, pred: torch.Tensor, func: Any, name: str, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    """The arguments where `pred` holds, and harmless ones elsewhere.

    Sizes and indices that were read from tensors become 0, integer index tensors 0, integer divisors 1.
    """

    def number(leaf: Any) -> Any:
        return safe_number(context, leaf) if isinstance(leaf, torch.SymInt) else leaf

    def index(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dtype in _INTEGERS:
            return torch.where(pred, leaf, torch.zeros_like(leaf))
        return number(leaf)

    if name in ("view", "reshape"):
        args = _inferred(args)
    if name in ("__getitem__", "select"):
        args = (_long_enough(context, pred, args[0], _picked(name, args, kwargs)), *args[1:])
    if name in _INDEXING:
        keep = 1 if name in _DATA_FIRST else 0
        kept = args[:keep]
        if name == "__setitem__":  # the value that is stored is no index
            return (*kept, replace(args[1], index), *args[2:]), kwargs
        return (*kept, *replace(args[keep:], index)), replace(kwargs, index)
    if name in _NEED_ITEMS and args and isinstance(args[0], torch.Tensor):
        return (_not_empty(context, pred, args[0]), *args[1:]), kwargs
    if name in _DIVIDING and len(args) == 2:
        swapped = name.startswith("__r") and name != "__rshift__"
        place = 0 if swapped else 1
        divisor = args[place]
        if isinstance(divisor, torch.Tensor) and divisor.dtype in _INTEGERS:
            safe = torch.where(pred, divisor, torch.ones_like(divisor))
            return (*args[:place], safe, *args[place + 1 :]), kwargs
        return args, kwargs
    return replace(args, number), replace(kwargs, number)


def _inferred(args: Any) -> Any:
    """`x.view(n, -1)` of `n` rows that data chose, with the -1 as a number: torch cannot infer it of no rows."""
    sizes = tuple(args[1]) if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    shapes = (args[0].shape, sizes)
    unknown = [[symbol_name(size) for size in shape if is_data_dependent(size)] for shape in shapes]
    known, rest = (math.prod(size for size in shape if not is_data_dependent(size)) for shape in shapes)
    if not rest or len(unknown[0]) != 1 or unknown[0] != unknown[1] or sizes.count(-1) != 1:
        return args
    rows = next(size for size in args[0].shape if is_data_dependent(size))
    empty = [0 if is_data_dependent(size) else size for size in sizes]
    why = "because the unspecified dimension size -1 can be any value and is ambiguous"
    message = f"cannot reshape tensor of 0 elements into shape {empty} {why}"
    fail(fresh_test(torch.scalar_tensor(rows, dtype=torch.int64).eq(0)), RuntimeError(message))
    return (args[0], *(known // -rest if isinstance(size, int) and size == -1 else size for size in sizes))


def _not_empty(context: Context, pred: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, with one zero more along each dim of unknown size where `pred` does not hold."""
    return _long_enough(context, pred, tensor, dict.fromkeys(range(tensor.dim()), 1))


def _long_enough(context: Context, pred: torch.Tensor, tensor: torch.Tensor, more: Mapping[int, int]) -> torch.Tensor:
    """The tensor, with so many zeros more along dims of unknown size where `pred` does not hold."""
    for dim, count in more.items():
        if is_data_dependent(tensor.shape[dim]):
            shape: list[Any] = list(tensor.shape)
            one: Any = context.numbers.read(torch.logical_not(pred).to(torch.int64))
            shape[dim] = one * count
            tensor = torch.cat([tensor, tensor.new_zeros(shape)], dim)
    return tensor


def _picked(name: str, args: Any, kwargs: Any) -> dict[int, int]:
    """The dims of which a plain number picks an element, and how long they have to be for it."""
    if name == "select":
        pairs = [(args[2], args[1] % args[0].dim())] if len(args) == 3 and not kwargs else []
    else:
        parts, dims = places(args[0], list(args[1]) if isinstance(args[1], tuple) else [args[1]])
        pairs = list(zip(parts, dims, strict=True))
    plain = [(index, dim) for index, dim in pairs if type(index) is int]
    return {dim: index + 1 if index >= 0 else -index for index, dim in plain}
