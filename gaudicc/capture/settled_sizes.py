"""Capture: sizes that the decisions of a side settle: where `s % 8 == 0`, `s` rounded up to 8 is `s`.

torch writes a size as the ops made it. What follows for all sizes of a side is found by trying them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from gaudicc.capture.size_trials import Columns, tried

ColumnsOf = Callable[[frozenset[str]], Columns | None]
"""Some symbols -> what each is, for all sizes of a side; None if these are too many."""


def settle_sizes(exported: ExportedProgram, columns_of: ColumnsOf) -> None:
    """Writes sizes as one number, or as one size of an input, wherever that is what they are for all sizes of a side.

    Args:
        exported: the export of the side; its fake values are replaced.
        columns_of: the sizes of the side.
    """
    settle = _Settle(columns_of, dict(_inputs(exported)))
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if node.op != "placeholder" and "val" in node.meta:
                node.meta["val"] = pytree.tree_map(settle, node.meta["val"])
                _spell_out(node)


def _spell_out(node: fx.Node) -> None:
    """Writes the number for a `-1` of a view that is one: inferred again later it would be an expression again."""
    if node.target not in _VIEWS or not isinstance(node.args[1], (tuple, list)) or -1 not in node.args[1]:
        return
    at = list(node.args[1]).index(-1)
    if isinstance(size := node.meta["val"].shape[at], int):
        node.update_arg(1, [*node.args[1][:at], size, *node.args[1][at + 1 :]])


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)


def _inputs(exported: ExportedProgram) -> Iterator[tuple[sympy.Symbol, torch.SymInt]]:
    """The symbols that are sizes of inputs, as torch holds them."""
    for node in exported.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                yield size.node.expr, size


class _Settle:
    """Settles the sizes of one value.

    Args:
        columns_of: the sizes of the side.
        inputs: symbol -> the size as torch holds it.
    """

    def __init__(self, columns_of: ColumnsOf, inputs: Mapping[sympy.Symbol, torch.SymInt]) -> None:
        self.columns_of = columns_of
        self.inputs = inputs
        self.known: dict[sympy.Expr, Any] = {}

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        shape, strides = ([self._size(size) for size in sizes] for sizes in (value.shape, value.stride()))
        if all(new is old for new, old in zip((*shape, *strides), (*value.shape, *value.stride()), strict=True)):
            return value
        with value.fake_mode:
            return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)

    def _size(self, size: Any) -> Any:
        expr = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(0)
        if not expr.atoms(sympy.Function):
            return size
        if expr not in self.known:
            self.known[expr] = self._settled(expr)
        settled = self.known[expr]
        return size if settled is None else settled

    def _settled(self, expr: sympy.Expr) -> Any:
        columns = self.columns_of(frozenset(map(str, expr.free_symbols)))
        values = None if columns is None else tried(expr, columns)
        if columns is None or values is None:
            return None
        if (values == values.flat[0]).all():
            return int(values.flat[0])
        same = (symbol for symbol in expr.free_symbols if (values == columns[str(symbol)]).all())
        return next((self.inputs[symbol] for symbol in same if symbol in self.inputs), None)
