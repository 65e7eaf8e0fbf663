"""Complex arithmetic on pairs of reals: a complex tensor `[...]` is held as a real one `[..., 2]`, real part first.

That is how PyTorch itself lays complex numbers out, so `view_as_complex` and `view_as_real` cost nothing, and complex weights
become views of their own memory. Each rule takes an op's arguments with `Pair` in place of complex tensors. Where a product or
quotient is infinite or NaN, which of its two parts says so may differ from PyTorch, as it does between C libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Pair:
    """A complex tensor as its parts.

    Attributes:
        parts: real tensor `[..., 2]`.
    """

    parts: Tensor

    @property
    def real(self) -> Tensor:
        """The real part."""
        return self.parts.select(-1, 0)

    @property
    def imag(self) -> Tensor:
        """The imaginary part."""
        return self.parts.select(-1, 1)

    @property
    def rank(self) -> int:
        """Dims of the complex tensor."""
        return self.parts.dim() - 1

    def dim(self, index: int, extra: int = 0) -> int:
        """A dim of the complex tensor, which may count from the end, as one of `parts`."""
        return index if index >= 0 else index + self.rank + extra


Complex = Pair | Tensor | complex | float


def pair(real: Tensor, imag: Tensor) -> Pair:
    """A complex tensor from its parts, which broadcast."""
    return Pair(torch.stack(torch.broadcast_tensors(real, imag), dim=-1))


def _split(value: Complex) -> tuple[Any, Any]:
    """The real and the imaginary part; None for a part that is exactly absent."""
    if isinstance(value, Pair):
        return value.real, value.imag
    if isinstance(value, complex):
        return value.real, value.imag
    return value, None


def multiply(a: Complex, b: Complex) -> Pair:
    """`(ac - bd) + (ad + bc)i`; a real operand scales both parts."""
    (a_real, a_imag), (b_real, b_imag) = _split(a), _split(b)
    if a_imag is None:
        return pair(a_real * b_real, a_real * b_imag)
    if b_imag is None:
        return pair(a_real * b_real, a_imag * b_real)
    return pair(a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real)


def divide(a: Complex, b: Complex) -> Pair:
    """Division by a real number only: that by a complex one needs scaling against overflow.

    Raises:
        NotImplementedError: the divisor is complex.
    """
    if isinstance(b, (Pair, complex)) or not isinstance(a, Pair):
        raise NotImplementedError("the divisor is complex")
    return pair(a.real / b, a.imag / b)


def _add(sign: int) -> Callable[..., Pair]:
    def add(a: Complex, b: Complex, *, alpha: float = 1) -> Pair:
        (a_real, a_imag), (b_real, b_imag) = _split(a), _split(b)
        scale = sign * alpha
        real = a_real + (b_real if scale == 1 else b_real * scale)
        if b_imag is None:
            imag = a_imag
        else:
            scaled = b_imag if scale == 1 else b_imag * scale
            imag = scaled if a_imag is None else a_imag + scaled
        return pair(real, imag)

    return add


def _conjugate(x: Pair) -> Pair:
    return pair(x.real, -x.imag)


def _polar(length: Tensor, angle: Tensor) -> Pair:
    return pair(length * torch.cos(angle), length * torch.sin(angle))


def _exponential(x: Pair) -> Pair:
    return _polar(torch.exp(x.real), x.imag)


def _same(x: Pair) -> Pair:
    return x


def _to(
    x: Pair | Tensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> Pair | Tensor:
    """A cast or a move. To a real dtype the imaginary part is dropped, as PyTorch does."""
    if device is not None:
        x = Pair(x.parts.to(device)) if isinstance(x, Pair) else x.to(device)
    if dtype is None:
        return x
    if isinstance(x, Pair):
        return Pair(x.parts.to(dtype.to_real())) if dtype.is_complex else x.real.to(dtype)
    real = x.to(dtype.to_real())
    return pair(real, torch.zeros_like(real))


def _shaped(op: Callable[..., Tensor]) -> Callable[..., Pair]:
    """An op that takes the new sizes: the pair keeps its own dim at the end."""
    return lambda x, sizes, **_: Pair(op(x.parts, [*sizes, 2]))


def _along(op: Callable[..., Tensor]) -> Callable[..., Pair]:
    """An op along one dim, given first after the tensor."""
    return lambda x, dim=0, *rest: Pair(op(x.parts, x.dim(dim), *rest))


def _expand(x: Pair, sizes: Sequence[int], **_: Any) -> Pair:
    return Pair(x.parts.expand([*sizes, 2]))


def _unsqueeze(x: Pair, dim: int) -> Pair:
    return Pair(x.parts.unsqueeze(x.dim(dim, extra=1)))


def _transpose(x: Pair, a: int, b: int) -> Pair:
    return Pair(x.parts.transpose(x.dim(a), x.dim(b)))


def _permute(x: Pair, dims: Sequence[int]) -> Pair:
    return Pair(x.parts.permute([*(x.dim(d) for d in dims), x.rank]))


def _index(x: Pair, indices: Sequence[Tensor | None]) -> Pair:
    return Pair(aten.index.Tensor(x.parts, list(indices)))


def _concatenate(tensors: Sequence[Pair], dim: int = 0) -> Pair:
    return Pair(torch.cat([x.parts for x in tensors], tensors[0].dim(dim)))


def _sum(x: Pair, dims: Sequence[int], keepdim: bool = False) -> Pair:
    return Pair(x.parts.sum([x.dim(d) for d in dims] or list(range(x.rank)), keepdim))


RULES: dict[Any, Callable[..., Pair | Tensor]] = {
    aten.view_as_complex.default: Pair,
    aten.view_as_real.default: lambda x: x.parts,
    aten.real.default: lambda x: x.real,
    aten.imag.default: lambda x: x.imag,
    aten.complex.default: pair,
    aten.polar.default: _polar,
    aten.abs.default: lambda x: torch.hypot(x.real, x.imag),
    aten.angle.default: lambda x: torch.atan2(x.imag, x.real),
    aten._conj.default: _conjugate,
    aten._conj_physical.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    aten.resolve_conj.default: _same,
    aten.alias.default: _same,
    aten.clone.default: lambda x, **_: Pair(x.parts.clone()),
    aten._to_copy.default: _to,
    aten.mul.Tensor: multiply,
    aten.mul.Scalar: multiply,
    aten.div.Tensor: divide,
    aten.add.Tensor: _add(1),
    aten.sub.Tensor: _add(-1),
    aten.neg.default: lambda x: Pair(-x.parts),
    aten.exp.default: _exponential,
    aten.view.default: _shaped(torch.reshape),
    aten._unsafe_view.default: _shaped(torch.reshape),
    aten.reshape.default: _shaped(torch.reshape),
    aten.expand.default: _expand,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _along(torch.squeeze),
    aten.select.int: _along(aten.select.int),
    aten.slice.Tensor: _along(aten.slice.Tensor),
    aten.index_select.default: _along(torch.index_select),
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.index.Tensor: _index,
    aten.cat.default: _concatenate,
    aten.sum.dim_IntList: _sum,
}
"""Op -> its form on pairs of reals."""
