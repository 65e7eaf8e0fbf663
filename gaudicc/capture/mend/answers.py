"""Capture, mending: questions about tensors that torch answers with a Python bool: `equal`, `allclose`, `is_nonzero`."""

from __future__ import annotations

from typing import Any

import torch

from gaudicc.capture.mend.context import Context
from gaudicc.capture.mend.internals import known_true, same_sizes, shares_storage
from gaudicc.capture.mend.truth import truth


def asks(name: str, args: Any) -> bool:
    """Whether a call is such a question; of `equal`, whether sizes and values alone decide it."""
    if name == "equal" and len(args) == 2:
        left, right = args
        return left.dtype == right.dtype and (same_sizes(left, right) or _differs(left, right))
    return name in ("is_nonzero", "allclose")


def answer(context: Context, name: str, args: Any, kwargs: Any) -> Any:
    """The answer: where values decide, a number that stays undecided."""
    if name == "equal" and (_differs(*args) or _same_memory(*args)):
        return not _differs(*args)
    if name == "is_nonzero":
        test = truth(args[0])
    else:
        test = truth((torch.eq if name == "equal" else torch.isclose)(*args, **kwargs).all())
    return context.numbers.read(test) if isinstance(test, torch.Tensor) else test


def _differs(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have different shapes in every run."""
    pairs = zip(left.shape, right.shape, strict=False)
    return left.dim() != right.dim() or any(known_true(torch.sym_not(a == b)) for a, b in pairs)


def _same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are the same elements: torch then looks at none of them, not even for NaN."""
    places = [(tensor.storage_offset(), tensor.stride()) for tensor in (left, right)]
    return shares_storage(left, right) and places[0] == places[1]
