"""Masks, lengths and sizes that rules read: computed once in the root, handed to region bodies as operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import Factor, Pads, constant
from gaudicc.padding.sizes import SIZE_OPS, Arithmetic, text
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten
Key = tuple[str, sympy.Expr]


class Resources:
    """Gives one graph what it needs; a region body asks for operands, and its call sites ask their own graph.

    Args:
        rewriter: of the graph.
        names: symbol -> dimension name.
        claims: where the claims on new nodes are written.
    """

    def __init__(self, rewriter: Rewriter, names: Mapping[str, str], claims: dict[fx.Node, Any]) -> None:
        self.rewriter = rewriter
        self.names = names
        self.claims = claims
        self.made: dict[Key, fx.Node] = {}

    @property
    def placement(self) -> dict[str, torch.device]:
        """`device=` of new tensors with dims; numbers of no dim stay on the host, which every op takes."""
        raise NotImplementedError

    def mask(self, size: sympy.Expr) -> fx.Node:
        """A bool `[size]`: which positions are valid."""
        return self.get(("mask", size))

    def length(self, size: sympy.Expr) -> fx.Node:
        """int64 `[]`: the logical value of a size."""
        return self.get(("length", size))

    def real(self, size: sympy.Expr) -> fx.Node:
        """float32 `[]`: the logical value of a real expression of sizes."""
        return self.get(("real", size))

    def scalar(self, size: sympy.Expr) -> fx.Node:
        """int64 `[]`: a number as a tensor."""
        return self.get(("scalar", size))

    def last(self, size: sympy.Expr) -> fx.Node:
        """int64 `[]`: the last physical position."""
        return self.get(("last", size))

    def physical(self, size: sympy.Expr) -> Any:
        """int64 `[]`, or a plain number: the physical value of a size."""
        return self.get(("physical", size)) if size.free_symbols else int(size)

    def iota(self, size: sympy.Expr) -> fx.Node:
        """int64 `[size]`: 0, 1, ..., physical size - 1."""
        return self.get(("iota", size))

    def size(self, size: sympy.Expr) -> Any:
        """The physical size, as an argument of a shape."""
        return self.get(("size", size)) if size.free_symbols else int(size)

    def get(self, key: Key) -> fx.Node:
        """The node of a resource, made when first asked for."""
        if key not in self.made:
            self.made[key] = self.make(key)
            self.claims[self.made[key]] = claims_of(key)
        return self.made[key]

    def make(self, key: Key) -> fx.Node:
        """Makes a resource in this graph."""
        raise NotImplementedError


class RootResources(Resources):
    """Computes resources at the top of the root graph.

    Args:
        rewriter: of the root.
        names: symbol -> dimension name.
        claims: where the claims on new nodes are written.
        lengths: symbol -> the placeholder of its logical length.
        sizes: symbol -> a placeholder and the dim of it that has this size.
        anchor: everything is emitted before this node.
    """

    def __init__(
        self,
        rewriter: Rewriter,
        names: Mapping[str, str],
        claims: dict[fx.Node, Any],
        lengths: Mapping[str, fx.Node],
        sizes: Mapping[str, tuple[fx.Node, int]],
        anchor: fx.Node,
    ) -> None:
        super().__init__(rewriter, names, claims)
        self.lengths = lengths
        self.sizes = sizes
        self.anchor = anchor

    @property
    def placement(self) -> dict[str, torch.device]:
        """See `Resources.placement`; the model's own device."""
        device = val(next(iter(self.sizes.values()))[0]).device
        return {} if device.type == "cpu" else {"device": device}

    def make(self, key: Key) -> fx.Node:
        """Emits a resource at the top."""
        kind, size = key
        if kind == "size" and size.is_symbol:
            tensor, dim = self.sizes[str(size)]
            return self._emit(aten.sym_size.int, tensor, dim)
        if kind == "size":
            text(size, self.names)  # refuses what no graph arithmetic computes
            leaf: Callable[[Any], Any] = lambda symbol: self.size(symbol)  # noqa: E731
            made = Arithmetic(leaf, lambda word, a, b: self._emit(SIZE_OPS[word], a, b)).build(size)
            assert isinstance(made, fx.Node), "the size has symbols"
            return made
        if kind == "length":
            made = Arithmetic(lambda symbol: self.lengths[str(symbol)], self._tensor_step).build(size)
            assert isinstance(made, fx.Node), "the size has symbols"
            return made
        if kind == "real":
            made = _real(self, size)
            assert isinstance(made, fx.Node), "the size has symbols"
            return made
        if kind == "scalar":
            return self._emit(aten.full.default, [], int(size), dtype=torch.int64)
        if kind == "physical":
            return self._emit(aten.full.default, [], self.size(size), dtype=torch.int64)
        if kind == "last":
            return self._emit(aten.sub.Tensor, self.physical(size), 1)
        if kind == "iota":
            return self._emit(aten.arange.default, self.size(size), dtype=torch.int64, **self.placement)
        assert kind == "mask", f"no resource {kind}"
        return self._emit(aten.lt.Tensor, self.iota(size), self.length(size))

    def _emit(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.rewriter.emit(op, *args, like=self.anchor, **kwargs)

    def _tensor_step(self, word: str, a: Any, b: Any) -> fx.Node:
        if word in ("min", "max"):
            if isinstance(b, int):
                bound = {"min": None, "max": None, word: b}
                return self._emit(aten.clamp.default, a, bound["max"], bound["min"])
            return self._emit(aten.minimum.default if word == "min" else aten.maximum.default, a, b)
        if word == "//":
            return self._emit(aten.div.Tensor_mode, a, b, rounding_mode="floor")
        if word == "%":
            return self._emit(aten.remainder.Scalar if isinstance(b, int) else aten.remainder.Tensor, a, b)
        return self._emit(aten.add.Tensor if word == "+" else aten.mul.Tensor, a, b)

    def real_leaf(self, symbol: sympy.Symbol) -> fx.Node:
        """The length of a symbol in float32."""
        return self._emit(aten._to_copy.default, self.length(symbol), dtype=torch.float32)


def _real(resources: RootResources, expr: sympy.Expr) -> Any:
    """A real expression of sizes in float32: sums, products, powers and quotients."""
    if expr.is_number:
        return float(expr)
    if expr.is_symbol:
        return resources.real_leaf(expr)
    emit = resources._emit
    parts = sorted(expr.args, key=lambda part: bool(part.is_number))
    name = type(expr).__name__
    if name in ("ToFloat", "Float"):
        return emit(aten._to_copy.default, resources.length(expr.args[0]), dtype=torch.float32)
    if name in ("FloatTrueDiv", "IntTrueDiv"):
        return emit(aten.div.Tensor, _real(resources, expr.args[0]), _real(resources, expr.args[1]))
    if expr.is_Pow or name == "FloatPow" or name == "PowByNatural":
        return emit(aten.pow.Tensor_Scalar, _real(resources, expr.args[0]), float(expr.args[1]))
    if name == "OpaqueUnaryFn_sqrt":
        return emit(aten.sqrt.default, _real(resources, expr.args[0]))
    if expr.is_Add or expr.is_Mul:
        value = _real(resources, parts[0])
        for part in parts[1:]:
            value = emit(aten.add.Tensor if expr.is_Add else aten.mul.Tensor, value, _real(resources, part))
        return value
    return emit(aten._to_copy.default, resources.length(expr), dtype=torch.float32)


class BodyResources(Resources):
    """Asks for resources as operands of a region body."""

    def __init__(
        self, rewriter: Rewriter, names: Mapping[str, str], claims: dict[fx.Node, Any], caller: Resources
    ) -> None:
        super().__init__(rewriter, names, claims)
        self.caller = caller

    @property
    def placement(self) -> dict[str, torch.device]:
        """See `Resources.placement`."""
        return self.caller.placement

    def make(self, key: Key) -> fx.Node:
        """Adds a placeholder; `claims_of` says what it holds."""
        value = val(self.caller.get(key))
        placeholders = [node for node in self.rewriter.graph.nodes if node.op == "placeholder"]
        with self.rewriter.graph.inserting_after(placeholders[-1]):
            node = self.rewriter.graph.placeholder(f"{key[0]}_{len(self.made)}")
        node.meta["val"] = value
        self.rewriter.modified = True
        return node


def claims_of(key: Key) -> Pads | None:
    """What is known of a resource."""
    kind, size = key
    if kind == "size":
        return None
    if kind == "mask":
        return Pads(((Factor(size, constant(False, strong=True)),),))
    if kind == "iota":
        content = None if not size.free_symbols else constant(float("nan"))
        return Pads(((Factor(size, content),),), iota=0)
    return Pads(())
