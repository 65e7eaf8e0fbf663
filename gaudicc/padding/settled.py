"""Sizes that are one number at every length, as the 64 of `view(n, -1, 64)`, which torch writes `t // (t // 64)`."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from gaudicc.padding.sizes import Ranges, expression, only_value
from gaudicc.program import Program


def with_settled_sizes(program: Program) -> Program:
    """The program, its sizes plain numbers where they are one number in the whole range of its dimensions."""
    ranges = {dim.symbol: (dim.low, dim.high) for dim in program.dimensions}
    settled = program.copy()
    for _, module in settled.graphs():
        for node in module.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = pytree.tree_map(lambda leaf: _settled(leaf, ranges), node.meta["val"])
    return settled


def _settled(value: Any, ranges: Ranges) -> Any:
    if not isinstance(value, torch.Tensor) or free_unbacked_symbols(value):
        return value
    shape, strides = ([_number(size, ranges) for size in sizes] for sizes in (value.shape, value.stride()))
    if [*map(type, shape)] == [*map(type, value.shape)]:
        return value
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)


def _number(size: Any, ranges: Ranges) -> Any:
    expr = expression(size)
    if not isinstance(size, torch.SymInt) or expr.is_symbol or not expr.atoms(sympy.Function):
        return size
    value = only_value(expr, ranges)
    return size if value is None else value
