"""Words for matching normalisation over the last dim: the root of a mean of squares or of a variance, as people write it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rules.match import argument, constant, only_user, same_sizes, through_casts

aten = torch.ops.aten
_DEVIATIONS = (aten.std.dim, aten.std.correction)
_DRAWN = (aten.linalg_vector_norm.default, aten.linalg_norm.default, *_DEVIATIONS)
ROOTS = (aten.rsqrt.default, aten.sqrt.default, aten.pow.Tensor_Scalar, *_DRAWN)
_BEHIND = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.clamp_min.default, aten.expand_as.default)
_VARIANCES = (aten.var.dim, aten.var.correction, aten.var_mean.dim, aten.var_mean.correction)


@dataclass(frozen=True)
class Normed:
    """A tensor over the root of its mean square.

    Attributes:
        end: the node that gives it.
        x: the tensor, after its cast to float32.
        eps: added under the root.
        variance: whether the mean square is written as the variance of what `x` is without its mean.
        weight: one number per entry of the last dim that the tensor was multiplied by before it was divided.
    """

    end: fx.Node
    x: fx.Node
    eps: float
    variance: bool = False
    weight: fx.Node | None = None


def normed(root: fx.Node) -> Normed | str | None:
    """What a root, reciprocal or not, normalises; why it is no norm, or None where it is none at all.

    Args:
        root: a call of one of `ROOTS`.
    """
    if root.target in _DRAWN:
        return _drawn(root)
    shifted: Any = root.args[0]
    eps = constant(shifted, aten.add.Tensor)
    if not isinstance(shifted, fx.Node) or not (_is_inverse(root) or root.target is aten.sqrt.default):
        return None
    if eps is None:
        return "no epsilon is added under its root" if isinstance(_spread(shifted), tuple) else None
    mean: Any = shifted.args[0]
    spread = _spread(mean)
    if not isinstance(spread, tuple):
        return spread
    x, variance = spread
    if val(x).dtype != torch.float32 or val(mean).dtype != torch.float32:
        return f"its statistics are {val(mean).dtype}"
    end, read = _scaled(root) or (root, [])
    for node, weight in [pair for each in read for pair in _with_weights(each)]:
        if variance and val(node).dtype == torch.float32 and _alike(without_mean(node), x):
            return Normed(end, node, eps, variance, weight)
        if not variance and _same(node, x):
            return Normed(end, x, eps, weight=weight)
    wanted = "what it divides is not its input without the mean"
    return wanted if variance else "the reciprocal root is not multiplied with the input"


def _drawn(root: fx.Node) -> str | None:
    """Why a norm or a deviation, a root without an epsilon under it, is no root of a normalisation; None if it is of none."""
    x: Any = root.args[0]
    centred = root.target in _DEVIATIONS
    if not centred and argument(root, 1, "ord") not in (2, None):
        return None
    divisor = root
    # A factor, an epsilon behind the root, or a bound.
    while (user := only_user(divisor, *_BEHIND)) is not None and divisor is user.args[0]:
        divisor = user
    quotient = only_user(divisor, aten.div.Tensor)
    above = quotient.args[0] if quotient is not None and quotient.args[1] is divisor else None
    sources = [node for node, _ in _with_weights(above)] if isinstance(above, fx.Node) else []
    if not any(_alike(without_mean(node), x) if centred else _same(node, x) for node in sources):
        return None
    if centred and _is_unbiased(root):
        return "its variance divides by one less than the size"
    return "its root is drawn before an epsilon is added, which fused kernels add under the root"


def _with_weights(node: fx.Node) -> list[tuple[fx.Node, fx.Node | None]]:
    """A node, and if it is a product with one float32 number per entry of the last dim, its other factor and these."""
    readings: list[tuple[fx.Node, fx.Node | None]] = [(node, None)]
    if node.target is aten.mul.Tensor and len(node.all_input_nodes) == 2 and val(node).dtype == torch.float32:
        for x, row in (node.all_input_nodes, reversed(node.all_input_nodes)):
            if is_row(row, x) and val(row).dtype == torch.float32:
                readings.append((x, row))
    return readings


def is_row(row: fx.Node, x: fx.Node) -> bool:
    """Whether a node is one number per entry of the last dim of another."""
    return same_sizes(val(row).shape, val(x).shape[-1:])


def _alike(node: fx.Node | None, x: fx.Node) -> bool:
    """Whether a node has the values of `x`: the same node, or cast another time."""
    return node is not None and through_casts(node) is through_casts(x)


def _same(node: fx.Node, x: fx.Node) -> bool:
    """Whether a node has the values of `x`, or is the same difference again."""
    source = without_mean(x)
    again = source is not None and val(node).dtype == val(x).dtype and _alike(without_mean(node), source)
    return again or _alike(node, x)


def without_mean(node: fx.Node) -> fx.Node | None:
    """What a node is without its mean over the last dim, as the mean reads it."""
    x, mean = node.args if node.target is aten.sub.Tensor and not node.kwargs else (None, None)
    if not isinstance(x, fx.Node) or not isinstance(mean, fx.Node):
        return None
    if mean.target is operator.getitem and mean.args[1] == 1:
        source: Any = mean.args[0]
        is_mean = source.target in _VARIANCES and _over_last(source, keepdim=_kept_at(source))
    else:
        source = mean
        is_mean = mean.target is aten.mean.dim and not mean.kwargs and _over_last(mean)
    read = source.args[0]
    # A mean that was rounded to fewer digits leaves some of itself.
    return read if is_mean and _alike(x, read) and val(read).dtype == val(node).dtype else None


def _spread(mean: fx.Node) -> tuple[fx.Node, bool] | str | None:
    """The tensor whose mean square over the last dim this is, or whose variance."""
    source: Any = mean.args[0] if mean.target is operator.getitem and mean.args[1] == 0 else mean
    deviation: Any = _root_of(mean)
    variance: Any = deviation if isinstance(deviation, fx.Node) and deviation.target in _DEVIATIONS else source
    if variance.target in (*_VARIANCES, *_DEVIATIONS):
        if not _over_last(variance, keepdim=_kept_at(variance)):
            return f"the variance is over {variance.args[1:]}, not kept over the last dim"
        unbiased = _is_unbiased(variance)
        return "its variance divides by one less than the size" if unbiased else (variance.args[0], True)
    if mean.target is not aten.mean.dim:
        return _sum_over_size(mean)
    square = mean.args[0]
    if not isinstance(square, fx.Node) or (x := _root_of(square)) is None:
        return None
    return (x, False) if _over_last(mean) else f"the mean is over {mean.args[1:]}, not kept over the last dim"


def _sum_over_size(quotient: fx.Node) -> tuple[fx.Node, bool] | str | None:
    """The tensor whose sum of squares, or squared norm, is divided by its size here."""
    total: Any = quotient.args[0] if quotient.target is aten.div.Tensor else None
    size = constant(quotient, aten.div.Tensor)
    if not isinstance(total, fx.Node) or not total.args or size is None:
        return None
    norm: Any = _root_of(total)
    if isinstance(norm, fx.Node) and norm.target is aten.linalg_vector_norm.default:
        x: Any = norm.args[0]
        is_euclidean = argument(norm, 1, "ord", 2) == 2 and not norm.kwargs and _over_last(norm, 3, dims=2)
        return (x, False) if is_euclidean and size == val(x).shape[-1] else None
    square = total.args[0] if total.target is aten.sum.dim_IntList else None
    x = _root_of(square) if isinstance(square, fx.Node) else None
    if x is None or size != val(x).shape[-1]:
        return None
    return (x, False) if _over_last(total) else f"the mean is over {total.args[1:]}, not kept over the last dim"


def _is_unbiased(variance: fx.Node) -> bool:
    """Whether a variance or deviation divides by another number than the size."""
    by_dim = variance.target in (aten.var.dim, aten.var_mean.dim, aten.std.dim)
    return bool(argument(variance, 2, "unbiased", True) if by_dim else variance.kwargs.get("correction", 1))


def _kept_at(variance: fx.Node) -> int | None:
    return 3 if variance.target in (aten.var.dim, aten.var_mean.dim, aten.std.dim) else None


def _root_of(square: fx.Node) -> fx.Node | None:
    """What is squared: `pow(x, 2)`, `square(x)`, `x * x`."""
    x: Any = square.args[0] if square.args else None
    if square.target is aten.mul.Tensor and square.args[1] is x:
        return x if isinstance(x, fx.Node) else None
    is_square = square.target is aten.square.default or constant(square, aten.pow.Tensor_Scalar) == 2
    return x if is_square else None


def _over_last(call: fx.Node, keepdim: int | None = 2, dims: int = 1) -> bool:
    """Whether a call reduces the last dim of its first operand and keeps it; where these arguments are."""
    over: Any = argument(call, dims, "dim")
    kept = call.kwargs.get("keepdim", False) if keepdim is None else argument(call, keepdim, "keepdim", False)
    return bool(kept) and over is not None and list(over) in ([-1], [val(call.args[0]).dim() - 1])  # type: ignore[arg-type]


def _is_inverse(root: fx.Node) -> bool:
    return root.target is aten.rsqrt.default or constant(root, aten.pow.Tensor_Scalar) == -0.5


def _scaled(root: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    """The node that takes something times the inverse root, and what it reads besides."""
    inverse: fx.Node | None = root
    if not _is_inverse(root):
        divided = only_user(root, aten.div.Tensor)
        if divided is not None:
            above = divided.args[0]
            return (divided, [above]) if isinstance(above, fx.Node) and above is not root else None
        inverse = only_user(root, aten.reciprocal.default)
        # `1 / x` is written down as the reciprocal times 1.
        once = inverse and only_user(inverse, aten.mul.Tensor)
        inverse = once if once is not None and once.args[1] == 1 else inverse
    product = inverse and only_user(inverse, aten.mul.Tensor)
    return (product, [node for node in product.all_input_nodes if node is not inverse]) if product else None
