"""Views and reshapes: claims move with the dims; nothing is demanded."""

from __future__ import annotations

import sympy
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Factor, Pads, constant, mapped, normal, total
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument

ONE = (Factor(sympy.Integer(1)),)


def regroup(p: Padder, dims: tuple[Dim, ...], sizes: list[sympy.Expr]) -> tuple[Dim, ...] | None:
    """The factors of `dims` dealt out to dims of these sizes in row-major order, or None if they do not fall so.

    A size that is split is split by numbers from the right: the program without padding splits its logical length
    the same way, so that it is a multiple of them.
    """
    rest = [f for dim in dims for f in dim if f.size != 1]
    made: list[Dim] = []
    for size in sizes:
        mine: list[Factor] = []
        product: sympy.Expr = sympy.Integer(1)
        while sympy.expand(product - size) != 0:
            if not rest:
                return None
            needed = sympy.simplify(size / product)
            factor = rest.pop(0)
            taken = _take(p, factor, needed)
            if taken is None:
                return None
            head, tail = taken
            if tail is not None:
                rest.insert(0, tail)
            mine.append(head)
            product = product * head.size
        made.append(tuple(mine) or ONE)
    return tuple(made) if not rest else None


def _take(p: Padder, factor: Factor, needed: sympy.Expr) -> tuple[Factor, Factor | None] | None:
    """The part of a factor that a dim still needs, and what is left of it."""
    if sympy.expand(factor.size - needed) == 0:
        return factor, None
    ratio = sympy.simplify(needed / factor.size)
    if ratio.is_Integer or (
        ratio.free_symbols and not ratio.as_numer_denom()[1].free_symbols and ratio.as_numer_denom()[1] == 1
    ):
        return factor, None
    if factor.content is None and needed.is_Integer and factor.size % needed == 0:
        return Factor(needed), Factor(factor.size / needed)
    if factor.content is None and needed.free_symbols:
        return None
    inner = sympy.simplify(factor.size / needed)
    if factor.content is not None and needed.free_symbols and not inner.free_symbols and inner.is_Integer:
        return Factor(needed, factor.content), Factor(inner)
    by = _floor_divisor(factor.size, needed)
    if factor.content is not None and by is not None:
        return Factor(needed, factor.content), Factor(by)
    return None


def _floor_divisor(size: sympy.Expr, needed: sympy.Expr) -> sympy.Expr | None:
    """w, if `needed` is `size // w`."""
    name = type(needed).__name__
    if name in ("FloorDiv", "CleanDiv") and sympy.expand(needed.args[0] - size) == 0 and needed.args[1].is_Integer:
        return needed.args[1]
    return None


def _view(p: Padder, node: fx.Node) -> Claims:
    pads = p.pads(operand(node, 0))
    shape = [expression(size) for size in val(node).shape]
    if pads.uniform is not None:
        return Pads(p.dims_of(val(node), constant(pads.uniform, strong=True)), uniform=pads.uniform)
    dims = regroup(p, pads.dims, shape)
    if dims is not None:
        return Pads(dims, None, _moved_iota(pads, dims))
    first = 0  # prefixes do not survive it: elements move, equal leading and trailing dims stay
    old = [total([d]) for d in pads.dims]
    while first < min(len(old), len(shape)) and sympy.expand(old[first] - shape[first]) == 0:
        first += 1
    back = 0
    while back < min(len(old), len(shape)) - first and sympy.expand(old[-1 - back] - shape[-1 - back]) == 0:
        back += 1
    if first + back in (len(old), len(shape)):
        raise p.refuse("a size comes in, or is left out, that is 1 wherever this graph serves")
    target = tuple(p.dim(size) for size in val(node).shape[first : len(shape) - back])
    moved = p.relayout(operand(node, 0), first, len(old) - back - first, target)
    return p.become(moved)


def _moved_iota(pads: Pads, dims: tuple[Dim, ...]) -> int | None:
    """Where the iota dim went: claims follow only through added and dropped dims of 1."""
    if pads.iota is None:
        return None
    wanted = pads.sizes(pads.iota)
    found = [i for i, dim in enumerate(dims) if tuple(f.size for f in dim) == wanted]
    return found[0] if len(found) == 1 else None


def _permuted(p: Padder, node: fx.Node, order: list[int]) -> Claims:
    pads = p.pads(operand(node, 0))
    iota = order.index(pads.iota) if pads.iota is not None else None
    return Pads(tuple(pads.dims[i] for i in order), pads.uniform, iota)


def _permute(p: Padder, node: fx.Node) -> Claims:
    rank = val(node).dim()
    return _permuted(p, node, [wrap(int(i), rank) for i in operand(node, 1)])


def _transpose(p: Padder, node: fx.Node) -> Claims:
    rank = val(node).dim()
    order = list(range(rank))
    if node.target is aten.t.default:
        a, b = (0, 1) if rank == 2 else (0, 0)
    elif node.target is aten.mT.default or node.target is aten.numpy_T.default:
        a, b = rank - 2, rank - 1
    else:
        a, b = (wrap(int(i), rank) for i in (operand(node, 1), operand(node, 2)))
    if rank:
        order[a], order[b] = order[b], order[a]
    return _permuted(p, node, order)


def _unsqueeze(p: Padder, node: fx.Node) -> Claims:
    pads = p.pads(operand(node, 0))
    at = wrap(int(operand(node, 1)), val(node).dim())
    iota = None if pads.iota is None else pads.iota + (pads.iota >= at)
    return Pads((*pads.dims[:at], ONE, *pads.dims[at:]), pads.uniform, iota)


def _squeeze(p: Padder, node: fx.Node) -> Claims:
    pads = p.pads(operand(node, 0))
    rank = len(pads.dims)
    given = argument(node, 1, "dim", list(range(rank)))
    chosen = {wrap(int(i), rank) for i in (given if isinstance(given, (list, tuple)) else [given])}
    kept = [i for i in range(rank) if not (i in chosen and expression(val(operand(node, 0)).shape[i]) == 1)]
    iota = kept.index(pads.iota) if pads.iota in kept else None
    if node.target is aten.squeeze.default:  # a bucket of size 1 must not lose the dim
        if any(p.may_be_one(size) for size in val(operand(node, 0)).shape):
            raise p.refuse("a size that may be 1 would be squeezed then; name the dims")
        node.target = aten.squeeze.dims
        node.args = (operand(node, 0), [i for i in range(rank) if i not in kept])
        p.rewriter.modified = True
    return Pads(tuple(pads.dims[i] for i in kept), pads.uniform, iota)


def _expand(p: Padder, node: fx.Node) -> Claims:
    """A dim that is repeated holds copies of valid values, in its pads too."""
    pads = p.pads(operand(node, 0))
    result = val(node)
    lead = result.dim() - len(pads.dims)
    source = val(operand(node, 0))
    dims: list[Dim] = []
    copies = constant(pads.uniform, strong=True) if pads.uniform is not None else FINITE
    for i, size in enumerate(result.shape):
        same = i >= lead and expression(source.shape[i - lead]) == expression(size)
        dims.append(pads.dims[i - lead] if same else normal(p.dim(size, copies), result.dtype))
    return Pads(tuple(dims), pads.uniform, None if pads.iota is None else pads.iota + lead)


def _repeat(p: Padder, node: fx.Node) -> Claims:
    """`r` copies of a dim are a dim of two factors: which copy, and where in it."""
    pads = p.pads(operand(node, 0))
    result = val(node)
    repeats = list(operand(node, 1))
    lead = len(repeats) - len(pads.dims)
    dims: list[Dim] = []
    for i, times in enumerate(repeats):
        old: Dim = pads.dims[i - lead] if i >= lead else ONE
        number = val(times) if isinstance(times, fx.Node) else times
        count = normal(p.dim(number, FINITE), result.dtype)
        both = tuple(f for f in (*count, *old) if f.size != 1)
        dims.append(both or ONE)
    return Pads(tuple(dims), pads.uniform)


def _triangle(p: Padder, node: fx.Node) -> Claims:
    """Positions decide, and pads come last; a diagonal that is a size has no rule."""
    if isinstance(argument(node, 1, "diagonal", 0), fx.Node):
        raise p.refuse("a diagonal that is a size")
    pads = p.pads(operand(node, 0))
    for dim in (-2, -1):
        if len(pads.dims) >= 2 and not pads.prefix(dim % len(pads.dims)):
            raise p.refuse("a triangle over merged dims")

    def content(c: Content) -> Content:
        if c.is_constant(0):
            return c.weak
        return FINITE if c.finite else GARBAGE

    return Pads(tuple(normal(mapped(d, content), val(node).dtype) for d in pads.dims))


def _split(p: Padder, node: fx.Node) -> Claims:
    """Along a padded dim every piece is a slice, which begins at its logical position."""
    pads = p.pads(operand(node, 0))
    rank = len(pads.dims)
    unbind = node.target is aten.unbind.int
    dim = wrap(int(argument(node, 1 if unbind else 2, "dim", 0)), rank)
    if pads.padded(dim):
        if unbind:
            raise p.refuse("pieces of a padded dim; slice it instead")
        return _sliced(p, node, dim)
    made = []
    for piece in val(node):
        dims = list(pads.dims)
        if unbind:
            del dims[dim]
        else:
            dims[dim] = p.dim(piece.shape[dim])
        made.append(Pads(tuple(dims), pads.uniform))
    return tuple(made)


def _sliced(p: Padder, node: fx.Node, dim: int) -> Claims:
    begin: sympy.Expr = sympy.Integer(0)
    pieces = []
    for piece in val(node):
        end = begin + expression(piece.shape[dim])
        pieces.append(p.emit(aten.slice.Tensor, operand(node, 0), dim, p.size_of(begin), p.size_of(end)))
        begin = end
    return p.become_all(tuple(pieces))


def _complex_view(p: Padder, node: fx.Node) -> Claims:
    """view_as_complex drops the last dim of 2, view_as_real adds it; what is finite stays so."""
    pads = p.pads(operand(node, 0))
    dims = pads.dims[:-1] if node.target is aten.view_as_complex.default else (*pads.dims, (Factor(sympy.Integer(2)),))
    return Pads(tuple(mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in dims))


def _unfold(p: Padder, node: fx.Node) -> Claims:
    """Windows: those that lie in the valid part come first."""
    pads = p.pads(operand(node, 0))
    dim = wrap(int(operand(node, 1)), len(pads.dims))
    if isinstance(operand(node, 2), fx.Node) or isinstance(operand(node, 3), fx.Node):
        raise p.refuse("a window or step that is a size")
    x = p.compact(operand(node, 0), dim)
    p.set_arg(0, x)
    pads = p.pads(x)
    result = val(node)
    finite = all(c.finite for c in pads.contents(dim))
    windows = normal(p.dim(result.shape[dim], FINITE if finite else GARBAGE), result.dtype)
    rest = tuple(mapped(d, lambda c: c.weak) for d in pads.dims)
    return Pads((*rest[:dim], windows, *rest[dim + 1 :], p.dim(result.shape[-1])))


RULES = (
    Rule(
        (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten._reshape_copy.default),
        "none; elements are moved only where a split cuts through a length",
        "factors are regrouped",
        _view,
    ),
    Rule((aten.permute.default,), "none", "moves along", _permute),
    Rule(
        (aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default, aten.swapaxes.default),
        "none",
        "moves along",
        _transpose,
    ),
    Rule((aten.unsqueeze.default,), "none", "moves along", _unsqueeze),
    Rule((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), "none", "moves along", _squeeze),
    Rule((aten.expand.default,), "none", "copies of valid values in a new dim", _expand),
    Rule((aten.repeat.default,), "none", "the copies are a factor of their own", _repeat),
    Rule(
        (aten.tril.default, aten.triu.default),
        "none: positions decide, and pads come last",
        "0 stays 0; finite if the operand's is",
        _triangle,
    ),
    Rule(
        (
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.unsafe_split.Tensor,
            aten.unsafe_split_with_sizes.default,
            aten.unbind.int,
        ),
        "a padded dim is sliced; unbind refuses it",
        "as slice",
        _split,
    ),
    Rule(
        (aten.view_as_complex.default, aten.view_as_real.default), "none", "finite if the operand's is", _complex_view
    ),
    Rule(
        (aten.unfold.default,), "none: windows within the valid part come first", "finite if the operand's is", _unfold
    ),
)
