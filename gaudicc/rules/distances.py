"""Rules for distances between rows, `cdist` and `pdist`, and for slices of bounded norm, `renorm`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
MOST = 1 << 26  # entries of the table of differences: 256 MiB in float32
_BY_PRODUCT = 25  # rows from which eager forms Euclidean distances by a matrix product


def cdist(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Distances `[..., P, R]` between the rows of `[..., P, M]` and of `[..., R, M]`."""
    if p == 2 and _by_product(a, b, compute_mode):
        return _euclidean(a, b)
    differences = aten.abs(aten.sub.Tensor(aten.unsqueeze(a, -2), aten.unsqueeze(b, -3)))
    if p == math.inf:  # the largest that is a number, here; `pdist` has NaN stay
        zero = aten.full([], 0, dtype=differences.dtype, device=differences.device)
        differences = aten.where.self(aten.isnan(differences), zero, differences)
    return norm_of(differences, p)


def norm_of(differences: Tensor, p: float) -> Tensor:
    """The p-norm of nonnegative entries along the last dim, as eager's kernels compute it."""
    shape = list(differences.shape[:-1])
    if not differences.numel():
        empty: Tensor = aten.full(shape, 0, dtype=differences.dtype, device=differences.device)
        return empty
    if p == math.inf:
        result: Tensor = aten.amax(differences, [-1])
    elif p == 0:
        counted = aten.clamp(aten.ceil(differences), None, 1)  # NaN stays
        result = aten.sum.dim_IntList(counted, [-1])
    elif p == 1:
        result = aten.sum.dim_IntList(differences, [-1])
    elif p == 2:
        result = aten.sqrt(aten.sum.dim_IntList(aten.mul.Tensor(differences, differences), [-1]))
    else:
        total = aten.sum.dim_IntList(aten.pow.Tensor_Scalar(differences, p), [-1])
        result = aten.pow.Tensor_Scalar(total, 1 / p)
    return result


def _by_product(a: Tensor, b: Tensor, compute_mode: int | None) -> bool:
    many = a.shape[-2] > _BY_PRODUCT or b.shape[-2] > _BY_PRODUCT
    return compute_mode == 1 or (compute_mode in (None, 0) and many)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Square roots of `|a|^2 - 2ab + |b|^2`, by one matrix product."""
    rows = aten.sum.dim_IntList(aten.mul.Tensor(a, a), [-1], True)
    columns = aten.sum.dim_IntList(aten.mul.Tensor(b, b), [-1], True)
    product = torch.matmul(aten.mul.Tensor(a, -2), aten.transpose.int(b, -2, -1))
    squares = aten.add.Tensor(aten.add.Tensor(product, rows), aten.transpose.int(columns, -2, -1))
    result: Tensor = aten.sqrt(aten.clamp(squares, 0))
    return result


def _small(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> str | None:
    entries = math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])) * a.shape[-2] * b.shape[-2] * a.shape[-1]
    if not (p == 2 and _by_product(a, b, compute_mode)) and entries > MOST:
        return f"its table of differences has {entries} entries, more than {MOST}"
    return None


def pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """Distances between each two rows of `[n, m]`, those of the upper triangle in order."""
    count = x.shape[0]
    if count < 2:
        empty: Tensor = aten.full([0], 0, dtype=x.dtype, device=x.device)
        return empty
    pairs = aten.triu_indices(count, count, 1, dtype=torch.int64, device=x.device)
    first = aten.index_select(x, 0, aten.select.int(pairs, 0, 0))
    second = aten.index_select(x, 0, aten.select.int(pairs, 0, 1))
    return norm_of(aten.abs(aten.sub.Tensor(first, second)), p)


def _small_pairs(x: Tensor, p: float = 2.0) -> str | None:
    entries = x.shape[0] ** 2 * x.shape[1] // 2
    return f"its table of differences has {entries} entries, more than {MOST}" if entries > MOST else None


def renorm(x: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Slices whose norm is larger scaled down to it; norms in float32, the factor in the dtype of the tensor, as eager has it."""
    others = [d for d in range(x.dim()) if d != dim % x.dim()]
    norm = aten.linalg_vector_norm(x, p, others, True, dtype=torch.float32)
    scaled = aten.mul.Tensor(aten.reciprocal(aten.add.Tensor(norm, 1e-7)), maxnorm)
    one = aten.full([], 1.0, dtype=torch.float32, device=x.device)
    factor = aten.where.self(aten.gt.Scalar(norm, maxnorm), scaled, one)
    result: Tensor = aten.mul.Tensor(x, aten._to_copy(factor, dtype=x.dtype))
    return result


def _half(x: Tensor, p: float, dim: int, maxnorm: float) -> str | None:
    return None if x.dtype in (torch.bfloat16, torch.float16) else "PyTorch's decomposition does"


RULES = (
    Rule(
        "renorm", (aten.renorm.default,), renorm, check=_half, numerics=Numerics.ROUNDING,
        cost="reads the tensor twice",
    ),
    Rule(
        "cdist", (aten.cdist.default, aten._cdist_forward.default), cdist, check=_small, numerics=Numerics.ROUNDING,
        cost="a table of all differences, rows times rows times width; none where a matrix product serves",
    ),
    Rule(
        "pdist", (aten._pdist_forward.default,), pdist, check=_small_pairs, numerics=Numerics.ROUNDING,
        cost="a table of all differences, half of rows times rows times width",
    ),
)  # fmt: skip
