"""Branches of a graph: what it computes only where a condition holds, or only where it does not.

A captured `if` computes both sides and selects. Which nodes one side alone needs follows from the graph: each use of them is an
operand that is not selected on the other side. So any graph that selects by a condition of one element has branches to cut out.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Iterator, Mapping

import torch
from torch import fx

from gaudicc.conditions import Facts, same_type
from gaudicc.nodes import val

_NAMESPACES = ("aten", "gaudicc", "prims")
_SAMPLES = torch.Tag.nondeterministic_seeded


def order_of(graph: fx.Graph) -> dict[fx.Node, int]:
    """The position of every node."""
    return {node: i for i, node in enumerate(graph.nodes)}


class Sides:
    """What of a graph depends on a condition.

    A condition may be used again after something that is always computed and reads what the first use gave. Then that stands
    between two branches, and the level of a node says how many branches come before it.

    Args:
        condition: bool, one element.
        order: the position of every node of its graph.

    Attributes:
        only: the nodes that are needed where the condition holds alone, and those needed where it does not.
        apart: these, and those that neither side needs.
        merges: the nodes that are always needed and read some of these.
    """

    def __init__(self, condition: fx.Node, order: Mapping[fx.Node, int]) -> None:
        self.condition = condition
        self._order = order
        self._facts = {holds: Facts(condition, holds) for holds in (True, False)}
        self._decided = self._decided_by_it()
        self._find({condition})

    def chosen(self, node: fx.Node, holds: bool) -> fx.Node | None:
        """The operand that a node behind the condition is equal to on one side; None: none that is known."""
        return self._decided[holds].get(node)

    def operand(self, node: fx.Node, holds: bool, level: int | None = None) -> fx.Node:
        """What a node of one side, of this level, reads in place of another: a merge of its own level is what it selects."""
        while (found := self.chosen(node, holds)) is not None and same_type(val(found), val(node)):
            if level is not None and node in self.merges and self.levels[node] < level:
                return node
            node = found
        return node

    def is_operand(self, node: fx.Node, holds: bool) -> bool:
        """Whether a node is just another one on one side."""
        return self.operand(node, holds) is not node

    def reads(self, node: fx.Node, holds: bool, level: int | None = None) -> list[fx.Node]:
        """What a node reads on one side."""
        chosen = self.chosen(node, holds)
        read = node.all_input_nodes if chosen is None else [chosen]
        return [self.operand(arg, holds, level) for arg in read]

    def settle(self) -> list[int]:
        """Gives every node its level; returns those of the branches.

        What more than one branch reads is computed before them, whatever the condition.
        """
        always = {self.condition}
        while True:
            self._set_levels()
            crossing = {node for holds in (True, False) for node in self._sink(holds)}
            if not crossing:
                return sorted({self.levels[node] for node in self.merges})
            always |= crossing
            self._find(always)

    def _decided_by_it(self) -> dict[bool, dict[fx.Node, fx.Node]]:
        """The nodes behind the condition that are equal to an operand of theirs on one side."""
        found: dict[bool, dict[fx.Node, fx.Node]] = {True: {}, False: {}}
        wanted, seen = [self.condition], {self.condition}
        while wanted:
            here = wanted.pop()
            for node in (*here.users, *here.all_input_nodes):
                if node in seen or self._order[node] <= self._order[self.condition]:
                    continue
                seen.add(node)
                for holds, facts in self._facts.items():
                    if (operand := facts.chosen(node)) is not None:
                        found[holds][node] = operand
                if any(facts.value(node) is not None for facts in self._facts.values()):
                    wanted.append(node)
        return found

    def _find(self, always: set[fx.Node]) -> None:
        self.only = {holds: self._needed_only(holds, always) for holds in (True, False)}
        self.apart = self.only[True] | self.only[False]
        unread = self.only[True] & self.only[False]
        self.only = {holds: nodes - unread for holds, nodes in self.only.items()}
        self.merges = {user for node in self.apart for user in node.users if user not in self.apart}

    def _needed_only(self, holds: bool, always: set[fx.Node]) -> set[fx.Node]:
        """The nodes all of whose uses come to nothing on the other side."""
        decided, found = self._decided[not holds], set[fx.Node]()
        nodes, queue = list(self._order), list[int]()

        def push(reader: fx.Node) -> None:
            for node in reader.all_input_nodes:
                heapq.heappush(queue, -self._order[node])

        for merge in decided:
            push(merge)
        while queue:  # the last first: whether its users are needed is known by then
            node = nodes[-heapq.heappop(queue)]
            if node in found or node in always or not _may_be_left_out(node):
                continue
            if all(user in found or decided.get(user, node) is not node for user in node.users):
                found.add(node)
                push(node)
        return {node for node in found if node.target is not operator.getitem or node.args[0] in found}

    def _set_levels(self) -> None:
        self.levels: dict[fx.Node, int] = {}
        for node in self._order:
            sides = [holds for holds in (True, False) if node in self.only[holds]]
            if node in self.merges or sides:
                read = [arg for holds in sides or (True, False) for arg in self.reads(node, holds)]
                self.levels[node] = max((self.levels[arg] for arg in read), default=0)
            else:
                self.levels[node] = max(
                    (self.levels[arg] + (arg in self.merges) for arg in node.all_input_nodes), default=0
                )

    def _sink(self, holds: bool) -> Iterator[fx.Node]:
        """Moves what one side needs alone to the branch that reads it; yields what more than one does."""
        wanted: dict[fx.Node, set[int]] = {}
        for node in reversed(list(self._order)):
            alone = node in self.only[holds]
            if not (alone or node in self.merges) or (alone and self.is_operand(node, holds)):
                continue
            if alone:
                self.levels[node] = min(wanted.get(node, {self.levels[node]}))
            for arg in self.reads(node, holds, self.levels[node]):
                wanted.setdefault(arg, set()).add(self.levels[node])
        yield from (node for node, levels in wanted.items() if node in self.only[holds] and len(levels) > 1)


def _may_be_left_out(node: fx.Node) -> bool:
    """Whether a node may be computed or not: it draws no random numbers, which others follow, and no other chip waits for it."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return node.target.namespace in _NAMESPACES and _SAMPLES not in node.target.tags
