"""What the pad region of a tensor holds: contents, factors of a dim, and the claims on a whole tensor.

A dim of physical size `e(P)` has `e(L)` valid positions, where `P` are the physical and `L` the logical sizes of the
program's dimensions: the program run without padding would have a dim of exactly that size. A size expression says both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import sympy
import torch

Number = Any  # bool | int | float | complex


class Kind(Enum):
    """How much is known of a pad region."""

    CONSTANT = "constant"
    FINITE = "finite"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True)
class Content:
    """What the positions hold where one factor is pad and all others are valid.

    Attributes:
        kind: constant, finite (no NaN, no infinity; floating point only) or garbage.
        value: the constant.
        strong: a constant that holds wherever this factor is pad, also where others are pad too.
    """

    kind: Kind
    value: Number = None
    strong: bool = False

    def __str__(self) -> str:
        return f"constant {self.value}" if self.kind is Kind.CONSTANT else self.kind.value

    @property
    def finite(self) -> bool:
        """Whether nothing in it is NaN or infinite."""
        return self.kind is Kind.FINITE or (self.kind is Kind.CONSTANT and is_finite(self.value))

    def is_constant(self, value: Number) -> bool:
        """Whether it is this constant."""
        same = self.value == value or (self.value != self.value and value != value)
        return self.kind is Kind.CONSTANT and bool(same)

    @property
    def weak(self) -> Content:
        """The same, without a claim on positions where other dims are pad."""
        return replace(self, strong=False) if self.strong else self


GARBAGE = Content(Kind.GARBAGE)
FINITE = Content(Kind.FINITE)


def is_finite(value: Number) -> bool:
    """Whether a number is neither NaN nor infinite."""
    return not isinstance(value, (float, complex)) or math.isfinite(abs(value))


def constant(value: Number, *, strong: bool = False) -> Content:
    """Constant content; NaN is garbage, for it equals nothing."""
    return GARBAGE if value != value else Content(Kind.CONSTANT, value, strong)


def join(a: Content, b: Content) -> Content:
    """The least claim that both satisfy."""
    if a.kind is b.kind is Kind.CONSTANT and a.value == b.value:
        return a if a.strong <= b.strong else b
    return FINITE if a.finite and b.finite else GARBAGE


@dataclass(frozen=True, slots=True)
class Factor:
    """One prefix-valid factor of a dim.

    Attributes:
        size: its size, an expression over the program's symbols.
        content: what its pad positions hold; None for a size without symbols, which has no pads.
    """

    size: sympy.Expr
    content: Content | None = None


Dim = tuple[Factor, ...]
"""A dim as the row-major product of its factors: `[batch, sequence] -> [batch * sequence]` has two."""


@dataclass(frozen=True, slots=True)
class Pads:
    """The claims on one tensor.

    Attributes:
        dims: one entry per dim.
        uniform: the value of every element, if all are the same.
        iota: the dim along which each element equals its position, if there is one.
        zeros: a dim without pads and the (logical) position in it from which on every element is 0, if there is one.
    """

    dims: tuple[Dim, ...]
    uniform: Number = None
    iota: int | None = None
    zeros: tuple[int, sympy.Expr] | None = None

    def padded(self, dim: int) -> bool:
        """Whether a dim has pads."""
        return any(factor.content is not None for factor in self.dims[dim])

    def prefix(self, dim: int) -> bool:
        """Whether the valid positions of a dim are its first ones: positions mean the same as without padding."""
        return all(factor.content is None for factor in self.dims[dim][1:])

    @property
    def padded_dims(self) -> tuple[int, ...]:
        """The dims that have pads."""
        return tuple(dim for dim in range(len(self.dims)) if self.padded(dim))

    def contents(self, dim: int) -> tuple[Content, ...]:
        """The contents of the padded factors of a dim."""
        return tuple(factor.content for factor in self.dims[dim] if factor.content is not None)

    def sizes(self, dim: int) -> tuple[sympy.Expr, ...]:
        """The factor sizes of a dim."""
        return tuple(factor.size for factor in self.dims[dim])

    @property
    def layout(self) -> tuple[tuple[sympy.Expr, ...], ...]:
        """The factor sizes of every dim."""
        return tuple(self.sizes(dim) for dim in range(len(self.dims)))


def with_content(dim: Dim, content: Content) -> Dim:
    """The dim with this content in every padded factor."""
    return tuple(factor if factor.content is None else Factor(factor.size, content) for factor in dim)


def mapped(dim: Dim, change: Any) -> Dim:
    """The dim with `change(content)` in every padded factor."""
    return tuple(factor if factor.content is None else Factor(factor.size, change(factor.content)) for factor in dim)


def total(dims: Sequence[Dim]) -> sympy.Expr:
    """Number of elements of some dims."""
    return sympy.Mul(*(factor.size for dim in dims for factor in dim))


def normal(dims: Dim, dtype: torch.dtype) -> Dim:
    """Contents as a dtype allows them: what is no float is constant or garbage, never merely finite."""
    floating = dtype.is_floating_point or dtype.is_complex
    return mapped(dims, lambda c: GARBAGE if c.kind is Kind.FINITE and not floating else c)


def weaker(a: Pads, b: Pads) -> Pads:
    """The least claims that both satisfy; the layouts must be equal."""
    dims = tuple(
        tuple(
            Factor(x.size, None if x.content is None or y.content is None else join(x.content, y.content))
            for x, y in zip(da, db, strict=True)
        )
        for da, db in zip(a.dims, b.dims, strict=True)
    )
    iota, zeros = (a.iota if a.iota == b.iota else None), (a.zeros if a.zeros == b.zeros else None)
    return Pads(dims, a.uniform if a.uniform == b.uniform else None, iota, zeros)


def layout_of(claims: Any) -> Any:
    """The layout of one claim, or of each of several; None for what has no pads."""
    if isinstance(claims, tuple):
        return tuple(map(layout_of, claims))
    return claims.layout if isinstance(claims, Pads) else None


def shared(a: Any, b: Any) -> Any:
    """`weaker` of two claims, or of each of several; None for what has no pads."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return tuple(map(shared, a, b))
    return weaker(a, b) if isinstance(a, Pads) and isinstance(b, Pads) else None
