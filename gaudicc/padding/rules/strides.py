"""Views by strides: a view of what is there already, and the diagonal."""

from __future__ import annotations

from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import GARBAGE, Pads, mapped
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument


def _as_strided(p: Padder, node: fx.Node) -> Claims:
    """What pooling to one element ends with: all elements where they are."""
    x = operand(node, 0)
    source, result = val(x), val(node)
    same = [*map(expression, source.shape)] == [*map(expression, result.shape)]
    laid_out = same and all(
        expression(size) == 1 or expression(ours) == expression(theirs)
        for size, ours, theirs in zip(source.shape, source.stride(), result.stride(), strict=True)
    )
    if not laid_out or source.storage_offset() != result.storage_offset():
        raise p.refuse("a view by strides that count pads")
    return p.become(x)


def _diagonal(p: Padder, node: fx.Node) -> Claims:
    """The dims of one length, from their start: position i of the result is position i of both."""
    x, rank = operand(node, 0), val(operand(node, 0)).dim()
    first, second = wrap(argument(node, 2, "dim1", 0), rank), wrap(argument(node, 3, "dim2", 1), rank)
    pads = p.pads(x)
    if not pads.padded(first) and not pads.padded(second):
        kept = [mapped(d, lambda c: c.weak) for i, d in enumerate(pads.dims) if i not in (first, second)]
        return Pads((*kept, *p.dims_of(val(node))[-1:]))
    if argument(node, 1, "offset", 0) != 0 or pads.sizes(first) != pads.sizes(second):
        raise p.refuse("a diagonal of two padded dims that are not one length, or not from their start")
    kept = [mapped(d, lambda c: c.weak) for i, d in enumerate(pads.dims) if i not in (first, second)]
    return Pads((*kept, mapped(pads.dims[first], lambda c: GARBAGE)))


RULES = (
    Rule((aten.as_strided.default,), "none; any but the view of what is there is refused", "moves along", _as_strided),
    Rule((aten.diagonal.default,), "none; two padded dims must be one length", "garbage", _diagonal),
)
