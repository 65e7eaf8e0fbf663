"""What rules are given: the edits of one graph, those that move elements to their logical positions included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.edits import Claims, Edits, Journal, aten, highest, lowest
from gaudicc.padding.layout import GARBAGE, Content, Dim, Factor, Kind, Pads, mapped, normal, total
from gaudicc.padding.sizes import expression

__all__ = ["Claims", "Journal", "Padder", "aten", "highest", "lowest"]


class Padder(Edits):
    """Carries claims through one graph."""

    def compact(self, node: fx.Node, dim: int) -> fx.Node:
        """The tensor with the valid positions of a dim first, so that positions mean what they mean without padding."""
        pads = self.pads(node)
        if pads.prefix(dim):
            return node
        target = (Factor(total([pads.dims[dim]]), GARBAGE),)
        return self.relayout(node, dim, 1, (target,))

    def relayout(self, node: fx.Node, dim: int, count: int, target: tuple[Dim, ...]) -> fx.Node:
        """Moves the elements of `count` dims from `dim` on to dims of another layout, by a gather on logical positions.

        The logical row-major order is kept: it is what the program without padding would see as a reshape.

        Args:
            node: the tensor.
            dim: first of the dims that are regrouped.
            count: how many.
            target: the dims they become.
        """
        pads = self.pads(node)
        source = [factor for d in pads.dims[dim : dim + count] for factor in d]
        flat = self._positions([f.size for d in target for f in d], [f.size for f in source])
        vector = self.raw(aten.view.default, flat, [-1])
        shape = list(val(node).shape)
        every = self.resources.size(total(pads.dims[dim : dim + count]))  # -1 would not do beside a size of 0
        merged = [*map(self.size_of, shape[:dim]), every, *map(self.size_of, shape[dim + count :])]
        whole = self.raw(aten.clone.default, node, memory_format=torch.contiguous_format)
        rows = self.raw(aten.view.default, whole, merged)
        moved = self.raw(aten.index_select.default, rows, dim, vector)
        sizes = [self.resources.size(total([d])) for d in target]
        out = self.raw(aten.view.default, moved, [*merged[:dim], *sizes, *merged[dim + 1 :]])
        old = [c for d in pads.dims[dim : dim + count] for c in [f.content for f in d] if c is not None]
        content = GARBAGE if any(not c.finite for c in old) else Content(Kind.FINITE)
        new = tuple(tuple(Factor(f.size, content if f.content is not None else None) for f in d) for d in target)
        rest = [mapped(d, lambda c: c.weak) for d in pads.dims]
        dims = (*rest[:dim], *new, *rest[dim + count :])
        # What held where other dims are pad was claimed for valid positions of these: they were only moved.
        self.claims[out] = Pads(tuple(normal(d, val(out).dtype) for d in dims))
        self.log("relayout", "positions in a merged or split dim are those without padding")
        return out

    def _positions(self, target: Sequence[sympy.Expr], source: Sequence[sympy.Expr]) -> fx.Node:
        """For every physical position of the target factors, the physical row-major position in the source factors."""
        rank = len(target)
        logical: Any = None
        for i, size in enumerate(target):
            shape = [1] * rank
            shape[i] = -1
            coordinate = self.raw(aten.view.default, self.resources.iota(size), shape)
            logical = coordinate if logical is None else self._add(self._mul(logical, self._length(size)), coordinate)
        coordinates: list[Any] = []
        for size in reversed(source):
            length = self._length(size)
            if len(coordinates) == len(source) - 1:
                coordinates.append(logical)
                break
            divisor = max(length, 1) if isinstance(length, int) else self.raw(aten.clamp.default, length, 1)
            rest = self._div(logical, divisor)
            coordinates.append(self._sub(logical, self._mul(rest, divisor)))
            logical = rest
        position: Any = None
        for size, coordinate in zip(source, reversed(coordinates), strict=True):
            last = self._last(size)
            inside = self.raw(aten.clamp.default, self.raw(aten.minimum.default, coordinate, last), 0)
            position = (
                inside if position is None else self._add(self._mul(position, self.resources.physical(size)), inside)
            )
        assert isinstance(position, fx.Node), "there is at least one factor"
        return position

    def _last(self, size: sympy.Expr) -> fx.Node:
        return self.resources.scalar(size - 1) if not size.free_symbols else self.resources.last(size)

    def _length(self, size: sympy.Expr) -> Any:
        return self.resources.length(size) if size.free_symbols else int(size)

    def _mul(self, a: fx.Node, b: Any) -> fx.Node:
        return self.raw(aten.mul.Tensor, a, b)

    def _add(self, a: fx.Node, b: Any) -> fx.Node:
        return self.raw(aten.add.Tensor, a, b)

    def _sub(self, a: fx.Node, b: Any) -> fx.Node:
        return self.raw(aten.sub.Tensor, a, b)

    def _div(self, a: fx.Node, b: Any) -> fx.Node:
        return self.raw(aten.div.Tensor_mode, a, b, rounding_mode="floor")

    def size_of(self, size: Any) -> Any:
        """A physical size as an argument of a shape: a number, or a node that computes it."""
        expr = expression(size)
        return int(expr) if not expr.free_symbols else self.resources.size(expr)

    def select_rows(self, node: fx.Node, dim: int, index: fx.Node, result: Dim) -> fx.Node:
        """Picks positions of a dim by a computed index (in range everywhere); the result's dim has the given layout."""
        picked = self.raw(aten.index_select.default, node, dim, index)
        pads = self.pads(node)
        contents = pads.contents(dim)
        content = Content(Kind.FINITE) if all(c.finite for c in contents) else GARBAGE
        made = tuple(Factor(f.size, content if f.content is not None else None) for f in result)
        rest = [mapped(d, lambda c: c.weak) for d in pads.dims]
        dims = (*rest[:dim], made, *rest[dim + 1 :])
        self.claims[picked] = Pads(tuple(normal(d, val(picked).dtype) for d in dims))
        return picked

    def clamp_to(self, index: fx.Node, size: sympy.Expr) -> fx.Node:
        """An index brought into 0 .. size - 1 (physical)."""
        return self.raw(aten.clamp.default, self.raw(aten.minimum.default, index, self._last(size)), 0)
