"""Norms: by rows without pads, or over the logical count."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.kernels import rms_norm
from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Factor, Pads, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.rules.match import argument


def _norm_last(p: Padder, node: fx.Node) -> Claims:
    """layer_norm, rms_norm: statistics over dims without pads; each row is by itself."""
    pads = p.pads(operand(node, 0))
    over = 1 if node.target is rms_norm else len(operand(node, 1))
    rank = len(pads.dims)
    if any(pads.padded(dim) for dim in range(rank - over, rank)):
        raise p.refuse("statistics over a dynamic dim")
    result = val(node)
    first = result[0] if isinstance(result, tuple) else result
    values = Pads(tuple(normal(mapped(d, lambda c: FINITE if c.finite else GARBAGE), first.dtype) for d in pads.dims))
    if not isinstance(result, tuple):
        return values
    one = (Factor(sympy.Integer(1)),)
    rows = Pads((*values.dims[: rank - over], *([one] * over)))
    return values, rows, rows


def _group_norm(p: Padder, node: fx.Node) -> Claims:
    """Over padded positions: masked mean, then masked variance of the centred values."""
    x: Any = operand(node, 0)
    pads = p.pads(x)
    rank = len(pads.dims)
    spatial = [dim for dim in range(2, rank) if pads.padded(dim)]
    if pads.padded(1):
        raise p.refuse("a dynamic number of channels")
    native = node.target is aten.native_group_norm.default
    if not spatial:
        values = Pads(tuple(mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims))
        return (
            (
                values,
                Pads((pads.dims[0], p.dim(val(node)[1].shape[1]))),
                Pads((pads.dims[0], p.dim(val(node)[1].shape[1]))),
            )
            if native
            else values
        )
    groups = int(operand(node, 6) if native else operand(node, 1))
    weight, bias = (
        (operand(node, 1), operand(node, 2)) if native else (argument(node, 2, "weight"), argument(node, 3, "bias"))
    )
    eps = float(operand(node, 7) if native else argument(node, 4, "eps", 1e-5))
    if native and any(user.args[1] != 0 and user.users for user in node.users):
        raise p.refuse("the statistics of a group norm over padded positions are read")
    value = val(x)
    sizes = [p.size_of(size) for size in value.shape]
    whole = p.emit(aten.clone.default, x, memory_format=torch.contiguous_format)
    split = p.emit(aten.view.default, whole, [sizes[0], groups, int(value.shape[1]) // groups, *sizes[2:]])
    over = list(range(2, rank + 1))
    mean = p.emit(aten.mean.dim, split, over, True)
    centred = p.emit(aten.sub.Tensor, split, mean)
    variance = p.emit(aten.mean.dim, p.emit(aten.mul.Tensor, centred, centred), over, True)
    scaled = p.emit(aten.mul.Tensor, centred, p.emit(aten.rsqrt.default, p.emit(aten.add.Tensor, variance, eps)))
    result = p.emit(aten.view.default, scaled, sizes)
    shape = [1, int(value.shape[1]), *([1] * (rank - 2))]
    if weight is not None:
        result = p.emit(aten.mul.Tensor, result, p.emit(aten.view.default, weight, shape))
    if bias is not None:
        result = p.emit(aten.add.Tensor, result, p.emit(aten.view.default, bias, shape))
    p.log("rewrite", "statistics are over the logical count")
    if native:
        claims = p.claims[result]
        p.rewriter.replace_outputs(node, (result, result, result))
        return claims
    return p.become(result)


def _batch_norm(p: Padder, node: fx.Node) -> Claims:
    """With the statistics of training each row is by itself."""
    if node.target is aten.batch_norm.default and argument(node, 5, "training"):
        raise p.refuse("batch statistics over pads")
    pads = p.pads(operand(node, 0))
    if pads.padded(1):
        raise p.refuse("a dynamic number of channels")
    values = Pads(tuple(mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims))
    result = val(node)
    empty = Pads((p.dim(0),))
    return (values, *([empty] * (len(result) - 1))) if isinstance(result, tuple) else values


RULES = (
    Rule(
        (aten.layer_norm.default, aten.native_layer_norm.default, rms_norm, aten.rms_norm.default),
        "the normalised dims have no pads",
        "finite if the operand's is",
        _norm_last,
    ),
    Rule(
        (aten.group_norm.default, aten.native_group_norm.default),
        "over padded positions: masked mean and variance",
        "garbage",
        _group_norm,
    ),
    Rule(
        (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default),
        "none; batch statistics are refused",
        "finite if the operand's is",
        _batch_norm,
    ),
)
