"""Lowering of branches that the host decides: which conditions are marked, and the graph cut at the outermost of them."""

from __future__ import annotations

from torch import fx

from gaudicc.branches import Sides, order_of
from gaudicc.cut_branches import Branch, cut
from gaudicc.lower_loops import inline_call
from gaudicc.nodes import body_of, call_region

MARK = "branch"
"""The remark on a condition that the host decides it: its rank, the outermost of several first."""


def holds_branches(module: fx.GraphModule) -> bool:
    """Whether the host decides a condition of a graph, or of one that it calls."""
    parts = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    return any(MARK in node.meta for part in parts for node in part.graph.nodes)


def drop_branches(root: fx.GraphModule) -> None:
    """Lets no condition be decided by the host: both sides are computed."""
    for part in root.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop(MARK, None)


def inline_branches(root: fx.GraphModule) -> None:
    """Inlines the bodies in which the host decides something: a recorded graph cannot be left in its middle."""
    while calls := [
        node for node in root.graph.nodes if node.target is call_region and holds_branches(body_of(root, node))
    ]:
        for call in calls:
            inline_call(root, call, body_of(root, call))


def parts_of(module: fx.GraphModule) -> list[fx.GraphModule | Branch] | None:
    """A graph cut at the outermost condition that the host decides, in the order in which the parts are run; None: at none."""
    marked = [node for node in module.graph.nodes if MARK in node.meta]
    if not marked:
        return None
    condition = min(marked, key=lambda node: int(node.meta[MARK]))
    del condition.meta[MARK]
    return cut(module, Sides(condition, order_of(module.graph)))
