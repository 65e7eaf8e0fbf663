"""Capture, mending: methods of tensors that give Python lists, of their sizes, and of dicts by what data decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import BuiltinMethodType
from typing import Any

import torch

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.internals import is_constant
from gaudicc.capture.mend.iteration import as_items, has_dynamic_rows, has_unknown_length
from gaudicc.capture.mend.picking import get
from gaudicc.capture.mend.pieces import Listed, listed
from gaudicc.capture.mend.values import Maybe


def method(bound: Any) -> Any:
    """What a rewritten function calls for `tolist`, `unbind`, `numel` or `get` of something: ours where data or sizes decide."""
    owner = getattr(bound, "__self__", None)
    if getattr(bound, "__name__", "") == "unbind" and isinstance(owner, torch.Tensor):
        return lambda dim=0: rows if has_dynamic_rows(rows := owner.movedim(dim, 0)) else bound(dim)
    if isinstance(owner, torch.Size) and bound.__name__ == "numel":
        return lambda: math.prod(owner)
    context = active()
    if (
        isinstance(bound, BuiltinMethodType)
        and isinstance(owner, dict)
        and bound.__name__ == "get"
        and context is not None
    ):
        return partial(get, owner)
    if getattr(bound, "__name__", "") == "tolist" and isinstance(owner, torch.Tensor) and context is not None:
        return lambda: _to_list(context, owner, bound)
    return bound


def _to_list(context: Context, owner: torch.Tensor, plain: Callable[[], Any]) -> Any:
    if has_unknown_length(owner):
        return [_listed(item) for item in as_items(context, owner)]
    if owner.dim() != 1 or is_constant(owner):
        return plain()
    return listed(context, owner, Listed() if has_dynamic_rows(owner) else plain())


def _listed(item: Any) -> Any:
    return Maybe(item.present, item.value.tolist()) if isinstance(item, Maybe) else item.tolist()
