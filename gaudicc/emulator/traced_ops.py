"""What torch.compile needs of ops that it does not know: forms of results, and functional twins of the vendor's in-place ops.

On a Gaudi the bridge registers the same: HabanaAI/gaudi-pytorch-bridge 1.19.0, `dynamo/_custom_op_meta_registrations.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

_LIBRARIES: list[Library] = []
_TWINS = {"kv_reorder_": "kv_reorder", "in_place_interleave_": "in_place_interleave"}


@cache
def register() -> None:
    """Teach torch, once per process; where a later torch knows a form already, its own stays."""
    library = Library("aten", "IMPL")
    for name, form in _FORMS.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, form, "Meta")
    _LIBRARIES.append(library)
    for name, twin in _TWINS.items():
        _functional(getattr(torch.ops.hpu, name).default, getattr(torch.ops.hpu, twin).default)


@contextmanager
def as_the_release_traces() -> Iterator[None]:
    """A block in which `one_hot` is traced as by release 1.19's PyTorch; a later one asserts on the host that classes fit."""
    op, key = torch.ops.aten.one_hot.default, torch._C.DispatchKey.CompositeImplicitAutograd
    before = op.py_kernels.pop(key, None)
    op.py_impl(key)(_one_hot)
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        del op.py_kernels[key]
        if before is not None:
            op.py_kernels[key] = before
        op._dispatch_cache.clear()


def _one_hot(classes: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise RuntimeError("one_hot: the number of classes must be given where a graph is traced")
    numbers = torch.arange(num_classes, dtype=classes.dtype, device=classes.device)
    return torch.eq(classes.unsqueeze(-1), numbers).to(torch.int64)


def _functional(in_place: Any, twin: Any) -> None:
    """Where a graph is made functional, the twin stands in, and its result takes the place of the first operand."""

    def run(context: Any, first: Tensor, *rest: Any) -> Tensor:
        with context.redispatch_to_next():
            result = twin(*context.unwrap_tensors((first, *rest)))
        context.replace(first, result)
        context.commit_update(first)
        context.sync(first)
        return first

    in_place.py_functionalize_impl(run)


def _aminmax(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.new_empty(()), values.new_empty(())


def _aminmax_dim(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    form = values.sum(dim, keepdim, dtype=values.dtype) if values.dim() else values
    return torch.empty_like(form), torch.empty_like(form)


def _sum(left: Tensor, right: Tensor | float, alpha: float = 1) -> Tensor:
    return left + right


_FORMS: dict[str, Any] = {
    "_aminmax": _aminmax, "_aminmax.dim": _aminmax_dim, "_add_relu.Tensor": _sum, "_add_relu.Scalar": _sum,
}  # fmt: skip
