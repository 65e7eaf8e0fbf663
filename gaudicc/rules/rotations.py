"""Words for matching rotations of pairs of features: halves and neighbours, taken apart as models do it, and joined again."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from gaudicc.nodes import val
from gaudicc.rules.match import RESHAPES, argument, aten

_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)


@dataclass(frozen=True)
class Features:
    """One of the two features of every pair.

    Attributes:
        x: the tensor of all features; of neighbours it may be the pairs `[..., dim / 2, 2]`.
        neighbours: features 2i and 2i + 1 are a pair, not i and i + dim / 2.
        second: which of the two.
        paired: `x` is the pairs.
    """

    x: fx.Node
    neighbours: bool
    second: bool
    paired: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all features."""
        sizes = tuple(val(self.x).shape)
        return (*sizes[:-2], 2 * sizes[-2]) if self.paired else sizes

    def fits(self, other: Features | None) -> bool:
        """Whether these are first features and `other` the second ones of the same pairs."""
        same = other is not None and (self.x, self.neighbours) == (other.x, other.neighbours)
        return same and not self.second and other is not None and other.second


@dataclass(frozen=True)
class Rotation:
    """Pairs (a, b) turned to (a c - b s, b c + a s), by half as many angles as features."""

    first: Features
    cos: fx.Node
    sin: fx.Node


def features(node: Any) -> Features | None:
    """Which features of which tensor a node takes, if it takes one of each pair."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.target is aten.slice.Tensor:
        return _of_slice(node, source)
    if node.target is operator.getitem and source.target in _SPLITS:
        return _of_split(node, source)
    if node.target is aten.select.int:
        whole, dim, index = source, *node.args[1:]
    elif node.target is operator.getitem and source.target is aten.unbind.int:
        whole, dim, index = source.args[0], argument(source, 1, "dim", 0), node.args[1]  # type: ignore[assignment]
    else:
        return None
    return _of_pairs(whole, dim, index) or _of_rows(whole, dim, index)


def _of_slice(part: fx.Node, source: fx.Node) -> Features | None:
    dim, start, end, step = (argument(part, i, name) for i, name in enumerate(("dim", "start", "end", "step"), 1))
    width, rank = val(source).shape[-1], val(source).dim()
    if (dim or 0) % rank != rank - 1 or width % 2:
        return None
    span = (start or 0, width if end is None else min(end, width), 1 if step is None else step)
    known = {
        (0, width // 2, 1): (False, False), (width // 2, width, 1): (False, True),
        (0, width, 2): (True, False), (1, width, 2): (True, True),
    }  # fmt: skip
    return Features(source, *known[span]) if span in known else None


def _of_split(part: fx.Node, split: fx.Node) -> Features | None:
    source: Any = split.args[0]
    width, rank = val(source).shape[-1], val(source).dim()
    sizes = split.args[1] if isinstance(split.args[1], (list, tuple)) else [split.args[1]] * 2
    halves = argument(split, 2, "dim", 0) % rank == rank - 1 and list(sizes) == [width / 2] * 2
    return Features(source, False, bool(part.args[1] == 1)) if halves else None


def _of_pairs(pairs: Any, dim: Any, index: Any) -> Features | None:
    shape = val(pairs).shape
    if len(shape) < 2 or shape[-1] != 2 or dim % len(shape) != len(shape) - 1 or index not in (0, 1):
        return None
    flat = pairs.args[0] if pairs.target in RESHAPES else pairs
    whole = tuple(val(flat).shape) == (*shape[:-2], 2 * shape[-2])
    return Features(flat if whole else pairs, True, index == 1, paired=not whole)


def _of_rows(rows: Any, dim: Any, index: Any) -> Features | None:
    """Halves that lie in two rows, `[..., 2, dim / 2]`."""
    shape = val(rows).shape
    if rows.target not in RESHAPES or len(shape) < 2 or shape[-2] != 2 or dim % len(shape) != len(shape) - 2:
        return None
    flat: fx.Node = rows.args[0]
    whole = tuple(val(flat).shape) == (*shape[:-2], 2 * shape[-1])
    return Features(flat, False, index in (1, -1)) if whole else None


def joins(joined: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """The two parts of a `cat` or `stack` along the last dim, and whether they become neighbours."""
    parts: Any = joined.args[0]
    if len(parts) != 2 or argument(joined, 1, "dim", 0) not in (-1, val(joined).dim() - 1):
        return None
    return parts[0], parts[1], joined.target is aten.stack.default


def rotations(joined: fx.Node) -> list[Rotation]:
    """What a `cat` or `stack` of `a c - b s` and `b c + a s` turns; of two tensors that are taken apart, either by the other."""
    parts = joins(joined)
    if parts is None or parts[0].target is not aten.sub.Tensor or parts[1].target is not aten.add.Tensor:
        return []
    products = [_factors(arg) for part in parts[:2] for arg in part.args]
    if any(part.kwargs for part in parts[:2]) or None in products:
        return []
    ac, bs, *rest = products
    return [
        Rotation(first, c, s)
        for a, c in _both_ways(ac)
        for b, s in _both_ways(bs)
        if {frozenset((b, c)), frozenset((a, s))} == {frozenset(each) for each in rest if each}
        if (first := features(a)) is not None and first.fits(features(b)) and first.neighbours == parts[2]
    ]


def _factors(node: Any) -> tuple[fx.Node, fx.Node] | None:
    is_product = isinstance(node, fx.Node) and node.target is aten.mul.Tensor
    return tuple(node.args) if is_product and all(isinstance(arg, fx.Node) for arg in node.args) else None


def _both_ways(pair: Any) -> tuple[tuple[fx.Node, fx.Node], tuple[fx.Node, fx.Node]]:
    one, other = pair
    return (one, other), (other, one)
