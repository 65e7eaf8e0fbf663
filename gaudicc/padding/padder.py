"""One graph under padding: the claims known so far, and the edits that rules ask for (fills, moves, lengths)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.errors import PaddingError
from gaudicc.padding.certificate import Edit
from gaudicc.padding.layout import GARBAGE, Content, Dim, Factor, Kind, Number, Pads, mapped, normal, total
from gaudicc.padding.resources import Resources
from gaudicc.padding.sizes import expression, grows, text
from gaudicc.program import op_name, source_of, val, where
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten
Claims = Any  # Pads, or a tuple of Pads for an op with several results, or None for a size


@dataclass
class Journal:
    """What was done and assumed, over all graphs of a program."""

    edits: list[Edit] = field(default_factory=list)
    finite: dict[str, None] = field(default_factory=dict)  # claims that rest on "finite", in order


class Padder:
    """Carries claims through one graph.

    Args:
        rewriter: of the graph.
        resources: gives masks, lengths and sizes to this graph.
        journal: shared by all graphs of a program.
        strict: never rely on finite contents.
    """

    def __init__(self, rewriter: Rewriter, resources: Resources, journal: Journal, *, strict: bool) -> None:
        self.rewriter = rewriter
        self.resources = resources
        self.journal = journal
        self.strict = strict
        self.claims: dict[fx.Node, Claims] = {}
        self.node: fx.Node = next(iter(rewriter.graph.nodes))
        self.judge: Callable[[fx.Node], Claims] = lambda node: None
        self._filled: dict[Any, fx.Node] = {}
        self._became: dict[fx.Node, fx.Node] = {}  # an emitted node that its own rule replaced at once -> the other

    # -- what is known ---------------------------------------------------------------------------------------------

    def pads(self, node: Any) -> Pads:
        """The claims on an operand; a number is uniform."""
        if not isinstance(node, fx.Node):
            return Pads((), uniform=node)
        claims = self.claims.get(node)
        return claims if isinstance(claims, Pads) else Pads((), None)

    def refuse(self, reason: str) -> PaddingError:
        """The refusal of the current node, to be raised."""
        return PaddingError(f"{op_name(self.node)}: {reason}", where=where(self.node, "pad"))

    def dim(self, size: Any, content: Content = GARBAGE) -> Dim:
        """A dim of one factor.

        Raises:
            PaddingError: the size comes from data, or may shrink when a size it is made of grows.
        """
        expr = expression(size)
        if not expr.free_symbols:
            return (Factor(expr),)
        if stranger := next((s for s in expr.free_symbols if str(s) not in self.resources.names), None):
            raise self.refuse(f"size {expr} is known from data only ({stranger})")
        if not grows(expr):
            raise self.refuse(f"size {expr} is not known to grow with the sizes it is made of")
        return (Factor(expr, content),)

    def dims_of(self, value: Any, content: Content = GARBAGE) -> tuple[Dim, ...]:
        """Dims of one factor each for a value's shape."""
        return tuple(self.dim(size, content) for size in value.shape)

    def finite(self, content: Content) -> bool:
        """Whether a content may be relied on to be finite; merely finite ones not in strict mode."""
        if content.kind is Kind.FINITE:
            if self.strict:
                return False
            self.journal.finite[f"{op_name(self.node)} at {source_of(self.node)}"] = None
        return content.finite

    # -- edits -----------------------------------------------------------------------------------------------------

    def emit(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Emits a node before the current one and judges it by its own rule."""
        node = self.rewriter.emit(op, *args, like=self.node, **kwargs)
        claims = self.judge(node)
        if node in self._became:
            return self._became.pop(node)
        self.claims[node] = claims
        return node

    def raw(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Emits a node whose claims the caller sets, or that has no pads anyone reads."""
        node = self.rewriter.emit(op, *args, like=self.node, **kwargs)
        self.claims[node] = None
        return node

    def set_arg(self, index: int, new: Any) -> None:
        """Puts `new` in place of an argument of the current node."""
        self.node.args = (*self.node.args[:index], new, *self.node.args[index + 1 :])
        self.rewriter.modified = True

    def become(self, new: fx.Node) -> Claims:
        """Replaces the current node by `new`; its claims are those of `new`."""
        claims = self.claims[new]
        if not self.node.users:
            self._became[self.node] = new
        self.rewriter.replace(self.node, new)
        return claims

    def log(self, what: str, reason: str) -> None:
        """Writes down an edit of the current node."""
        self.journal.edits.append(Edit(what, op_name(self.node), reason, source_of(self.node)))

    def fill(self, node: fx.Node, dims: Iterable[int], value: Number, reason: str, *, finite: bool = False) -> fx.Node:
        """The tensor with its pads along some dims holding a constant.

        Positions where several of these dims are pad hold it too.

        Args:
            node: the tensor.
            dims: the dims, those without pads included.
            value: the constant.
            reason: the demand, for the certificate.
            finite: any finite content will do.

        Returns:
            The node itself if nothing is to be done, or one that is shared by all who ask for the same.
        """
        pads = self.pads(node)
        padded = [dim for dim in dims if pads.padded(dim)]
        good = (lambda c: self.finite(c)) if finite else (lambda c: c.is_constant(value))
        weak = [dim for dim in padded if not all(good(c) for c in pads.contents(dim))]
        factors = sum(len(pads.contents(dim)) for dim in padded)
        if not weak and factors > 1 and not all(c.strong for dim in padded for c in pads.contents(dim)):
            weak = padded  # where two factors are pad nothing is claimed yet
        elif weak and factors > 1:
            weak = padded
        if not weak:
            return node
        key = (node, tuple(weak), repr(value))
        if key not in self._filled:
            mask = self.mask(val(node).dim(), {dim: pads.sizes(dim) for dim in weak})
            filled = self.raw(aten.where.self, mask, node, self.literal(value, val(node).dtype))
            kept = tuple(
                mapped(
                    d,
                    (lambda c: Content(Kind.CONSTANT, value, True))
                    if i in weak
                    else (lambda c: c if c.is_constant(value) else c.weak),
                )
                for i, d in enumerate(pads.dims)
            )
            self.claims[filled] = Pads(kept)
            self._filled[key] = filled
            self.log("mask", reason)
        return self._filled[key]

    def literal(self, value: Number, dtype: torch.dtype) -> fx.Node:
        """A number as a 0-d tensor; one node per graph."""
        key = (repr(value), dtype)
        if key not in self._filled:
            made = self.raw(aten.full.default, [], _literal(value, dtype), dtype=dtype)
            self.claims[made] = Pads((), uniform=_literal(value, dtype))
            self._filled[key] = made
        return self._filled[key]

    def fill_arg(self, index: int, dims: Iterable[int], value: Number, reason: str, *, finite: bool = False) -> Pads:
        """`fill` on an argument of the current node; returns its claims."""
        arg = self.node.args[index]
        assert isinstance(arg, fx.Node), "only tensors are filled"
        filled = self.fill(arg, dims, value, reason, finite=finite)
        if filled is not arg:
            self.set_arg(index, filled)
        return self.pads(filled)

    def mask(self, rank: int, dims: dict[int, Sequence[sympy.Expr]]) -> fx.Node:
        """A bool tensor that is True at valid positions, broadcastable to a tensor of this rank."""
        key = (rank, tuple((dim, tuple(sizes)) for dim, sizes in dims.items()))
        if key not in self._filled:
            self._filled[key] = self._new_mask(rank, dims)
        return self._filled[key]

    def _new_mask(self, rank: int, dims: dict[int, Sequence[sympy.Expr]]) -> fx.Node:
        result: fx.Node | None = None
        for dim, sizes in dims.items():
            shape = [1] * rank
            shape[dim] = -1
            part = self._dim_mask(sizes)
            part = part if rank == 1 else self.raw(aten.view.default, part, shape)
            result = part if result is None else self.raw(aten.logical_and.default, result, part)
        assert result is not None, "a mask is over at least one dim"
        return result

    def _dim_mask(self, sizes: Sequence[sympy.Expr]) -> fx.Node:
        """The mask of one dim, a vector; of several factors, their outer product."""
        rank = len(sizes)
        if rank == 1:
            return self.resources.mask(sizes[0])
        vector: fx.Node | None = None
        for i, size in enumerate(sizes):
            shape = [1] * rank
            shape[i] = -1
            if size.free_symbols:
                part = self.raw(aten.view.default, self.resources.mask(size), shape)
            else:
                part = self.raw(
                    aten.full.default, [int(size) if j == i else 1 for j in range(rank)], True, dtype=torch.bool
                )
            vector = part if vector is None else self.raw(aten.logical_and.default, vector, part)
        assert vector is not None, "a dim has at least one factor"
        return self.raw(aten.view.default, vector, [-1])

    def value(self, size: Any) -> Any:
        """What a size means as a value: a number stays, a symbolic size becomes the tensor of its logical length."""
        if not isinstance(size, fx.Node) or isinstance(val(size), torch.Tensor):
            return size
        made = val(size)
        if not isinstance(made, (torch.SymInt, torch.SymFloat)):
            return size if not isinstance(made, torch.SymBool) else self._no_value(size)
        expr = made.node.expr
        if not expr.free_symbols:
            return size
        if any(str(symbol) not in self.resources.names for symbol in expr.free_symbols):
            raise self.refuse(f"the value {expr} is known from data only")
        shown = text(expr, self.resources.names) if isinstance(made, torch.SymInt) else expr
        self.log("length", f"the size {shown} is used as a value")
        return self.resources.real(expr) if isinstance(made, torch.SymFloat) else self.resources.length(expr)

    def _no_value(self, size: fx.Node) -> Any:
        raise self.refuse(f"{size.name} decides on a size at run time")

    # -- positions -------------------------------------------------------------------------------------------------

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
        merged = [*map(self.size_of, shape[:dim]), -1, *map(self.size_of, shape[dim + count :])]
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


def _literal(value: Number, dtype: torch.dtype) -> Number:
    if dtype is torch.bool:
        return bool(value)
    return float(value) if dtype.is_floating_point else value


def lowest(dtype: torch.dtype) -> Number:
    """The value that no maximum takes unless all are equal to it."""
    if dtype.is_floating_point:
        return float("-inf")
    return False if dtype is torch.bool else torch.iinfo(dtype).min


def highest(dtype: torch.dtype) -> Number:
    """The value that no minimum takes unless all are equal to it."""
    if dtype.is_floating_point:
        return float("inf")
    return True if dtype is torch.bool else torch.iinfo(dtype).max
