"""Loops: what is claimed of values that trips hand on, and of what they add to a stack.

A loop over a padded size makes as many trips as the size is long, so that no trip works on a pad of it. What is claimed of
a value that trips hand on holds before the first one and is kept by each.
"""

from __future__ import annotations

from torch import fx

from gaudicc.fake_values import fakes
from gaudicc.padding.layout import Dim, Factor, Pads, mapped, total, weaker
from gaudicc.padding.padder import Claims, Padder
from gaudicc.padding.sizes import expression


def give_length(padder: Padder, loop: fx.Node) -> Dim:
    """Lets a loop make as many trips as its size is long; gives the first dim of its stacks, none if only data ends it."""
    if loop.args[1] is None:
        return ()
    limit = expression(fakes(loop.args[1]))
    if limit.free_symbols:
        padder.set_arg(2, padder.resources.length(limit))
    return padder.dim(limit)


def started(operands: tuple[Claims, ...], carried: int) -> tuple[Claims, ...]:
    """The claims on what the body is given in the first trip: its number and the operands."""
    return (Pads(()), *map(_by_elements, operands[:carried]), *operands[carried:])


def handed_on(padder: Padder, before: tuple[Claims, ...], results: tuple[Claims, ...]) -> tuple[Claims, ...]:
    """The claims on what the body is given that hold before and after a trip, from those before it and on what it gives."""
    kept = list(before)
    for i, (old, new) in enumerate(zip(before[1:], map(_by_elements, results), strict=False), 1):
        if not isinstance(old, Pads) or not isinstance(new, Pads) or old.layout != new.layout:
            raise padder.refuse("what its trips hand on is padded otherwise after a trip")
        kept[i] = weaker(old, new)
    return tuple(kept)


def _by_elements(claims: Claims) -> Claims:
    """Claims on what the pads hold, but not that all elements are one number, or their positions."""
    return Pads(tuple(map(_plain, claims.dims))) if isinstance(claims, Pads) else claims


def _plain(dim: Dim) -> Dim:
    """A dim without pads has one factor."""
    return dim if any(factor.content is not None for factor in dim) else (Factor(total([dim])),)


def stacked(claims: Claims, rows: Dim) -> Claims:
    """The claims on a stack, whose rows beyond the last trip are pads."""
    assert isinstance(claims, Pads), "only tensors are stacked"
    return Pads((rows, *(mapped(dim, lambda content: content.weak) for dim in claims.dims)))
