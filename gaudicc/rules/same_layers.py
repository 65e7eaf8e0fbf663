"""Two layers that compute nearly the same: what one body for both would take, or why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, NamedTuple, NoReturn

import torch
from torch import fx
from torch.utils import _pytree as pytree

from gaudicc.nodes import is_op, op_name, val
from gaudicc.rules.layers import type_key

aten = torch.ops.aten
LIFTS: dict[Any, Any] = {
    **{op: op for op in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)},
    aten.gt.Scalar: aten.gt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
}
"""Ops whose second operand may be a number or a tensor without dims -> the op that takes the tensor."""

_NEARLY = 0.8  # likeness from which one call that differs tells more than a list of ops


class NoCommonBodyError(Exception):
    """Two layers cannot share a body; the message says why, `likeness` how much of them is alike, from 0 to 1."""

    def __init__(self, why: str, likeness: float) -> None:
        super().__init__(why)
        self.likeness = likeness


@dataclass
class Layer:
    """One kind of layer: a body with its calls, or the nodes of a layer like no other.

    Attributes:
        path: of the first layer of the kind, `model.layers.0`.
        kind: the name of its class.
        nodes: what it computes, in order.
        operands: what it reads.
        results: what is read of it.
        calls: of its body; none: its nodes are in the root.
        body: the name of its body.
        paths: of all layers of the kind.
    """

    path: str
    kind: str
    nodes: Sequence[fx.Node]
    operands: Sequence[fx.Node]
    results: Sequence[fx.Node]
    calls: list[fx.Node] = field(default_factory=list)
    body: str = ""
    paths: list[str] = field(default_factory=list)


class Lift(NamedTuple):
    """A number that differs: the second operand of a node of either layer."""

    one: fx.Node
    other: fx.Node


class Nothing(NamedTuple):
    """What stands for a tensor that a layer does not add: -0.0, which changes no number, in the form of this node."""

    like: fx.Node


def lifted_dtype(node: fx.Node, number: Any) -> torch.dtype | None:
    """The dtype of a tensor that gives the same bits as this number, as the second operand of a node; None: there is none."""
    source = node.args[0]
    if node.target not in LIFTS or node.kwargs or len(node.args) != 2 or isinstance(number, (bool, complex)):
        return None
    if not isinstance(source, fx.Node) or not isinstance(number, (int, float)) or not val(source).dim():
        return None
    dtype: torch.dtype = val(source).dtype
    if dtype.is_floating_point:
        # The op rounds the number to float32 itself; a narrower tensor must hold it as it is.
        return dtype if dtype == torch.float32 or torch.tensor(number, dtype=dtype).item() == number else None
    fits = isinstance(number, int) and dtype in (torch.int32, torch.int64) and node.target is not aten.div.Tensor
    return dtype if fits and abs(number) <= torch.iinfo(torch.int32).max else None


class Match:
    """How the nodes of a layer are those of another one.

    Args:
        one: the layer whose body is to serve both. If it is a body already, all its nodes stay in it.
        other: the layer that is to call it; what only it computes is left where it is, before or after the call.

    Attributes:
        pairs: a node of `one` -> the node of `other` that computes the same.
        bound: an operand of `one` -> what stands for it: a node, a number, or `Nothing`.
        lifts: the numbers that differ.
        before: nodes of both layers that are computed before the call.
        after: those that are computed after it.

    Raises:
        NoCommonBodyError: there is no body for both.
    """

    def __init__(self, one: Layer, other: Layer) -> None:
        self._one, self._other = one, other
        self._inside = (set(one.nodes), set(other.nodes))
        self._through: dict[fx.Node, fx.Node] = {}
        self._first_trouble = ""
        self.pairs: dict[fx.Node, fx.Node] = {}
        self.bound: dict[fx.Node, Any] = {}
        self.lifts: list[Lift] = []
        self.before: set[fx.Node] = set()
        self.after: set[fx.Node] = set()
        keys = [list(map(_kind, layer.nodes)) for layer in (one, other)]
        matcher = SequenceMatcher(None, keys[0], keys[1], autojunk=False)
        self._likeness = matcher.ratio()
        for tag, a, b, c, d in matcher.get_opcodes():
            if tag == "equal":
                for pair in zip(one.nodes[a:b], other.nodes[c:d], strict=True):
                    self._pair(*pair)
            else:
                self._alone(one.nodes[a:b], other.nodes[c:d])
        self._conclude()

    def _refuse(self, why: str) -> NoReturn:
        raise NoCommonBodyError(why.strip(), self._likeness)

    def counterpart(self, node: fx.Node) -> Any:
        """What stands in the other layer for a value of the first one."""
        return self.pairs.get(node) or self._through.get(node) or self.bound.get(node)

    def _alone(self, ones: Sequence[fx.Node], others: Sequence[fx.Node]) -> None:
        left = [
            node for node in ones if self._one.calls and not self._of_literals(node) and not self._adds_nothing(node)
        ]
        if left or (others and self._other.calls):
            self._refuse(_only(self._one.path, ones) + _only(self._other.path, others))
        if not self._one.calls:
            self._outside(*ones)
        self._outside(*others)

    def _of_literals(self, node: fx.Node) -> bool:
        """Whether a node of a body reads nothing, so that all calls can be given its value."""
        if constant := not node.all_input_nodes:
            self._outside(node)
        return constant

    def _adds_nothing(self, node: fx.Node) -> bool:
        """Whether a sum of `one` alone is the other layer's value as it is, once -0.0 stands for what is added."""
        if node.target is not aten.add.Tensor or node.kwargs or not val(node).dtype.is_floating_point:
            return False
        for value, added in (node.args, node.args[::-1]):
            if added in self._one.operands and added not in self.bound and isinstance(value, fx.Node):
                same = self.counterpart(value) or next((x for x in self._other.operands if _alike(x, value)), None)
                if isinstance(same, fx.Node) and _alike(same, node) and _alike(value, added):  # type: ignore[arg-type]
                    if value in self._one.operands:
                        self.bound[value] = same
                    self._through[node], self.bound[added] = same, Nothing(same)  # type: ignore[index]
                    return True
        return False

    def _outside(self, *nodes: fx.Node) -> None:
        """Leaves nodes out of the body: before it, if they read nothing of it."""
        for node in nodes:
            if is_op(node) and torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
                self._refuse(f"{op_name(node)} draws random numbers")
            inside = next(nodes for nodes in self._inside if node in nodes) - self.before
            (self.after if inside.intersection(node.all_input_nodes) else self.before).add(node)

    def _pair(self, one: fx.Node, other: fx.Node) -> None:
        if self.after.intersection((*one.all_input_nodes, *other.all_input_nodes)):
            trouble: str | None = f"{op_name(one)} reads what only one of the layers computes"
        else:
            trouble = self._read_the_same(one, other)
        if trouble is None:
            self.pairs[one] = other
        elif self._one.calls or self._other.calls:
            self._refuse(trouble)
        else:
            self._first_trouble = self._first_trouble or trouble
            self._outside(one, other)

    def _read_the_same(self, one: fx.Node, other: fx.Node) -> str | None:
        (a, form), (b, other_form) = (pytree.tree_flatten((node.args, node.kwargs)) for node in (one, other))
        if form != other_form:
            return f"{op_name(one)} is called with other arguments"
        bound: dict[fx.Node, Any] = {}
        lifts = []
        for index, (mine, theirs) in enumerate(zip(a, b, strict=True)):
            if isinstance(mine, fx.Node):
                if not self._fits(mine, theirs, other, bound):
                    rounded = isinstance(theirs, float) and lifted_dtype(other, theirs) is None
                    return f"{op_name(one)} " + (
                        f"takes {theirs} as a Python number" if rounded else "reads other values"
                    )
            elif isinstance(theirs, fx.Node) or (type(mine), repr(mine)) != (type(theirs), repr(theirs)):
                dtypes = {lifted_dtype(node, number) for node, number in ((one, mine), (other, theirs))}
                if index != 1 or None in dtypes or len(dtypes) != 1:
                    return f"{op_name(one)} takes {mine} and {theirs} as Python numbers"
                lifts.append(Lift(one, other))
        self.bound |= bound
        self.lifts += lifts
        return None

    def _fits(self, mine: fx.Node, theirs: Any, other: fx.Node, bound: dict[fx.Node, Any]) -> bool:
        """Whether a value that `one` reads is, or can be bound to, what the other layer reads in its place."""
        if mine in self._inside[0] and mine not in self.before:
            return self.counterpart(mine) is theirs
        if isinstance(theirs, fx.Node):
            outside = theirs not in self._inside[1] or theirs in self.before
            same = outside and type_key(val(mine)) == type_key(val(theirs))
        else:  # a number where the body takes a tensor by now
            dtype = lifted_dtype(other, theirs)
            same = dtype is not None and mine in self._one.operands and val(mine).dtype == dtype and not val(mine).dim()
            theirs = float(theirs) if same and dtype.is_floating_point else theirs  # type: ignore[union-attr]
        known = bound.setdefault(mine, self.bound.get(mine, theirs))
        return same and (known is theirs or (not isinstance(theirs, fx.Node) and repr(known) == repr(theirs)))

    def _conclude(self) -> None:
        if 2 * len(self.pairs) <= max(len(self._one.nodes), len(self._other.nodes)):
            rest = _only(self._one.path, self._rest(0)) + _only(self._other.path, self._rest(1))
            self._refuse(self._first_trouble if self._first_trouble and self._likeness > _NEARLY else rest)
        given = set(self._one.results if self._one.calls else _read_outside(self.pairs))
        back = {other: one for one, other in self.pairs.items()}
        if unread := [node for node in _read_outside(back) if back[node] not in given]:
            self._refuse(f"{op_name(unread[0])} is read outside of {self._other.path} only")
        if self._one.calls and not self._inside[0].issuperset(self._one.results):
            self._refuse(f"{self._one.path} returns what it is given")
        if self._one.calls and any(operand not in self.bound for operand in self._one.operands):
            self._refuse(f"{self._one.path} reads more values")

    def _rest(self, side: int) -> list[fx.Node]:
        paired = set(self.pairs if side == 0 else self.pairs.values())
        return [node for node in (self._one, self._other)[side].nodes if node not in paired]


def _kind(node: fx.Node) -> Any:
    return LIFTS.get(node.target, node.target), str(type_key(val(node)))


def _read_outside(nodes: Collection[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if any(user not in nodes for user in node.users)]


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return bool(type_key(val(a)) == type_key(val(b)))


def _only(path: str, nodes: Iterable[fx.Node]) -> str:
    """`12 ops only in model.layers.3 (aten.topk, aten.sort, ...) `."""
    names = Counter(op_name(node) for node in nodes if is_op(node))
    if not names:
        return ""
    shown = ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{sum(names.values())} ops only in {path} ({shown}) "
