"""Words for matching what becomes of attention scores before the softmax: factors, masks, the maximum of a row; and `einsum`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import RESHAPES, argument, aten, calls, same_sizes, through_casts
from gaudicc.rules.sinks import filled_keys, unshifted

MATMULS = (aten.matmul.default, aten.bmm.default)
_PRODUCTS = (*MATMULS, aten.baddbmm.default)
_SWAPS = (aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
# A score added to a number as low as this one is that number, in float32 and in bfloat16.
_ABSORBS = -1e30


@dataclass(frozen=True)
class Mask:
    """One thing that is done to scores to hide keys.

    Attributes:
        node: the numbers that are added, or the bools.
        shows: what True says; None where numbers are added.
        fill: what the scores of hidden keys become.
        dtype: of these scores.
        flat: whether batch and heads are one dim of these scores.
    """

    node: fx.Node
    shows: bool | None = None
    fill: float = -math.inf
    dtype: torch.dtype = torch.float32
    flat: bool = False


@dataclass(frozen=True)
class Scores:
    """Scores before their masks.

    Attributes:
        node: a product, times a number; or what is none.
        masks: the first one first.
        split: the view that takes batch and heads apart, of scores that have both in one dim.
    """

    node: fx.Node
    masks: tuple[Mask, ...]
    split: fx.Node | None = None


def unmasked(scores: fx.Node) -> Scores | str:
    """Scores before their masks; or why one is none that can be added."""
    masks: list[Mask] = []
    split: fx.Node | None = None
    while True:
        scores = through_casts(scores)
        if scores.target is aten.add.Tensor and not scores.kwargs and all(isinstance(a, fx.Node) for a in scores.args):
            first, second = cast(tuple[fx.Node, fx.Node], scores.args)
            scores, mask = (second, first) if _is_product(second) and not _is_product(first) else (first, second)
            masks.append(Mask(mask, flat=split is not None))
        elif (filled := filled_keys(scores)) is not None:
            source, mask, shows, fill = filled
            if fill > _ABSORBS:
                return f"its hidden scores become {fill:g}: a row that sees no key would be another one"
            masks.append(Mask(mask, shows, fill, val(scores).dtype, flat=split is not None))
            scores = source
        elif split is None and is_split(scores):
            scores, split = scores.args[0], scores  # type: ignore[assignment]
        else:
            return Scores(scores, tuple(reversed(masks)), split)


def is_split(view: fx.Node) -> bool:
    """Whether a node views batch and heads, one dim, as two."""
    return view.target in RESHAPES and _are_heads(val(view.args[0]).shape, val(view).shape)  # type: ignore[arg-type]


def is_joined(view: fx.Node) -> bool:
    """Whether a node views batch and heads, two dims, as one."""
    return view.target in RESHAPES and _are_heads(val(view).shape, val(view.args[0]).shape)  # type: ignore[arg-type]


def _are_heads(flat: torch.Size, whole: torch.Size) -> bool:
    return len(flat) == 3 and len(whole) == 4 and same_sizes(flat[1:], whole[2:])


def product(node: fx.Node) -> tuple[fx.Node, Any, float, fx.Node | None] | str:
    """Of a product of queries and keys: both, the number it is multiplied by, and what is added; or why it is none."""
    if node.target in MATMULS:
        q, keys = cast(tuple[fx.Node, Any], node.args)
        return q, keys, 1.0, None
    if node.target is aten.tanh.default:
        return "its scores are capped by a tanh, which no fused kernel does"
    if node.target is not aten.baddbmm.default:
        return f"its scores come from {node.target}, not from a matmul"
    added, q, keys = cast(tuple[fx.Node, ...], node.args[:3])
    beta, alpha = (argument(node, index, name, 1) for index, name in ((3, "beta"), (4, "alpha")))
    if beta not in (0, 1) or not isinstance(alpha, (int, float)):
        return f"what is added to its scores is multiplied by {beta}"
    return q, keys, float(alpha), added if beta else None


def _is_product(node: fx.Node) -> bool:
    """Whether a node is a matrix product, but for factors, masks and casts."""
    node = through_casts(node)
    while node.target not in _PRODUCTS:
        if node.target is aten.add.Tensor and isinstance(node.args[1], fx.Node):
            return any(isinstance(arg, fx.Node) and _is_product(arg) for arg in node.args)
        inner = filled_keys(node)
        source: Any = inner[0] if inner else node.args[0] if is_split(node) else unscaled(node)[0]
        if source is node:
            return False
        node = through_casts(source)
    return True


def unscaled(node: fx.Node) -> tuple[fx.Node, float]:
    """What is multiplied or divided by a number, and the factor."""
    number: Any = node.args[1] if node.target in (aten.mul.Tensor, aten.div.Tensor) else None
    if isinstance(number, fx.Node) and number.target is aten.full.default and number.args[0] == []:
        number = number.args[1]
    if not isinstance(number, (int, float)) or number == 0:
        return node, 1.0
    return node.args[0], float(number if node.target is aten.mul.Tensor else 1.0 / number)  # type: ignore[return-value]


def is_transposed(keys: fx.Node) -> bool:
    """Whether a tensor is another one with its last two dims swapped."""
    rank = val(keys).dim()
    if keys.target in _SWAPS:
        return {dim % rank for dim in cast(tuple[int, int], keys.args[1:])} == {rank - 2, rank - 1}
    if keys.target is aten.permute.default:
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        return [dim % rank for dim in cast(list[int], keys.args[1])] == swapped
    return keys.target is aten.mT.default


def joined(rewriter: Rewriter, masks: tuple[Mask, ...], like: fx.Node) -> fx.Node | None:
    """The masks as one: bools if a single one hides by minus infinity, else numbers to be added."""
    if not masks:
        return None
    if len(masks) == 1 and masks[0].shows is not None and masks[0].fill == -math.inf:
        return _shown(rewriter, masks[0], like)
    total: fx.Node | None = None
    for mask in masks:
        if mask.shows is None:
            total = rewriter.emit(aten.add.Tensor, total, mask.node, like=like) if total else mask.node
        else:
            options = {"dtype": mask.dtype, "device": val(like).device}
            fill = rewriter.emit(aten.full.default, [], mask.fill, like=like, **options)
            total = total or rewriter.emit(aten.full.default, [], 0.0, like=like, **options)
            total = rewriter.emit(aten.where.self, _shown(rewriter, mask, like), total, fill, like=like)
    return total


def _shown(rewriter: Rewriter, mask: Mask, like: fx.Node) -> fx.Node:
    return mask.node if mask.shows else rewriter.emit(aten.logical_not.default, mask.node, like=like)


def by_hand(node: fx.Node) -> fx.Node | None:
    """What `exp(x - max(x)) / sum(...)` over the last dim is the softmax of."""
    power, total = node.args if node.target is aten.div.Tensor and not node.kwargs else (None, None)
    if not isinstance(power, fx.Node) or power.target is not aten.exp.default or len(power.users) != 2:
        return None
    is_sum = isinstance(total, fx.Node) and total.target is aten.sum.dim_IntList and total.args[0] is power
    last = val(power).dim() - 1
    if not is_sum or total.kwargs or list(total.args[1]) not in ([-1], [last]) or not argument(total, 2, "keepdim"):  # type: ignore[union-attr, arg-type]
        return None
    shifted = cast(fx.Node, power.args[0])
    plain = unshifted(shifted)
    return plain if plain is not shifted else None


def spell_out_einsums(rewriter: Rewriter, softmaxes: tuple[Any, ...]) -> None:
    """Writes every `einsum` that is like a product of attention, four letters each, as a matrix product of permuted operands."""
    for node in calls(rewriter.graph, aten.einsum.default):
        equation, operands = cast(tuple[str, list[fx.Node]], node.args[:2])
        read, _, written = equation.replace(" ", "").partition("->")
        letters = read.split(",")
        if len(letters) != 2 or any(len(set(each)) != 4 or not each.isalpha() for each in (*letters, written)):
            continue
        left, right = letters
        if through_casts(operands[0]).target in softmaxes:
            _spell_values(rewriter, node, operands, left, right, written)
        else:
            _spell_scores(rewriter, node, operands, left, right, written)


def _spell_scores(
    rewriter: Rewriter, node: fx.Node, operands: list[fx.Node], left: str, right: str, written: str
) -> None:
    batch, heads, row, column = list(written)
    shared = set(left) & set(right) - set(written)
    if len(shared) != 1 or not {batch, heads, row} <= set(left) or not {batch, heads, column} <= set(right):
        return
    q = _permuted(rewriter, operands[0], left, batch + heads + row + shared.copy().pop(), node)
    k = _permuted(rewriter, operands[1], right, batch + heads + column + shared.pop(), node)
    rewriter.replace(
        node, rewriter.emit(aten.matmul.default, q, rewriter.emit(aten.transpose.int, k, 2, 3, like=node), like=node)
    )


def _spell_values(
    rewriter: Rewriter, node: fx.Node, operands: list[fx.Node], left: str, right: str, written: str
) -> None:
    batch, heads, row, column = list(left)
    (size,) = set(right) - {batch, heads, column} if len(set(right) & {batch, heads, column}) == 3 else {""}
    if not size or set(written) != {batch, heads, row, size}:
        return
    v = _permuted(rewriter, operands[1], right, batch + heads + column + size, node)
    product = rewriter.emit(aten.matmul.default, operands[0], v, like=node)
    rewriter.replace(node, _permuted(rewriter, product, batch + heads + row + size, written, node))


def _permuted(rewriter: Rewriter, x: fx.Node, letters: str, wanted: str, like: fx.Node) -> fx.Node:
    if letters == wanted:
        return x
    return rewriter.emit(aten.permute.default, x, [letters.index(letter) for letter in wanted], like=like)
