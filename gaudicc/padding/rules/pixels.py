"""Ops that move elements between the channels and the places of a plane: claims move with them."""

from __future__ import annotations

import sympy
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Dim, Factor, Pads, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand

_PLANE = 2
"""The last dims are the rows and columns of a plane, the one before them the channels."""


def _pixel_shuffle(p: Padder, node: fx.Node) -> Claims:
    """`[channels * r * r, rows, columns]` -> `[channels, rows * r, columns * r]`: each place becomes `r x r` places."""
    pads, r = _of_static_channels(p, node), int(operand(node, 1))
    lead, (rows, columns) = pads.dims[: -_PLANE - 1], pads.dims[-_PLANE:]
    inner = (Factor(sympy.Integer(r)),) if r != 1 else ()
    return Pads((*lead, p.dim(val(node).shape[-_PLANE - 1]), rows + inner, columns + inner), pads.uniform)


def _pixel_unshuffle(p: Padder, node: fx.Node) -> Claims:
    """The other way round. A length is a multiple of `r`, or the op raises: so no `r x r` places are partly pad."""
    rank = val(node).dim()
    for dim in (rank - 2, rank - 1):
        p.set_arg(0, p.compact(operand(node, 0), dim))
    pads = _of_static_channels(p, node)
    plane: list[Dim] = []
    for dim in (-2, -1):
        finite = all(c.finite for c in pads.contents(dim))
        plane.append(normal(p.dim(val(node).shape[dim], FINITE if finite else GARBAGE), val(node).dtype))
    lead = tuple(mapped(d, lambda c: c.weak) for d in pads.dims[: -_PLANE - 1])
    return Pads((*lead, p.dim(val(node).shape[-_PLANE - 1]), *plane), pads.uniform)


def _channel_shuffle(p: Padder, node: fx.Node) -> Claims:
    pads = p.pads(operand(node, 0))
    if pads.padded(1):
        raise p.refuse("a dynamic number of channels")
    return Pads((pads.dims[0], p.dim(val(node).shape[1]), *pads.dims[2:]), pads.uniform)


def _of_static_channels(p: Padder, node: fx.Node) -> Pads:
    pads = p.pads(operand(node, 0))
    if pads.padded(len(pads.dims) - _PLANE - 1):
        raise p.refuse("a dynamic number of channels")
    return pads


RULES = (
    Rule((aten.pixel_shuffle.default,), "none", "moves along; a place becomes a factor of its own", _pixel_shuffle),
    Rule(
        (aten.pixel_unshuffle.default,),
        "none; moved to logical positions where places were merged",
        "finite if the operand's is",
        _pixel_unshuffle,
    ),
    Rule((aten.channel_shuffle.default,), "the channels have no pads", "moves along", _channel_shuffle),
)
