"""Words for matching normalisation over the last dim: the root of a mean of squares or of a variance, as people write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rules.match import argument, constant, only_user, through_casts

aten = torch.ops.aten
ROOTS = (aten.rsqrt.default, aten.sqrt.default, aten.pow.Tensor_Scalar)
_VARIANCES = (aten.var.dim, aten.var.correction)


@dataclass(frozen=True)
class Normed:
    """A tensor over the root of its mean square.

    Attributes:
        end: the node that gives it.
        x: the tensor, after its cast to float32.
        eps: added under the root.
        variance: whether the mean square is written as the variance of what `x` is without its mean.
    """

    end: fx.Node
    x: fx.Node
    eps: float
    variance: bool = False


def normed(root: fx.Node) -> Normed | str | None:
    """What a root, reciprocal or not, normalises; why it is no norm, or None where it is none at all.

    Args:
        root: a call of one of `ROOTS`.
    """
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
    found = _scaled(root)
    end, read = found or (root, [])
    if variance:
        centred = next((node for node in read if without_mean(node) is x), None)
        return Normed(end, centred, eps, variance) if centred else "what it divides is not its input without the mean"
    if not any(_same(node, x) for node in read):
        return "the reciprocal root is not multiplied with the input"
    return Normed(end, x, eps)


def _same(node: fx.Node, x: fx.Node) -> bool:
    """Whether a node has the values of `x`: the same node, cast by a product or another time, or the same difference again."""
    source = without_mean(x)
    return through_casts(node) is through_casts(x) or (source is not None and without_mean(node) is source)


def without_mean(node: fx.Node) -> fx.Node | None:
    """What a node is without its mean over the last dim."""
    x, mean = node.args if node.target is aten.sub.Tensor and not node.kwargs else (None, None)
    is_mean = isinstance(mean, fx.Node) and mean.target is aten.mean.dim and mean.args[0] is x and not mean.kwargs
    return x if is_mean and _over_last(mean) else None  # type: ignore[return-value, arg-type]


def _spread(mean: fx.Node) -> tuple[fx.Node, bool] | str | None:
    """The tensor whose mean square over the last dim this is, or whose variance."""
    if mean.target in _VARIANCES:
        unbiased = (
            argument(mean, 2, "unbiased", True) if mean.target is aten.var.dim else mean.kwargs.get("correction", 1)
        )
        if not _over_last(mean, keepdim=3 if mean.target is aten.var.dim else None):
            return f"the variance is over {mean.args[1:]}, not kept over the last dim"
        return "its variance divides by one less than the size" if unbiased else (mean.args[0], True)  # type: ignore[return-value]
    total = mean
    if mean.target is aten.div.Tensor and isinstance(mean.args[0], fx.Node):
        total = mean.args[0]
        if (
            total.target is not aten.sum.dim_IntList
            or constant(mean, aten.div.Tensor) != val(_squared(total)).shape[-1]
        ):
            return None
    elif mean.target is not aten.mean.dim:
        return None
    square = total.args[0]
    if not isinstance(square, fx.Node) or (x := _root_of(square)) is None:
        return None
    if not _over_last(total):
        return f"the mean is over {total.args[1:]}, not kept over the last dim"
    return x, False


def _squared(total: fx.Node) -> fx.Node:
    square = total.args[0]
    assert isinstance(square, fx.Node), "the schema says tensor"
    return square


def _root_of(square: fx.Node) -> fx.Node | None:
    """What is squared: `pow(x, 2)`, `square(x)`, `x * x`."""
    x: Any = square.args[0]
    if square.target is aten.mul.Tensor and square.args[1] is x:
        return x if isinstance(x, fx.Node) else None
    is_square = square.target is aten.square.default or constant(square, aten.pow.Tensor_Scalar) == 2
    return x if is_square else None


def _over_last(call: fx.Node, keepdim: int | None = 2) -> bool:
    dims: Any = call.args[1] if len(call.args) > 1 else None
    kept = call.kwargs.get("keepdim", False) if keepdim is None else argument(call, keepdim, "keepdim", False)
    return bool(kept) and dims is not None and list(dims) in ([-1], [val(_squared(call)).dim() - 1])


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
