"""Capture, mending: which torch calls keep the rows of different pieces apart when they are done to all rows at once.

A rule is given the tensors of one call on a piece of unknown length, so that the dims that are as long as the piece are those
whose size says so. What it may not mix it masks, or refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from gaudicc.capture.mend.internals import SYMBOLIC, same_expression, symbols_of

Action = Callable[[torch.Tensor, Any, Any], tuple[Any, Any]]
"""From which rows belong to one piece, bool `[rows, rows]`, and a call's arguments to those that hide the others."""


class NotApart(Exception):
    """What is done to a piece cannot be done to all pieces at once; the message goes on from "a loop over pieces"."""


_READS = {
    "__get__", "size", "dim", "ndimension", "is_contiguous", "is_floating_point", "is_complex", "stride", "element_size",
    "result_type", "kept",
}  # fmt: skip
_POINTWISE = {
    "add", "sub", "mul", "div", "true_divide", "neg", "pow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "abs",
    "sin", "cos", "tanh", "sigmoid", "relu", "gelu", "silu", "softplus", "erf", "clamp", "where", "lt", "le", "gt", "ge", "eq",
    "ne", "logical_not", "logical_and", "logical_or", "masked_fill", "rsub", "maximum", "minimum", "hardtanh", "leaky_relu",
    "elu", "mish", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__",
    "__neg__", "__pow__", "__rdiv__", "__div__", "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__invert__",
    "__and__", "__or__",
}  # fmt: skip
_COPIES = {"to", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "dropout", "detach"}
_KEEPS_ZEROS = _COPIES | {
    "mul",
    "__mul__",
    "__rmul__",
    "view",
    "reshape",
    "transpose",
    "permute",
    "unsqueeze",
    "expand",
}
_VIEWS = {
    "view", "reshape", "transpose", "permute", "swapaxes", "swapdims", "movedim", "unsqueeze", "squeeze", "expand", "expand_as",
    "flatten", "unflatten", "__getitem__", "select", "narrow", "chunk", "unbind", "cat", "concat", "stack", "split", "t",
}  # fmt: skip
_PRODUCTS = {"matmul", "__matmul__", "bmm"}
_REDUCTIONS = {"sum", "mean", "amax", "amin", "var", "std", "norm", "argmax", "all", "any"}
_NORMS = {"layer_norm", "rms_norm"}


def action_of(name: str, args: Any, kwargs: Any, result: Any, length: torch.SymInt, zeros: set[int]) -> Action | None:
    """What to do to a call so that it keeps pieces apart; None: nothing.

    Args:
        name: of the torch function.
        args: its positional arguments on a piece.
        kwargs: those by keyword.
        result: what it gave.
        length: of the piece.
        zeros: ids of tensors that are zero wherever row and column belong to different pieces; kept up.

    Raises:
        NotApart: it cannot be kept apart.
    """
    given = [args, list(kwargs.values())]
    operands, results = _tensors(given), _tensors(result)
    dims = {id(tensor): _dims(tensor, length) for tensor in [*operands, *results]}
    if name in _READS or not any(dims[id(tensor)] for tensor in operands):
        return None
    if name not in _VIEWS and any(map(_mentions(length), _leaves(given))):
        raise NotApart(f"computes with the length of a piece ({name})")
    if name in _KEEPS_ZEROS and any(id(tensor) in zeros for tensor in operands):
        zeros.update(map(id, results))
    if name in _POINTWISE | _COPIES or (name == "linear" and not _ends_with(operands[0], dims)):
        return None
    if name in _VIEWS:
        _check_view(name, args, operands, results, dims)
        return None
    if name in _NORMS:
        if min(dims[id(operands[0])]) + len(args[1]) > operands[0].dim():
            raise NotApart(f"normalises over a piece ({name})")
        return None
    if name in _REDUCTIONS:
        _check_reduction(name, results, dims, operands[0])
        return None
    if name in _PRODUCTS:
        _check_product(name, operands, dims, zeros)
        return None
    if name == "softmax":
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return _softmax(dim, operands[0], results[0], dims, zeros)
    if name == "scaled_dot_product_attention":
        return _attention(operands, dims)
    raise NotApart(f"calls {name}, of which it is not known that it keeps rows apart")


def _dims(tensor: torch.Tensor, length: torch.SymInt) -> tuple[int, ...]:
    found = tuple(dim for dim, size in enumerate(tensor.shape) if same_expression(size, length))
    if any(_mentions(length)(size) for dim, size in enumerate(tensor.shape) if dim not in found):
        raise NotApart("joins the dim of a piece with another one")
    return found


def _mentions(length: torch.SymInt) -> Callable[[Any], bool]:
    own = symbols_of(length)
    return lambda value: isinstance(value, SYMBOLIC) and bool(symbols_of(value) & own)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, (list, tuple)) else [value]


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor)]


def _ends_with(tensor: torch.Tensor, dims: dict[int, tuple[int, ...]]) -> bool:
    return tensor.dim() - 1 in dims[id(tensor)]


def _check_view(
    name: str,
    positional: Any,
    operands: list[torch.Tensor],
    results: list[torch.Tensor],
    dims: dict[int, tuple[int, ...]],
) -> None:
    """Every row must stay a row: as many dims of the piece as before and, unless these are moved whole, as much around them."""
    if name == "__getitem__" and len(operands) > 1:
        raise NotApart("picks rows by a tensor")
    whole = next(tensor for tensor in operands if dims[id(tensor)])
    for result in results:
        if len(dims[id(result)]) != len(dims[id(whole)]):
            raise NotApart(f"takes the dim of a piece apart ({name})")
        if name in ("view", "reshape", "flatten", "unflatten") and _around(whole, dims) != _around(result, dims):
            raise NotApart(f"moves elements from row to row ({name})")
    if name == "__getitem__":
        index = positional[1] if isinstance(positional[1], tuple) else (positional[1],)
        if any(isinstance(part, slice) and part.step not in (None, 1) for part in index):
            raise NotApart("picks rows by a step")


def _around(tensor: torch.Tensor, dims: dict[int, tuple[int, ...]]) -> list[str]:
    """The products of the sizes before, between and behind the dims of the piece."""
    edges = [-1, *dims[id(tensor)], tensor.dim()]
    return [str(math.prod(tensor.shape[a + 1 : b])) for a, b in pairwise(edges)]


def _check_reduction(
    name: str, results: list[torch.Tensor], dims: dict[int, tuple[int, ...]], operand: torch.Tensor
) -> None:
    if any(len(dims[id(result)]) != len(dims[id(operand)]) for result in results):
        raise NotApart(f"reduces over a piece ({name})")


def _check_product(name: str, operands: list[torch.Tensor], dims: dict[int, tuple[int, ...]], zeros: set[int]) -> None:
    left, right = operands
    joined = max(right.dim() - 2, 0) in dims[id(right)] or _ends_with(left, dims)
    if joined and id(left) not in zeros:
        raise NotApart(f"sums over a piece ({name}) without weights that are zero outside of it")


def _softmax(
    dim: int, operand: torch.Tensor, result: torch.Tensor, dims: dict[int, tuple[int, ...]], zeros: set[int]
) -> Action | None:
    own, rank = dims[id(operand)], operand.dim()
    if dim % rank not in own:
        return None
    if own != (rank - 2, rank - 1) or dim % rank != rank - 1:
        raise NotApart("takes a softmax over a piece")
    zeros.add(id(result))

    def hide(same: torch.Tensor, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return (args[0].masked_fill(same.logical_not(), -math.inf), *args[1:]), kwargs

    return hide


def _attention(operands: list[torch.Tensor], dims: dict[int, tuple[int, ...]]) -> Action:
    if len(operands) != 3 or any(dims[id(tensor)] != (tensor.dim() - 2,) for tensor in operands):
        raise NotApart("attends with a mask of its own, or to other tokens than those of the piece")

    def hide(same: torch.Tensor, args: Any, kwargs: Any) -> tuple[Any, Any]:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        seen = same.tril() if given.pop("is_causal", False) else same
        return (), {**given, "attn_mask": seen}

    return hide
