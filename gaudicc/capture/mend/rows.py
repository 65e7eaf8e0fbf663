"""Capture, mending: lists that a loop over a dynamic size filled."""

from __future__ import annotations

from typing import Any

import torch

from gaudicc.capture.fixed_sizes import holds_here
from gaudicc.capture.mend.context import active
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.capture.mend.values import Maybe, Rows, refuse_partial


def join_rows(name: str, items: list[Any], dim: int) -> torch.Tensor:
    """`torch.stack` or `torch.cat` of a list, some items of which stand for one tensor of each trip."""
    if name not in ("stack", "cat", "concat", "concatenate") or any(type(item) is Maybe for item in items):
        refuse_partial(name)
    _refuse_empty(name, items)
    parts = [item.value if isinstance(item, Rows) else item.unsqueeze(0) for item in items]
    if name == "stack":
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _laid_out(whole.movedim(0, dim))
    dim = dim % (parts[0].dim() - 1)
    return joined(parts, dim)


def _refuse_empty(name: str, items: list[Any]) -> None:
    """Raises when the program runs what torch raises of an empty list, where the loop may have made no trip."""
    context = active()
    trips = [item.value.shape[0] for item in items if isinstance(item, Rows)]
    if context is None or len(trips) < len(items) or any(holds_here(count >= 1) for count in trips):
        return
    message = f"{name} expects a non-empty TensorList" if name == "stack" else (
        f"torch.{name}(): expected a non-empty list of Tensors")  # fmt: skip
    fail(fresh_test(context.numbers.tensor(sum(trips)).eq(0)), RuntimeError(message))


def joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Stacked tensors, each `[count, ...]`, joined along one of their dims."""
    flat = [_laid_out(part.movedim(0, dim)).flatten(dim, dim + 1) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim)


def _laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """A copy without gaps; `contiguous` would decide on sizes whether it needs one."""
    return tensor.clone(memory_format=torch.contiguous_format)


def length_of(items: list[Any]) -> Any:
    """`len` of such a list."""
    return sum(item.value.shape[0] if isinstance(item, Rows) else 1 for item in items)


def last_of(items: list[Any], index: Any) -> Any:
    """`items[-1]` where the last trip made it."""
    last = items[-1]
    if not isinstance(index, int) or index != -1:
        refuse_partial("an index other than -1")
    return last.value[-1] if isinstance(last, Rows) else last
