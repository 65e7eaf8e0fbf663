"""Capture, mending: `one_hot` whose number of classes only data knows."""

from __future__ import annotations

from typing import Any

import torch

from gaudicc.capture.mend.context import Context
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.truth import fresh_test


def counts_classes(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a call is a `one_hot` without a number of classes, of a tensor that has elements."""
    classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
    return (
        name == "one_hot" and classes == -1 and bool(args) and isinstance(args[0].numel(), int) and args[0].numel() > 0
    )


def one_hot(context: Context, classes: torch.Tensor) -> torch.Tensor:
    """The same, by a comparison: one class more than the largest value."""
    fail(fresh_test(classes.min() < 0), RuntimeError("Class values must be non-negative."))
    count: Any = context.numbers.read(classes.max() + 1)
    return classes.unsqueeze(-1).eq(torch.arange(count, device=classes.device)).to(torch.int64)
