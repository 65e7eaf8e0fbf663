"""Reductions and softmax: pads must not count or win."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import source_of, val
from gaudicc.padding.extremes import fill_extreme_arg
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Factor, Pads, constant, mapped, normal, total
from gaudicc.padding.padder import Claims, Padder, aten, highest, lowest
from gaudicc.padding.rules.rule import Rule, dims_argument, operand, wrap
from gaudicc.rules.match import argument


def _kept(
    p: Padder, pads: Pads, dims: list[int], keep: bool, finite: Callable[[Content], bool], dtype: torch.dtype
) -> Pads:
    """The claims on a reduction's result: reduced dims go; other pads are finite if all they were made of is."""
    strong = all(c.strong for dim in dims for c in pads.contents(dim)) or not any(pads.padded(dim) for dim in dims)
    made: list[Dim] = []
    for i, dim in enumerate(pads.dims):
        if i in dims:
            if keep:
                made.append((Factor(sympy.Integer(1)),))
            continue
        made.append(normal(mapped(dim, lambda c: FINITE if strong and finite(c) else GARBAGE), dtype))
    return Pads(tuple(made))


def _reduction(
    fill: Callable[[torch.dtype], Any], index: int = 1, keep_index: int = 2
) -> Callable[[Padder, fx.Node], Claims]:
    def claims(p: Padder, node: fx.Node) -> Claims:
        source = val(operand(node, 0))
        dims = dims_argument(node, index, "dim", source.dim())
        pads = _fill(fill)(p, 0, dims, fill(source.dtype), f"its pads hold {fill(source.dtype)}")
        keep = bool(argument(node, keep_index, "keepdim", False))
        result = val(node)
        first = result[0] if isinstance(result, tuple) else result
        return _kept(p, pads, dims, keep, lambda c: c.finite, first.dtype)

    return claims


def _full_reduction(fill: Callable[[torch.dtype], Any]) -> Callable[[Padder, fx.Node], Claims]:
    def claims(p: Padder, node: fx.Node) -> Claims:
        source = val(operand(node, 0))
        _fill(fill)(p, 0, range(source.dim()), fill(source.dtype), f"its pads hold {fill(source.dtype)}")
        return Pads(())

    return claims


def _fill(fill: Callable[[torch.dtype], Any]) -> Callable[..., Pads]:
    return fill_extreme_arg if fill in (lowest, highest) else Padder.fill_arg


def _zero(dtype: torch.dtype) -> Any:
    return False if dtype is torch.bool else 0


def _one(dtype: torch.dtype) -> Any:
    return True if dtype is torch.bool else 1


def count(p: Padder, pads: Pads, dims: list[int]) -> Any:
    """Number of valid elements over some dims: a number, or a 0-d tensor."""
    expr = total([pads.dims[dim] for dim in dims])
    return p.resources.length(expr) if expr.free_symbols else int(expr)


def _mean(p: Padder, node: fx.Node) -> Claims:
    source = val(operand(node, 0))
    dims = dims_argument(node, 1, "dim", source.dim())
    pads = p.pads(operand(node, 0))
    if not any(pads.padded(dim) for dim in dims):
        return _kept(p, pads, dims, bool(argument(node, 2, "keepdim", False)), lambda c: c.finite, val(node).dtype)
    keep = bool(argument(node, 2, "keepdim", False))
    wide = torch.float32 if val(node).dtype in (torch.bfloat16, torch.float16) else val(node).dtype
    summed = p.emit(aten.sum.dim_IntList, operand(node, 0), dims, keep, dtype=wide)
    p.log("rewrite", "the mean is a sum over the logical count")
    divided = p.emit(aten.div.Tensor, summed, count(p, pads, dims))
    return p.become(_cast(p, divided, val(node).dtype))


def _cast(p: Padder, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    return node if val(node).dtype == dtype else p.emit(aten._to_copy.default, node, dtype=dtype)


def _variance(root: bool, with_mean: bool) -> Callable[[Padder, fx.Node], Claims]:
    """var, std, var_mean: the mean first, then the centred values with zeros in the pads."""

    def claims(p: Padder, node: fx.Node) -> Claims:
        x = operand(node, 0)
        source = val(x)
        dims = dims_argument(node, 1, "dim", source.dim())
        pads = p.pads(x)
        keep = bool(node.kwargs.get("keepdim", argument(node, 3, "keepdim", False)))
        if not any(pads.padded(dim) for dim in dims):
            kept = _kept(p, pads, dims, keep, lambda c: c.finite, source.dtype)
            return (kept, kept) if with_mean else kept
        correction: Any = node.kwargs.get("correction", 1 if len(node.args) < 3 else operand(node, 2))
        correction = int(correction) if not isinstance(correction, fx.Node) and correction is not None else 1
        wide = (
            x
            if source.dtype in (torch.float32, torch.float64)
            else p.emit(aten._to_copy.default, x, dtype=torch.float32)
        )
        number = count(p, pads, dims)
        mean = p.emit(aten.div.Tensor, p.emit(aten.sum.dim_IntList, wide, dims, True), number)
        centred = p.emit(aten.sub.Tensor, wide, mean)
        squares = p.emit(aten.sum.dim_IntList, p.emit(aten.mul.Tensor, centred, centred), dims, keep)
        freedom = (
            p.emit(aten.clamp.default, p.emit(aten.sub.Tensor, number, correction), 0)
            if isinstance(number, fx.Node)
            else max(number - correction, 0)
        )
        result = p.emit(aten.div.Tensor, squares, freedom)
        result = _cast(p, p.emit(aten.sqrt.default, result) if root else result, source.dtype)
        p.log("rewrite", "the variance is over the logical count")
        if not with_mean:
            return p.become(result)
        shown = mean if keep else p.emit(aten.squeeze.dims, mean, dims)
        return p.become_all((result, _cast(p, shown, source.dtype)))

    return claims


def _logsumexp(p: Padder, node: fx.Node) -> Claims:
    source = val(operand(node, 0))
    dims = dims_argument(node, 1, "dim", source.dim())
    pads = p.fill_arg(0, dims, float("-inf"), "its pads hold -inf")
    return _kept(p, pads, dims, bool(argument(node, 2, "keepdim", False)), lambda c: c.finite, val(node).dtype)


def _norm(p: Padder, node: fx.Node) -> Claims:
    source = val(operand(node, 0))
    order = argument(node, 1, "ord", 2)
    dims = dims_argument(node, 2, "dim", source.dim())
    pads = p.pads(operand(node, 0))
    if any(pads.padded(dim) for dim in dims) and (not isinstance(order, (int, float)) or order < 0):
        raise p.refuse(f"the norm of order {order} over pads")
    pads = p.fill_arg(0, dims, 0, "its pads hold 0")
    return _kept(p, pads, dims, bool(argument(node, 3, "keepdim", False)), lambda c: c.finite, val(node).dtype)


def _extreme(fill: Callable[[torch.dtype], Any]) -> Callable[[Padder, fx.Node], Claims]:
    """argmax, argmin, max.dim, min.dim: among equals the first wins, and valid positions come first."""

    def claims(p: Padder, node: fx.Node) -> Claims:
        x = operand(node, 0)
        source = val(x)
        dim = argument(node, 1, "dim")
        if dim is None:
            pads = p.pads(x)
            if pads.padded_dims and source.dim() > 1:
                raise p.refuse("a position over several padded dims; name the dim")
            dim = 0
        dim = wrap(int(dim), source.dim()) if source.dim() else 0
        keep = bool(argument(node, 2, "keepdim", False))
        if source.dim() == 0:
            return (Pads(()), Pads(())) if isinstance(val(node), tuple) else Pads(())
        p.set_arg(0, p.compact(x, dim))
        value = fill(source.dtype)
        pads = fill_extreme_arg(p, 0, [dim], value, f"its pads hold {value}, and valid positions come first")
        kept = _kept(p, pads, [dim], keep, lambda c: c.finite, source.dtype)
        index = _kept(p, pads, [dim], keep, lambda c: False, torch.int64)
        return (kept, index) if isinstance(val(node), tuple) else index

    return claims


def _softmax(log: bool) -> Callable[[Padder, fx.Node], Claims]:
    def claims(p: Padder, node: fx.Node) -> Claims:
        source = val(operand(node, 0))
        dim = wrap(int(operand(node, 1)), source.dim())
        pads = p.fill_arg(0, [dim], float("-inf"), "its pads hold -inf")
        value = GARBAGE
        if not log and not p.strict:  # a valid row without a finite entry is NaN, in its pads too
            value = constant(0)
            p.journal.finite[f"every row of a softmax has a finite entry, at {source_of(node)}"] = None
        made = []
        for i, d in enumerate(pads.dims):
            if i == dim:
                made.append(mapped(d, lambda c: value))
            else:
                strong = all(c.strong for c in pads.contents(dim))
                made.append(mapped(d, lambda c: FINITE if c.finite and strong and not log else GARBAGE))  # noqa: B023
        return Pads(tuple(made))

    return claims


RULES = (
    Rule(
        (aten.sum.dim_IntList, aten.nansum.default),
        "0 over the reduced dims",
        "finite if the operand's is",
        _reduction(_zero),
    ),
    Rule((aten.sum.default,), "0 everywhere", "none left", _full_reduction(_zero)),
    Rule(
        (aten.count_nonzero.default, aten.count_nonzero.dim_IntList),
        "0 over the reduced dims",
        "garbage",
        _reduction(_zero),
    ),
    Rule((aten.any.dim, aten.any.dims), "False over the reduced dims", "garbage", _reduction(_zero)),
    Rule((aten.any.default,), "False everywhere", "none left", _full_reduction(_zero)),
    Rule((aten.all.dim, aten.all.dims), "True over the reduced dims", "garbage", _reduction(_one)),
    Rule((aten.all.default, aten.prod.default), "1 everywhere", "none left", _full_reduction(_one)),
    Rule((aten.prod.dim_int,), "1 over the reduced dim", "finite if the operand's is", _reduction(_one)),
    Rule((aten.amax.default,), "lowest value over the reduced dims", "finite if the operand's is", _reduction(lowest)),
    Rule(
        (aten.amin.default,), "highest value over the reduced dims", "finite if the operand's is", _reduction(highest)
    ),
    Rule((aten.max.default,), "lowest value everywhere", "none left", _full_reduction(lowest)),
    Rule((aten.min.default,), "highest value everywhere", "none left", _full_reduction(highest)),
    Rule(
        (aten.argmax.default, aten.max.dim),
        "lowest value; positions are those without padding",
        "garbage positions",
        _extreme(lowest),
    ),
    Rule(
        (aten.argmin.default, aten.min.dim),
        "highest value; positions are those without padding",
        "garbage positions",
        _extreme(highest),
    ),
    Rule((aten.mean.dim, aten.mean.default), "0, divided by the logical count", "finite if the operand's is", _mean),
    Rule(
        (aten.var.correction, aten.var.dim),
        "0 in the centred values, divided by the logical count",
        "garbage",
        _variance(False, False),
    ),
    Rule((aten.std.correction, aten.std.dim), "as var", "garbage", _variance(True, False)),
    Rule((aten.var_mean.correction,), "as var and mean", "garbage", _variance(False, True)),
    Rule((aten.logsumexp.default,), "-inf over the reduced dims", "finite if the operand's is", _logsumexp),
    Rule(
        (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim),
        "0 over the reduced dims; orders below 0 refused",
        "finite if the operand's is",
        _norm,
    ),
    Rule(
        (aten._softmax.default, aten.softmax.int),
        "-inf over the dim",
        "0 there (strict mode: garbage); finite elsewhere if the operand's is",
        _softmax(False),
    ),
    Rule((aten._log_softmax.default, aten.log_softmax.int), "-inf over the dim", "garbage", _softmax(True)),
)
