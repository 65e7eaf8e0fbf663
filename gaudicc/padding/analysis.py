"""Carries the claims through a whole program: the root, and each region body once for all call sites of one layout."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from gaudicc.errors import InternalError, PaddingError
from gaudicc.fake_values import fake_mode_of, propagate
from gaudicc.nodes import CALLS, call_region, op_name, operands_of, output_of, outputs_of, val, where
from gaudicc.padding.certificate import PadCertificate, proof_of
from gaudicc.padding.held import claims_on_caches
from gaudicc.padding.layout import Pads, constant, layout_of, shared
from gaudicc.padding.loops import give_length, handed_on, stacked, started
from gaudicc.padding.padder import Claims, Journal, Padder
from gaudicc.padding.resources import BodyResources, Key, Resources, RootResources
from gaudicc.padding.rules import factories, pointwise, views
from gaudicc.padding.rules.table import rule_of
from gaudicc.padding.settled import with_settled_sizes
from gaudicc.padding.sizes import expression, text
from gaudicc.program import InputKind, InputSpec, PadRecord, Program
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten
_ATTEMPTS = 12
_ASSERTS = (aten._assert_async.msg, aten._assert_async.default, aten._assert_scalar.default)
_MADE = {op for rule in (*views.RULES, *factories.RULES) for op in rule.ops}


@dataclass
class _Body:
    """A region body as padded: its module's name, the resources it asks for, and the claims on its results."""

    name: str
    keys: tuple[Key, ...]
    results: tuple[Claims, ...]


class Analysis:
    """Pads one program.

    A body is rewritten once, under the weakest claims that any call site makes on its operands; trying finds them.

    Args:
        program: with dimensions; left as it is.
        strict: never rely on finite pads.
    """

    def __init__(self, program: Program, *, strict: bool) -> None:
        self.source = with_settled_sizes(program)
        self.strict = strict
        self.ranges = {dim.symbol: (dim.low, dim.high) for dim in program.dimensions}
        self.names = {dim.symbol: dim.name for dim in program.dimensions}
        self.assumed: dict[Any, tuple[Claims, ...]] = {}

    def run(self) -> Program:
        """The padded program.

        Raises:
            PaddingError: an op has no rule, or its rule cannot be met; names the user's line.
        """
        for _ in range(_ATTEMPTS):
            self.journal = Journal()
            self.done: dict[Any, _Body] = {}
            self.stable = True
            padded = self._attempt(self.source.copy())
            if self.stable:
                return padded
        raise InternalError("the claims on region bodies do not settle")

    def _attempt(self, program: Program) -> Program:
        root = program.root
        rewriter = Rewriter(root)
        lengths = self._length_inputs(rewriter, program)
        inputs = (
            *program.inputs,
            *(InputSpec(lengths[d.symbol].name, InputKind.LENGTH, d.name) for d in program.dimensions),
        )
        sizes = {dim.symbol: self._place(root.graph, dim.positions[0]) for dim in program.dimensions}
        claims: dict[fx.Node, Claims] = {node: Pads(()) for node in lengths.values()}
        for node in [n for n in root.graph.nodes if n.op == "placeholder" and n not in claims]:
            claims[node] = None
        first = next(node for node in root.graph.nodes if node.op not in ("placeholder", "get_attr"))
        with root.graph.inserting_before(first):
            anchor = root.graph.call_function(aten.scalar_tensor.default, (0,))
        anchor.meta["val"] = val(next(iter(lengths.values())))
        claims[anchor] = Pads(())
        resources = RootResources(rewriter, self.names, claims, lengths, sizes, anchor)
        padder = Padder(rewriter, resources, self.journal, strict=self.strict, ranges=self.ranges)
        padder.claims = claims
        for node in [n for n in root.graph.nodes if n.op == "placeholder" and n not in lengths.values()]:
            padder.node = node
            claims[node] = Pads(padder.dims_of(val(node), constant(_zero(val(node)), strong=True)))
        claims.update(claims_on_caches(program, sizes, claims))
        results = self._walk(padder, root)
        record = self._record(program, inputs, padder, results)
        rewriter.modified = True
        rewriter.finish()
        if self.stable:
            _note_claims(padder)
            values = [val(node) for node in root.graph.nodes if node.op == "placeholder"]
            propagate(root, values, fake_mode_of(root.graph))
        return replace(program, inputs=inputs, padded=record)

    def _length_inputs(self, rewriter: Rewriter, program: Program) -> dict[str, fx.Node]:
        graph = rewriter.graph
        last = [node for node in graph.nodes if node.op == "placeholder"][-1]
        mode = fake_mode_of(graph)
        made = {}
        for dim in program.dimensions:
            with graph.inserting_after(last):
                last = graph.placeholder(f"length_{dim.name}")
            last.meta["val"] = mode.from_tensor(torch.tensor(1), static_shapes=True)
            made[dim.symbol] = last
        return made

    @staticmethod
    def _place(graph: fx.Graph, position: tuple[str, int]) -> tuple[fx.Node, int]:
        node = next(node for node in graph.nodes if node.op == "placeholder" and node.name == position[0])
        return node, position[1]

    def _record(
        self, program: Program, inputs: tuple[InputSpec, ...], padder: Padder, results: tuple[Claims, ...]
    ) -> PadRecord:
        shown = tuple(
            tuple(tuple(text(factor.size, self.names) for factor in dim) for dim in claims.dims)
            if isinstance(claims, Pads)
            else ()
            for claims in results
        )
        nodes = {node.name: node for node in padder.rewriter.graph.nodes if node.op == "placeholder"}
        users = tuple(
            tuple(text(expression(size), self.names) for size in val(nodes[spec.name]).shape)
            for spec in inputs
            if spec.kind is InputKind.USER
        )
        number = itertools.count()
        proofs = tuple(
            proof_of(spec.target or f"output {next(number)}", spec.kind, dims)
            for spec, dims in zip(program.outputs, shown, strict=True)
        )
        certificate = PadCertificate(proofs, tuple(self.journal.edits), tuple(self.journal.finite), self.strict)
        return PadRecord(shown, users, certificate)

    # -- one graph -------------------------------------------------------------------------------------------------

    def _walk(self, padder: Padder, module: fx.GraphModule) -> tuple[Claims, ...]:
        """Judges every node in order, those that rules insert included; returns the claims on the outputs."""
        padder.judge = lambda node: self._judge(padder, module, node)
        graph = module.graph
        done = next(iter(graph.nodes))
        end = output_of(graph)
        while done.next is not end:
            node = done.next
            if node in padder.claims or node.op in ("placeholder", "get_attr"):
                done = node
                continue
            claims = self._judge(padder, module, node)
            if not node._erased:
                padder.claims[node] = claims
        padder.node = end
        return tuple(self._output(padder, value) for value in outputs_of(graph))

    @staticmethod
    def _output(padder: Padder, value: Any) -> Claims:
        if isinstance(value, fx.Node) and not isinstance(val(value), torch.Tensor):
            raise PaddingError(
                "the model returns a size", where=where(value, "pad"), hint="return the tensor; its shape says it"
            )
        return padder.pads(value) if isinstance(value, fx.Node) else None

    def _judge(self, padder: Padder, module: fx.GraphModule, node: fx.Node) -> Claims:
        before, padder.node = padder.node, node
        try:
            return self._claims(padder, module, node)
        finally:
            padder.node = before

    def _claims(self, padder: Padder, module: fx.GraphModule, node: fx.Node) -> Claims:
        if node.target is operator.getitem and isinstance(padder.claims.get(node.args[0]), tuple):  # type: ignore[arg-type]
            return padder.claims[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.target in CALLS:
            return self._call(padder, module, node)
        op = node.target
        if not isinstance(op, torch._ops.OpOverload) or not _tensors(val(node)):
            if isinstance(op, torch._ops.OpOverload) and op not in _ASSERTS and _reads_data(padder, node):
                raise padder.refuse("it reads a tensor's value on the host")
            return None
        if _static(padder, node) and op not in _MADE and not pointwise.pointwise(op):
            made = tuple(Pads(padder.dims_of(value)) for value in _tensors(val(node)))
            return made if isinstance(val(node), (tuple, list)) else made[0]
        if torch.Tag.nondeterministic_seeded in op.tags and not _inert(node):
            raise padder.refuse("a random stream is another one at another shape")
        rule = rule_of(op)
        if rule is None:
            raise padder.refuse("there is no padding rule for this op")
        return rule.function(padder, node)

    # -- region bodies ---------------------------------------------------------------------------------------------

    def _call(self, padder: Padder, module: fx.GraphModule, node: fx.Node) -> Claims:
        operands = tuple(padder.claims.get(arg) if isinstance(arg, fx.Node) else None for arg in operands_of(node))
        if node.target is call_region:
            return self._entered(padder, module, node, operands)[1]
        count, rows = int(node.args[3]), give_length(padder, node)  # type: ignore[arg-type]
        key, results = self._entered(padder, module, node, started(operands, count))
        before = self.assumed[key]
        after = self.assumed[key] = handed_on(padder, before, results[:count])
        self.stable = self.stable and after == before  # else once more, from claims that hold after a trip too
        return (*after[1 : count + 1], *(stacked(claims, rows) for claims in results[count:]))

    def _entered(
        self, padder: Padder, module: fx.GraphModule, node: fx.Node, operands: tuple[Claims, ...]
    ) -> tuple[Any, tuple[Claims, ...]]:
        """Pads the body of a call once for all calls of one layout; gives its key and the claims on its results."""
        body_node = node.args[0]
        assert isinstance(body_node, fx.Node), "a region call names its body"
        name = str(body_node.target)
        key = (name, tuple(map(layout_of, operands)))
        known = self.assumed.get(key)
        joined = operands if known is None else tuple(map(shared, known, operands))
        if known is not None and joined != known:
            self.stable = self.stable and key not in self.done
        self.assumed[key] = joined
        if key not in self.done:
            self.done[key] = self._body(padder.resources, module, name, key, joined)
        body = self.done[key]
        if body.name != name:
            with padder.rewriter.graph.inserting_before(node):
                body_node = padder.rewriter.graph.get_attr(body.name)
        node.args = (body_node, *node.args[1:], *(padder.resources.get(need) for need in body.keys))
        return key, body.results

    def _body(
        self, caller: Resources, module: fx.GraphModule, name: str, key: Any, operands: tuple[Claims, ...]
    ) -> _Body:
        variants = sum(1 for other in self.done if other[0] == name)
        label = f"{name}_{variants}" if variants else name
        body = self.source.copy().bodies[name] if variants else getattr(module, name)
        setattr(module, label, body)
        rewriter = Rewriter(body)
        claims: dict[fx.Node, Claims] = {}
        resources = BodyResources(rewriter, self.names, claims, caller)
        padder = Padder(rewriter, resources, self.journal, strict=self.strict, ranges=self.ranges)
        padder.claims = claims
        placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
        claims.update(zip(placeholders, operands, strict=True))
        results = self._walk(padder, body)
        _note_claims(padder)
        rewriter.finish()
        return _Body(label, tuple(resources.made), results)


def _zero(value: Any) -> Any:
    return False if value.dtype is torch.bool else 0


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves: Iterable[Any] = value if isinstance(value, (tuple, list)) else (value,)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _static(padder: Padder, node: fx.Node) -> bool:
    """Whether nothing about a node is dynamic."""
    sizes = [size for value in _tensors(val(node)) for size in value.shape]
    if any(expression(size).free_symbols for size in sizes):
        return False
    operands = node.all_input_nodes
    numbers = [val(arg) for arg in operands if not _tensors(val(arg))]
    if any(isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool)) for number in numbers):
        return False
    return all(not padder.pads(arg).padded_dims for arg in operands)


def _reads_data(padder: Padder, node: fx.Node) -> bool:
    return op_name(node) in ("aten.item", "aten._local_scalar_dense")


def _inert(node: fx.Node) -> bool:
    """Dropout at inference draws nothing."""
    return node.target is aten.dropout.default and not node.args[2]


def _note_claims(padder: Padder) -> None:
    """Leaves the claims on the nodes, for the oracle."""
    for node in padder.rewriter.graph.nodes:
        claims = padder.claims.get(node)
        if claims is not None:
            node.meta["pads"] = claims
