"""One graph under padding: the claims known so far, and the edits that leave elements where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.errors import PaddingError
from gaudicc.nodes import op_name, source_of, val, where
from gaudicc.padding.certificate import Edit
from gaudicc.padding.layout import GARBAGE, Content, Dim, Factor, Kind, Number, Pads, mapped
from gaudicc.padding.resources import Resources
from gaudicc.padding.sizes import Ranges, expression, grows, text
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten
Claims = Any  # Pads, or a tuple of Pads for an op with several results, or None for a size


@dataclass
class Journal:
    """What was done and assumed, over all graphs of a program."""

    edits: list[Edit] = field(default_factory=list)
    finite: dict[str, None] = field(default_factory=dict)  # claims that rest on "finite", in order


class Edits:
    """Carries claims through one graph.

    Args:
        rewriter: of the graph.
        resources: gives masks, lengths and sizes to this graph.
        journal: shared by all graphs of a program.
        strict: never rely on finite contents.
        ranges: symbol -> smallest and largest value.
    """

    def __init__(
        self, rewriter: Rewriter, resources: Resources, journal: Journal, *, strict: bool, ranges: Ranges
    ) -> None:
        self.rewriter = rewriter
        self.resources = resources
        self.journal = journal
        self.strict = strict
        self.ranges = ranges
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
        if not grows(expr, self.ranges):
            raise self.refuse(f"size {expr} is not known to grow with the sizes it is made of")
        return (Factor(expr, content),)

    def dims_of(self, value: Any, content: Content = GARBAGE) -> tuple[Dim, ...]:
        """Dims of one factor each for a value's shape."""
        return tuple(self.dim(size, content) for size in value.shape)

    def may_be_one(self, size: Any) -> bool:
        """Whether a dynamic size is 1 at some lengths."""
        expr = expression(size)
        least = expr.xreplace({s: sympy.Integer(max(1, min(2, self.ranges[str(s)][0]))) for s in expr.free_symbols})
        return bool(expr.free_symbols) and bool(least <= 1)

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

    def become_all(self, new: tuple[fx.Node, ...]) -> Claims:
        """Replaces the current node, of several results."""
        self.rewriter.replace_outputs(self.node, new)
        return tuple(self.claims[result] for result in new)

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
                ones = [int(size) if j == i else 1 for j in range(rank)]
                part = self.raw(aten.full.default, ones, True, dtype=torch.bool, **self.resources.placement)
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
        expr = made.node.expr if isinstance(made, torch.SymFloat) else expression(made)
        if not expr.free_symbols:
            return size
        if any(str(symbol) not in self.resources.names for symbol in expr.free_symbols):
            raise self.refuse(f"the value {expr} is known from data only")
        shown = text(expr, self.resources.names) if isinstance(made, torch.SymInt) else expr
        self.log("length", f"the size {shown} is used as a value")
        return self.resources.real(expr) if isinstance(made, torch.SymFloat) else self.resources.length(expr)

    def _no_value(self, size: fx.Node) -> Any:
        raise self.refuse(f"{size.name} decides on a size at run time")


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
