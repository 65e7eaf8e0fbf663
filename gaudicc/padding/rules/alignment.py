"""Operands whose positions correspond are laid out alike: a merged dim of one may be a plain one of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from gaudicc.padding.layout import GARBAGE, Dim, Pads, constant, mapped, total
from gaudicc.padding.padder import Padder


def aligned(p: Padder, tensors: Sequence[Any], dims: Sequence[int]) -> tuple[list[Any], Dim | None]:
    """Lays out one dim of each tensor alike.

    Args:
        p: of the graph.
        tensors: with dims.
        dims: the dim of each.

    Returns:
        The tensors; how the dim is laid out, for those that hold one value everywhere and so are laid out in any way. None
        where the dims differ in length: then each is laid out as without padding.
    """
    lengths = {total([p.pads(t).dims[d]]) for t, d in zip(tensors, dims, strict=True)}
    layouts = {p.pads(t).sizes(d) for t, d in zip(tensors, dims, strict=True) if p.pads(t).uniform is None}
    if len(lengths) > 1 or len(layouts) > 1:
        tensors = [p.compact(t, d) for t, d in zip(tensors, dims, strict=True)]
    if len(lengths) > 1:
        return list(tensors), None
    ordered = sorted(zip(tensors, dims, strict=True), key=lambda entry: p.pads(entry[0]).uniform is not None)
    tensor, dim = ordered[0]
    return list(tensors), p.pads(tensor).dims[dim]


def laid_out(pads: Pads, like: Sequence[Dim | None]) -> Pads:
    """The claims on a tensor; one that holds one value everywhere is laid out as `like` says, dim by dim."""
    if pads.uniform is None:
        return pads
    content = constant(pads.uniform, strong=True)
    dims = (own if one is None else mapped(one, lambda c: content) for own, one in zip(pads.dims, like, strict=True))
    return Pads(tuple(dims), pads.uniform)


def relaid(p: Padder, tensor: fx.Node, target: Sequence[Dim]) -> fx.Node:
    """A tensor that is broadcast to some dims, laid out as they are."""
    rank = len(p.pads(tensor).dims)
    for dim, like in zip(range(rank), target[len(target) - rank :], strict=True):
        own = p.pads(tensor).dims[dim]
        if (
            p.pads(tensor).uniform is None
            and total([own]) != 1
            and p.pads(tensor).sizes(dim) != tuple(f.size for f in like)
        ):
            if total([own]) != total([like]):
                raise p.refuse("operands of different layouts")
            tensor = p.relayout(tensor, dim, 1, (mapped(like, lambda c: GARBAGE),))
    return tensor
