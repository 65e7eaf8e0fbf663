"""Capture: sizes that the decisions of a side settle: where `s % 8 == 0`, `s` rounded up to 8 is `s`.

torch writes a size as the ops made it. What follows for all sizes of a side is found by trying them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from gaudicc.capture.decisions import Decision, Ranges

_POINTS = 2**16
"""Sizes that are tried at most."""


def settle_sizes(
    exported: ExportedProgram, names: Mapping[str, str], when: Sequence[Sequence[Decision]], ranges: Ranges
) -> None:
    """Writes sizes as one number, or as one size of an input, wherever that is what they are for all sizes of a side.

    Args:
        exported: the export of the side; its fake values are replaced.
        names: symbol -> name of the size.
        when: the sizes of the side: all decisions of any one entry hold.
        ranges: of every name.
    """
    order = sorted(ranges)
    spans = [range(ranges[name][0], ranges[name][1] + 1) for name in order]
    if math.prod(map(len, spans)) > _POINTS:
        return
    every = (dict(zip(order, point, strict=True)) for point in product(*spans))
    points = [sizes for sizes in every if any(all(decision.holds(sizes) for decision in entry) for entry in when)]
    settle = _Settle(names, points, dict(_inputs(exported)))
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if node.op != "placeholder" and "val" in node.meta:
                node.meta["val"] = pytree.tree_map(settle, node.meta["val"])


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
        names: symbol -> name of the size.
        points: all sizes of the side, by name.
        inputs: symbol -> the size as torch holds it.
    """

    def __init__(
        self, names: Mapping[str, str], points: Sequence[Mapping[str, int]], inputs: Mapping[sympy.Symbol, torch.SymInt]
    ) -> None:
        self.names = names
        self.points = points
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
        if not expr.atoms(sympy.Function) or not all(str(symbol) in self.names for symbol in expr.free_symbols):
            return size
        if expr not in self.known:
            self.known[expr] = self._settled(expr)
        settled = self.known[expr]
        return size if settled is None else settled

    def _settled(self, expr: sympy.Expr) -> Any:
        values = list(map(self._function(expr), self.points))
        if len(set(values)) == 1:
            return values[0]
        same = (symbol for symbol in expr.free_symbols if values == [p[self.names[str(symbol)]] for p in self.points])
        return next((self.inputs[symbol] for symbol in same if symbol in self.inputs), None)

    def _function(self, expr: sympy.Expr) -> Callable[[Mapping[str, int]], int]:
        symbols = sorted(expr.free_symbols, key=str)
        text = PythonPrinter().doprint(expr)
        function = eval(f"lambda {', '.join(map(str, symbols))}: {text}", {"math": math})  # as torch prints it
        return lambda sizes: int(function(*(sizes[self.names[str(symbol)]] for symbol in symbols)))
