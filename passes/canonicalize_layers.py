"""canonicalize-layers: layers that are the same but for a number, a residual or what is computed before them share a body."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar

import torch
from torch import fx

from gaudicc.fake_values import fake_mode_of
from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import CALLS, call_region, outputs_of, regions_called, val
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import FOLDED, InputKind, InputSpec, Program
from gaudicc.rewriter import Rewriter, drop_dead_nodes
from gaudicc.rules.layers import call_body, deepest, describe, layer_of, outline_runs, runs_of
from gaudicc.rules.same_layers import LIFTS, Layer, Match, NoCommonBodyError, Nothing, lifted_dtype

aten = torch.ops.aten
_TRIED = (
    8  # kinds that a layer is compared with: where every layer is another one, time must not grow with their square
)


@dataclass(frozen=True)
class CanonicalizeLayers:
    """Lets layers that are the same but for little share one body.

    Passes run once per body, and Gaudi compiles each body once. Numbers that differ from layer to layer become tensors
    without dims, a residual that the first layer lacks becomes -0.0, which changes no number when it is added, and what
    only one layer computes of its operands, or of its results, is moved out of it.

        %1 = aten.mul.Tensor(%x, 0.5)   ->   %1 = aten.mul.Tensor(%x, %factor)   (an operand of the body, a constant of each call)

    Refuses numbers that an op takes only as Python numbers, and those that its dtype would round; says how many bodies
    each list of layers has, and why two of them differ.
    """

    name: ClassVar[str] = "canonicalize-layers"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def run(self, program: Program) -> PassResult:
        """Merges the kinds of layers of each class, those with most layers first."""
        work = _Work(program)
        notes: list[str] = []
        for level in range(deepest(program.root.graph)):
            classes: dict[str, list[Layer]] = {}
            for layer in _layers(program.root, level):
                classes.setdefault(layer.kind, []).append(layer)
            for kinds in classes.values():
                if len(kinds[0].paths) + len(kinds) > 2:
                    notes += work.merge(sorted(kinds, key=lambda layer: -len(layer.paths)))
        modified = work.rewriter.finish()
        if work.constants:
            program = replace(program, inputs=(*work.constants, *program.inputs))
        return PassResult(program, modified, tuple(notes))


def _layers(root: fx.GraphModule, level: int) -> Iterator[Layer]:
    """The kinds of layers whose modules are numbered `level` deep."""
    bodies: dict[str, Layer] = {}
    for call, name in regions_called(root.graph):
        here = layer_of(call, level)
        if call.target is not call_region or here is None or layer_of(call, level + 1) is not None:
            continue
        if name not in bodies:
            bodies[name] = Layer(*here, *_described(root, name), body=name)
        bodies[name].calls.append(call)
        bodies[name].paths.append(here[0])
    yield from (layer for layer in bodies.values() if not _holds_graphs(layer))
    for run in runs_of(root.graph, level):
        layer = Layer(run.path, run.kind, run.nodes, run.operands, run.results, paths=[run.path])
        if not _holds_graphs(layer):
            yield layer


def _described(root: fx.GraphModule, body: str) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """The nodes, operands and results of a body."""
    graph = getattr(root, body).graph
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    return nodes, list(graph.find_nodes(op="placeholder")), list(outputs_of(graph))


def _holds_graphs(layer: Layer) -> bool:
    return any(node.op == "get_attr" or node.target in CALLS for node in layer.nodes)


class _Work:
    """Merges layers in the root of a program."""

    def __init__(self, program: Program) -> None:
        self.rewriter = Rewriter(program.root)
        self.constants: list[InputSpec] = []
        self._program, self._root = program, program.root

    def merge(self, kinds: list[Layer]) -> Iterator[str]:
        """Merges kinds of one class as far as possible; says what is left."""
        paths = [path for layer in kinds for path in layer.paths]
        kept: list[Layer] = []
        reasons: list[str] = []
        for layer in kinds:
            if not layer.calls:  # what it reads may have become a call since
                layer.operands = describe(layer.path, layer.kind, layer.nodes).operands
            troubles: dict[str, float] = {}
            for body in kept[:_TRIED]:
                try:
                    match = Match(body, layer)
                except NoCommonBodyError as error:
                    troubles[f"{layer.path} is no {body.path}: {error}"] = error.likeness
                else:
                    self._share(body, layer, match)
                    break
            else:
                kept.append(layer)
                reasons += sorted(troubles, key=troubles.__getitem__)[-1:]
        before = f", {len(kinds)} before" if len(kept) < len(kinds) else ""
        bodies = "1 body" if len(kept) == 1 else f"{len(kept)} bodies"
        lists = Counter(re.sub(r"\.?\d+$", "", path) for path in paths)
        if lists.most_common(1)[0][1] > 1:
            yield f"{', '.join(lists)}: {len(paths)} x {kinds[0].kind}, {bodies}{before}"
            yield from reasons

    def _share(self, one: Layer, other: Layer, match: Match) -> None:
        """Lets both layers call one body."""
        self.rewriter.modified = True
        for lift in match.lifts:
            mine, theirs = self._lift(one, lift.one), self._lift(other, lift.other)
            match.bound[mine] = theirs
        if not one.calls:
            self._outline(one, match)
        for node in [node for node in one.nodes if node in match.before]:
            match.bound[self._hand_in(one, node)] = match.bound[node]
        if other.calls:
            self._call_instead(one, other, match)
        else:
            self._call(one, other, match)
        one.paths += other.paths
        getattr(self._root, one.body).recompile()

    def _hand_in(self, layer: Layer, node: fx.Node) -> fx.Node:
        """Computes a node of a body that reads nothing in the root; returns the operand that stands for it."""
        graph = self._root.graph
        with graph.inserting_before(next(other for other in graph.nodes if other.op != "placeholder")):
            outside = graph.node_copy(node)
        operand = self._operand_of(layer, outside)
        node.replace_all_uses_with(operand)
        operand.graph.erase_node(node)
        layer.nodes = [other for other in layer.nodes if other is not node]
        return operand

    def _operand_of(self, layer: Layer, value: fx.Node) -> fx.Node:
        """Adds an operand to a body, to which all its calls pass a value of the root."""
        graph = getattr(self._root, layer.body).graph
        with graph.inserting_after(list(graph.find_nodes(op="placeholder"))[-1]):
            operand: fx.Node = graph.placeholder("number")
        operand.meta["val"] = val(value)
        layer.operands = [*layer.operands, operand]
        for call in layer.calls:
            call.args = (*call.args, value)
        return operand

    def _lift(self, layer: Layer, node: fx.Node) -> fx.Node:
        """Makes the second operand of a node a tensor; returns the operand of the layer that stands for it."""
        number: Any = node.args[1]
        dtype = lifted_dtype(node, number)
        assert dtype is not None, "matched as one that can be lifted"
        constant = self._constant(number, dtype)
        operand = self._operand_of(layer, constant) if layer.calls else constant
        node.target = LIFTS[node.target]
        node.args = (node.args[0], operand)
        return operand

    def _constant(self, number: float, dtype: torch.dtype) -> fx.Node:
        source = next(name for i in count() if (name := f"{FOLDED}{i}") not in self._program.tensors)
        self._program.tensors[source] = torch.tensor(number, dtype=dtype)
        graph = self._root.graph
        with graph.inserting_before(next(iter(graph.nodes))):
            node = graph.placeholder(source.replace(".", "_"))
        with fake_mode_of(graph):
            node.meta["val"] = torch.empty((), dtype=dtype)
        self.constants.insert(0, InputSpec(node.name, InputKind.CONSTANT, source))
        return node

    def _outline(self, layer: Layer, match: Match) -> None:
        """Makes a body of the nodes of a layer that are matched, and lets the match speak of its nodes."""
        run = describe(layer.path, layer.kind, [node for node in layer.nodes if node in match.pairs])
        _put_before(run.nodes[0], [node for node in layer.nodes if node in match.before])
        moved: dict[fx.Node, fx.Node] = {}
        layer.body = outline_runs(self._root, [run], moved)
        _put_after(moved[run.results[-1]], [node for node in layer.nodes if node in match.after])
        inside = _described(self._root, layer.body)
        match.pairs = {node: match.pairs[old] for node, old in zip(inside[0], run.nodes, strict=True)}
        bound = (match.bound[old] for old in run.operands)
        bound = (Nothing(moved.get(x.like, x.like)) if isinstance(x, Nothing) else moved.get(x, x) for x in bound)
        match.bound = dict(zip(inside[1], bound, strict=True))
        layer.nodes, layer.operands, layer.results = inside
        layer.calls = [node for node, name in regions_called(self._root.graph) if name == layer.body]

    def _call(self, one: Layer, other: Layer, match: Match) -> None:
        """Puts a call in the place of the nodes of a layer that are matched."""
        matched = set(match.pairs.values())
        run = describe(other.path, other.kind, [node for node in other.nodes if node in matched])
        run.results = [match.counterpart(node) for node in one.results]
        _put_before(run.nodes[0], [node for node in other.nodes if node in match.before])
        operands = [self._operand(match.bound[node], node, run.nodes[-1]) for node in one.operands]
        call, last = call_body(self._root.graph, run, one.body, operands, {})
        _put_after(last, [node for node in other.nodes if node in match.after])
        one.calls.append(call)

    def _call_instead(self, one: Layer, other: Layer, match: Match) -> None:
        """Lets the calls of one body call another."""
        graph, back = self._root.graph, {theirs: mine for mine, theirs in match.pairs.items()}
        for call in other.calls:
            actual = dict(zip(other.operands, call.args[1:], strict=True))
            bound = (match.bound[node] for node in one.operands)
            bound = (Nothing(actual[x.like]) if isinstance(x, Nothing) else actual.get(x, x) for x in bound)  # type: ignore[arg-type]
            operands = [self._operand(x, node, call) for x, node in zip(bound, one.operands, strict=True)]
            with graph.inserting_before(call):
                call.args = (graph.get_attr(one.body), *operands)
            call.meta["val"] = one.calls[0].meta["val"]
            for item in list(call.users):
                result = other.results[item.args[1]]  # type: ignore[index]
                if result in back:
                    item.args = (call, one.results.index(back[result]))
                else:
                    item.replace_all_uses_with(actual[result])  # type: ignore[arg-type]
        one.calls += other.calls
        drop_dead_nodes(graph)
        delattr(self._root, other.body)

    def _operand(self, value: Any, operand: fx.Node, place: fx.Node) -> fx.Node:
        """What a call passes for an operand of the body."""
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, Nothing):
            return self.rewriter.emit(aten.full_like.default, value.like, -0.0, like=place)
        return self._constant(value, val(operand).dtype)


def _put_before(first: fx.Node, nodes: list[fx.Node]) -> None:
    """Moves what reads nothing of a body before it: what comes after the call may read it."""
    for node in nodes:
        first.prepend(node)


def _put_after(last: fx.Node, nodes: list[fx.Node]) -> None:
    for node in nodes:
        last.append(node)
        last = node
