"""Capture, around export: what takes a plain number where a dynamic size is given, and would fix it, in forms for all sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree


@contextmanager
def sizes_stay() -> Iterator[None]:
    """Inside, `linspace`, `max_pool1d`, tensors made of sizes, `x[:, n] = v` and `divmod` take sizes."""
    with ExitStack() as patches:
        patches.enter_context(wherever_imported(torch, torch.linspace, _linspace))
        patches.enter_context(wherever_imported(torch, torch.max_pool1d, _max_pool1d))
        patches.enter_context(wherever_imported(torch, torch.as_tensor, _as_tensor))
        patches.enter_context(patch.object(torch.Tensor, "new_tensor", _new_tensor))
        patches.enter_context(patch.object(torch.Tensor, "__setitem__", _set))
        patches.enter_context(patch.object(torch.SymInt, "__divmod__", _divmod, create=True))
        yield


@contextmanager
def wherever_imported(home: ModuleType, plain: Any, other: Any) -> Iterator[None]:
    """Puts a function in place of one of torch's in its module, and in all of other libraries that imported it from there."""
    name: str = plain.__name__
    modules = [module for module in sys.modules.values() if isinstance(module, ModuleType)]
    others = [module for module in modules if module.__name__.partition(".")[0] != "torch"]
    with ExitStack() as patches:
        for module in (home, *others):
            if vars(module).get(name) is plain:
                patches.enter_context(patch.object(module, name, other))
        yield


_plain_linspace, _plain_as_tensor, _plain_max_pool1d = torch.linspace, torch.as_tensor, torch.max_pool1d
_plain_new_tensor, _plain_set = torch.Tensor.new_tensor, torch.Tensor.__setitem__
_BASIC = (int, torch.SymInt, slice, type(None), type(...))


def _holds_size(value: Any) -> bool:
    return any(isinstance(leaf, torch.SymInt) for leaf in pytree.tree_leaves(value))


@wraps(_plain_linspace)
def _linspace(start: Any, end: Any, steps: Any, **kwargs: Any) -> torch.Tensor:
    if not isinstance(steps, torch.SymInt):
        return _plain_linspace(start, end, steps, **kwargs)
    place: torch.Tensor = torch.arange(steps, dtype=torch.int64, device=kwargs.get("device"))  # type: ignore[call-overload]
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    wide = torch.float32 if dtype.is_floating_point and dtype is not torch.float64 else torch.float64
    step = (end - start) / torch.sym_max(steps - 1, 1)
    # From both ends, as torch does: the last one is `end` itself.
    risen, fallen = start + place.to(wide) * step, end - place.neg().add(steps - 1).to(wide) * step
    return torch.where(place < steps // 2, risen, torch.where(place == 0, start, fallen)).to(dtype)


@wraps(_plain_max_pool1d)
def _max_pool1d(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if not isinstance(input.shape[-1], torch.SymInt):
        return _plain_max_pool1d(input, *args, **kwargs)
    pooled, _ = torch.nn.functional.max_pool1d_with_indices(input, *args, **kwargs)
    return pooled


@wraps(_plain_as_tensor)
def _as_tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    if not isinstance(data, (list, tuple)) or not _holds_size(data) or args:
        return _plain_as_tensor(data, *args, **kwargs)
    return torch.tensor(data, **kwargs)


@wraps(_plain_new_tensor)
def _new_tensor(self: torch.Tensor, data: Any, **kwargs: Any) -> torch.Tensor:
    if not _holds_size(data):
        return _plain_new_tensor(self, data, **kwargs)
    return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})


@wraps(_plain_set)
def _set(self: torch.Tensor, index: Any, value: Any) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if not any(map(_is_size, parts)) or not all(
        isinstance(part, _BASIC) and part is not True and part is not False for part in parts
    ):
        return _plain_set(self, index, value)
    rows = self[index]  # a view
    if not isinstance(value, torch.Tensor):
        rows.fill_(value)
        return None
    extra = max(value.dim() - rows.dim(), 0)
    rows.copy_(value.reshape(value.shape[extra:]) if extra else value)
    return None


def _is_size(part: Any) -> bool:
    """Whether an index is a size, known before the program runs."""
    return isinstance(part, torch.SymInt) and part.node.has_hint()


def _divmod(size: torch.SymInt, other: Any) -> tuple[Any, Any]:
    return size // other, size % other
