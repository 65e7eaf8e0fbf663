"""Capture, last step: identical layers become one region body with a call site each.

A layer is the maximal run of nodes that comes from one numbered child module (`layers.0`, `layers.1`, ...).
Two layers are identical when their nodes, read in order, have the same ops, literals, shapes, dtypes and strides and the
same wiring, so that only the operands bound at the call site differ. The outermost level that repeats wins.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import torch
from torch import fx

from gaudicc.nodes import call_region
from gaudicc.rules.layers import Run, deepest, outline_runs, runs_of


def split_regions(root: fx.GraphModule) -> None:
    """Rewrites `root` in place: repeated runs become calls of shared bodies, which become its submodules."""
    _hoist_sizes(root.graph)
    level = 0
    while level <= deepest(root.graph):
        groups: dict[Any, list[Run]] = {}
        moved: dict[fx.Node, fx.Node] = {}  # a node now inside a body -> the item of the call that replaced it
        for run in list(runs_of(root.graph, level)):
            groups.setdefault(run.key, []).append(run)
        for runs in groups.values():
            if len(runs) > 1:
                outline_runs(root, runs, moved)
        level += 1
    root.recompile()


def _hoist_sizes(graph: fx.Graph) -> None:
    """Moves arithmetic on the inputs' sizes to the top: export computes it once, and the first layer would own it."""
    early = [node for node in graph.nodes if node.op == "placeholder"]
    known = set(early)
    for node in list(graph.nodes):
        is_size = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
        if is_size and node not in known and known.issuperset(node.all_input_nodes):
            early[-1].append(node)
            early.append(node)
            known.add(node)


def region_dag(graph: fx.Graph) -> nx.DiGraph:
    """The call sites of a graph as a DAG: an edge where one region reads what another computed."""
    dag = nx.DiGraph()
    origin: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        reads = frozenset().union(*(origin.get(arg, frozenset()) for arg in node.all_input_nodes))
        if node.target is call_region:
            dag.add_node(node.name, body=str(node.args[0].target))
            dag.add_edges_from((source, node.name) for source in reads)
            reads = frozenset({node.name})
        origin[node] = reads
    return dag
