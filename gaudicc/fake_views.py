"""Views of fake tensors as they are laid out on a device, and `reshape` in the form that is right for all sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch._C import DispatchKey
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols


@contextmanager
def views_as_laid_out() -> Iterator[None]:
    """Inside, a view of a fake tensor steps over dims of one element as a view of a real one does.

    Such a step reaches nothing, but what an elementwise op makes of the tensor is laid out by it, and that in turn may then be
    viewed or not. PyTorch gives fake tensors other steps, and keeps the results of calls.
    """
    FakeTensorMode.cache_clear()
    kernels: dict[Any, Callable[..., Any]] = fake_impls.op_implementations_dict
    views = {op: partial(_viewed, kernels[op]) for op in _VIEWS if op in kernels}
    with patch.dict(kernels, views):
        yield


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def _viewed(kernel: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    result, base = kernel(*args, **kwargs), args[2]
    sizes = [*map(_known, result.shape)]
    if 1 not in sizes or 0 in sizes:
        return result
    strides, step = list(result.stride()), base.stride()[-1] if base.dim() else 1
    for dim in reversed(range(result.dim())):
        if sizes[dim] == 1:
            strides[dim] = step
        step = result.shape[dim] * strides[dim]
    return result.as_strided(result.shape, strides)


def _known(size: int | torch.SymInt) -> int | None:
    """A size as a number, if it is one by now."""
    return size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size


@contextmanager
def reshapes_for_all_sizes() -> Iterator[None]:
    """Inside, `reshape` and `flatten` are views where they are so for all sizes, else copies, whatever the example says."""
    reshape, flatten = torch.ops.aten.reshape.default, torch.ops.aten.flatten.using_ints
    with _kernel(reshape, _reshaped), _kernel(flatten, _flattened):
        yield


@contextmanager
def _kernel(op: torch._ops.OpOverload, kernel: Callable[..., Any]) -> Iterator[None]:
    try:
        with patch.dict(op.py_kernels, {DispatchKey.CompositeImplicitAutograd: kernel}):
            op._dispatch_cache.clear()
            yield
    finally:
        op._dispatch_cache.clear()


def _flattened(x: torch.Tensor, start: int = 0, end: int = -1) -> torch.Tensor:
    rank = max(x.dim(), 1)
    first, last = start % rank, end % rank
    if x.dim() and first == last:
        return x
    return _reshaped(x, [*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]])


def _reshaped(x: torch.Tensor, shape: Any) -> torch.Tensor:
    reshape = partial(torch.ops.aten.reshape.default._op_dk, DispatchKey.CompositeImplicitAutograd, x, shape)
    sizes = [size for size in (*x.shape, *x.stride(), *shape) if isinstance(size, torch.SymInt)]
    if not sizes:
        return reshape()  # type: ignore[no-any-return]
    env = sizes[0].node.shape_env
    known = len(env.guards)
    with _undecided(env):
        reshaped: torch.Tensor = reshape()
        if len(env.guards) == known:
            return reshaped
        del env.guards[known:]
    return x.clone(memory_format=torch.contiguous_format).view(shape)


@contextmanager
def _undecided(env: ShapeEnv) -> Iterator[None]:
    """Inside, what was decided of sizes by those of the example is not taken for known; nor afterwards what is inside."""
    before = env.axioms, env.divisible, copy(env.var_to_range)
    data = {fact: value for fact, value in env.axioms.items() if free_unbacked_symbols(fact)}
    try:
        env.axioms, env.divisible = data, set()
        _look_anew(env)
        yield
    finally:
        made = {symbol: span for symbol, span in env.var_to_range.items() if symbol not in before[2]}
        env.axioms, env.divisible, env.var_to_range = before[0], before[1], {**before[2], **made}
        _look_anew(env)


def _look_anew(env: ShapeEnv) -> None:
    """Forgets conditions that were looked into: met again, one is a guard again."""
    env._version_counter += 1  # torch itself counts no change of axioms
    for name in ("_inner_evaluate_expr", "evaluate_expr"):  # which of them keeps answers depends on torch's version
        clear = getattr(getattr(type(env), name, None), "cache_clear", None)
        if clear is not None:
            clear()
