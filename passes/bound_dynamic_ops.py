"""bound-dynamic-ops: tensors whose length only data knows become tensors of their largest length, and a count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from gaudicc.errors import UnsupportedOpError
from gaudicc.fake_values import propagate_anew
from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import call_region, op_name, output_of, outputs_of, val, where
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import InputKind, OutputKind, OutputSpec, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.bounded import Number, Refused
from gaudicc.rules.bounded_walk import BoundingWalk
from gaudicc.rules.unknown_sizes import is_dynamic, selects_nothing, unknown_dims

aten = torch.ops.aten
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_KINDS: dict[type, str] = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}
_READS = (aten.item.default, aten._local_scalar_dense.default)
_HINT = "keep the full size and mask instead of selecting, or fix the sizes in dynamic_shapes"


@dataclass(frozen=True)
class BoundDynamicOps:
    """Bounds the ops whose output is as long as data says, where the program implies a largest length.

    A Gaudi replays graphs of fixed shape, and runs `nonzero` and boolean selection on the host. The largest length of what
    a mask selects is the mask's size: rows are moved to the front by a running count, and their number goes along; ops that
    would mix them with what lies behind mask it first. Numbers read by `.item()` stay tensors of no dims, asserts on them
    become flags that the host raises, and outputs are cut by the host. Where sizes are dynamic besides, a largest length is one
    of them.

        %2 = aten.nonzero(%1)    ->    %n = aten.select(aten.cumsum(%1, 0), 0, -1); %2 = aten.scatter(%0, 0, %slots, %places)

    Refuses by line an op that has no form on such tensors, and a length that nothing bounds.
    """

    name: ClassVar[str] = "bound-dynamic-ops"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, program: Program) -> PassResult:
        """Walks the root once, after inlining the bodies that hold such ops."""
        if not any(
            is_dynamic(node) or selects_nothing(node) for _, module in program.graphs() for node in module.graph.nodes
        ):
            return PassResult(program, False)
        _inline_regions(program.root)
        fixed = {spec.name: program.tensors[spec.source] for spec in program.inputs if spec.kind is InputKind.CONSTANT}
        walk = BoundingWalk(Rewriter(program.root), fixed)
        try:
            walk.run()
            outputs = _outputs(walk, program)
        except Refused as reason:
            what = f"the size of what {op_name(walk.node)} gives depends on the values of a tensor, and {reason}"
            raise UnsupportedOpError(what, where=where(walk.node, self.name), hint=_HINT) from reason
        walk.rewriter.finish()
        if walk.rewriter.restrided:
            propagate_anew(program.root)
        calling = program.calling
        raises = (*calling.raises, *(entry for entry, _ in walk.flags))
        bounded = replace(program, outputs=outputs, calling=replace(calling, raises=raises))
        return PassResult(bounded, True, (f"{walk.bounded} tensors of unknown length bounded",))


def _inline_regions(root: fx.GraphModule) -> None:
    """Inlines the bodies that hold such ops: their lengths are no operands of a shared body."""
    rewriter = Rewriter(root)
    for node in list(root.graph.nodes):
        if node.target is not call_region:
            continue
        body = getattr(root, str(node.args[0].target))
        _inline_regions(body)
        if any(map(is_dynamic, body.graph.nodes)):
            rewriter.replace_outputs(node, rewriter.splice(body, node.args[1:], like=node, keep_provenance=True))
    rewriter.finish()
    read = {node.target for node in root.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in root.named_children() if name not in read]:
        delattr(root, name)


def _outputs(walk: BoundingWalk, program: Program) -> tuple[OutputSpec, ...]:
    """What the root returns: the largest tensors, then their lengths; flags in one tensor."""
    found: list[fx.Node] = []
    specs: list[OutputSpec] = []
    flags = [failed for _, failed in walk.flags]
    lengths: list[tuple[fx.Node, OutputSpec]] = []
    for value, spec in zip(outputs_of(walk.rewriter.graph), program.outputs, strict=True):
        if value in walk.rows and spec.kind is not OutputKind.USER:
            walk.node = value
            raise Refused("it is a state")
        if value in walk.numbers:
            found.append(_number(walk, value))
            specs.append(replace(spec, target=_KINDS[type(val(value))]))
            continue
        if spec.kind is OutputKind.FLAG:
            flags = [*walk.inline(lambda t: aten.unbind.int(t, 0), value), *flags]
            continue
        if value in walk.rows:
            rows = walk.rows[value]
            if len(unknown_dims(val(value).shape)) > 1:
                walk.node = value
                raise Refused("it is a result with two dims of unknown length")
            output = sum(known.kind is OutputKind.USER for known in specs)
            lengths.append((rows.length, OutputSpec(OutputKind.LENGTH, f"{output}:{rows.dim}")))
        found.append(walk.rows[value].value if value in walk.rows else value)
        specs.append(spec)
    if flags:
        lengths.append((walk.inline(lambda *t: aten.stack.default(list(t)), *flags), OutputSpec(OutputKind.FLAG)))
    output_of(walk.rewriter.graph).args = ((*found, *(node for node, _ in lengths)),)
    return (*specs, *(spec for _, spec in lengths))


def _number(walk: BoundingWalk, value: fx.Node) -> fx.Node:
    """The tensor, of no dims, of a number that the model returns."""
    number = walk.numbers[value]
    if not isinstance(number, Number) or number.node is None:
        walk.node = value
        raise Refused("it is a number without a tensor, and is returned")
    return number.node
