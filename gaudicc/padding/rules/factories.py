"""Factories: pads hold what the op makes everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Pads, constant, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument


def _made(value: Any) -> Any:
    def claims(p: Padder, node: fx.Node) -> Claims:
        given = value(node) if callable(value) else value
        filled = given if not isinstance(given, fx.Node) else p.value(given)
        if isinstance(filled, fx.Node):
            base = p.raw(aten.expand.default, filled, _shape_of(p, node))
            cast = (
                base
                if val(base).dtype == val(node).dtype
                else p.raw(aten._to_copy.default, base, dtype=val(node).dtype)
            )
            p.claims[cast] = Pads(p.dims_of(val(node), GARBAGE))
            return p.become(cast)
        if filled is None:
            return Pads(p.dims_of(val(node), GARBAGE))
        cast_value = torch.full((), filled, dtype=val(node).dtype).item()
        return Pads(p.dims_of(val(node), constant(cast_value, strong=True)), uniform=cast_value)

    return claims


def _shape_of(p: Padder, node: fx.Node) -> list[Any]:
    return [p.size_of(size) for size in val(node).shape]


def _like(value: Any) -> Any:
    """Factories that take their shape from a tensor keep its layout too."""

    def claims(p: Padder, node: fx.Node) -> Claims:
        given = value(node) if callable(value) else value
        if isinstance(filled := p.value(given), fx.Node):
            zeros = p.emit(aten.zeros_like.default, operand(node, 0), dtype=val(node).dtype)
            return p.become(p.emit(aten.fill.Tensor, zeros, filled))
        pads = p.pads(operand(node, 0))
        if given is None:
            return Pads(tuple(mapped(d, lambda c: GARBAGE) for d in pads.dims))
        cast = torch.full((), given, dtype=val(node).dtype).item()
        return Pads(tuple(mapped(d, lambda c: constant(cast, strong=True)) for d in pads.dims), uniform=cast)

    return claims


def _arange(p: Padder, node: fx.Node) -> Claims:
    """Positions go on in the pads; a start that is a size reads the logical length."""
    start = 0 if node.target is aten.arange.default else operand(node, 0)
    step = argument(node, 2, "step", 1) if node.target is aten.arange.start_step else 1
    result = val(node)
    if isinstance(step, fx.Node):
        raise p.refuse("a step that is a size")
    begins = p.value(start)
    if isinstance(begins, fx.Node):
        if step != int(step):
            raise p.refuse("a start that is a size together with a step that is no integer")
        steps: Any = p.resources.iota(expression(result.shape[0]))
        steps = steps if step == 1 else p.raw(aten.mul.Tensor, steps, int(step))
        base = p.raw(aten.add.Tensor, steps, begins)
        cast = base if val(base).dtype == result.dtype else p.raw(aten._to_copy.default, base, dtype=result.dtype)
        p.claims[cast] = Pads(normal_dims(p, result, FINITE))
        return p.become(cast)
    plain = start == 0 and step == 1
    return Pads(normal_dims(p, result, FINITE), iota=0 if plain and not result.dtype.is_floating_point else None)


def _eye(p: Padder, node: fx.Node) -> Claims:
    """Off the diagonal is 0: a pad row of a square one meets it in a pad column only."""
    rows, columns = val(node).shape
    square = expression(rows) == expression(columns)
    return Pads(normal_dims(p, val(node), constant(0) if square else FINITE))


def _fill(p: Padder, node: fx.Node) -> Claims:
    """fill: the value of a tensor of no dims is valid everywhere."""
    value = p.pads(operand(node, 1))
    content = FINITE if value.uniform is None else constant(value.uniform, strong=True)
    return Pads(tuple(normal(mapped(d, lambda c: content), val(node).dtype) for d in p.pads(operand(node, 0)).dims))


def normal_dims(p: Padder, result: torch.Tensor, content: Content) -> tuple[Dim, ...]:
    """Fresh dims with a content as the dtype allows it."""
    return tuple(normal(d, result.dtype) for d in p.dims_of(result, content))


def _second(node: fx.Node) -> Any:
    return operand(node, 1) if len(node.args) > 1 else node.kwargs["fill_value"]


def _third(node: fx.Node) -> Any:
    return operand(node, 2) if len(node.args) > 2 else node.kwargs["fill_value"]


RULES = (
    Rule((aten.zeros.default, aten.new_zeros.default), "none", "constant 0", _made(0)),
    Rule((aten.ones.default, aten.new_ones.default), "none", "constant 1", _made(1)),
    Rule((aten.full.default,), "none", "the constant", _made(_second)),
    Rule((aten.new_full.default,), "none", "the constant", _made(_third)),
    Rule((aten.scalar_tensor.default,), "none", "no dims", _made(lambda node: operand(node, 0))),
    Rule((aten.empty.memory_format, aten.new_empty.default), "none", "garbage", _made(None)),
    Rule((aten.zeros_like.default, aten.zero.default), "none", "constant 0", _like(0)),
    Rule((aten.ones_like.default,), "none", "constant 1", _like(1)),
    Rule((aten.full_like.default,), "none", "the constant", _like(_second)),
    Rule((aten.empty_like.default,), "none", "garbage", _like(None)),
    Rule((aten.fill.Scalar,), "none", "the constant", _like(_second)),
    Rule((aten.fill.Tensor,), "none", "copies of a valid value", _fill),
    Rule((aten.eye.default, aten.eye.m), "none", "0 if it is square, else finite", _eye),
    Rule(
        (aten.arange.default, aten.arange.start, aten.arange.start_step),
        "none; a start that is a size reads the length",
        "positions go on",
        _arange,
    ),
)
