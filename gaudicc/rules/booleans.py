"""Rules for flags: what the device's kernels do not take as bool, they take as int32."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
# All give, of the numbers 0 and 1, what they give of False and True: results of int32 that are not 0 are True.
_OPS = (
    aten.add.Tensor, aten.ge.Tensor, aten.gt.Tensor, aten.le.Tensor, aten.lt.Tensor, aten.ne.Tensor, aten.maximum.default,
    aten.minimum.default, aten.sign.default, aten.amax.default, aten.amin.default, aten.max.default, aten.max.dim,
    aten.min.default, aten.min.dim, aten.cummax.default, aten.cummin.default, aten.mode.default, aten.put.default,
    aten.index_add.default, aten.scatter_add.default, aten.scatter_reduce.two,
)  # fmt: skip


def in_int32(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The op on int32; what it gives in int32 is bool again."""
    args, kwargs = pytree.tree_map_only(Tensor, _as_numbers, (args, kwargs))
    if "alpha" in kwargs:  # which may be a flag only where the operands are
        kwargs = {**kwargs, "alpha": int(kwargs["alpha"])}
    return pytree.tree_map(_as_flags, op(*args, **kwargs))


def _as_numbers(value: Tensor) -> Tensor:
    numbers: Tensor = aten._to_copy(value, dtype=torch.int32) if value.dtype is torch.bool else value
    return numbers


def _as_flags(result: Tensor) -> Tensor:
    flags: Tensor = aten.ne.Scalar(result, 0) if result.dtype is torch.int32 else result
    return flags


def _flags(x: Any, *args: Any, **kwargs: Any) -> str | None:
    tensors = [value for value in pytree.tree_leaves((x, args, kwargs)) if isinstance(value, Tensor)]
    if x.dtype is not torch.bool or any(value.dtype not in (torch.bool, torch.int64) for value in tensors):
        return "it is no op on flags"
    return None


def _add_flags(x: Any, y: Any, **kwargs: Any) -> str | None:
    return _flags(x, y) if isinstance(y, Tensor) else "a number makes it no flag"


def _rule(op: Any) -> Rule:
    name = op._schema.name.removeprefix("aten::").replace("_", "-")
    kind = {"dim": "-along-a-dim", "two": ""}.get(op._overloadname, "")
    return Rule(
        f"{name}{kind}-of-flags", (op,), partial(in_int32, op),
        check=_add_flags if op is aten.add.Tensor else _flags, cost="a copy of each operand in int32",
    )  # fmt: skip


RULES = tuple(_rule(op) for op in _OPS)
