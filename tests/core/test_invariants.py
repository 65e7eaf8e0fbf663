"""Invariants: each predicate finds what it is named for, says why and where, and is silent on a good program."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.invariants import (
    CATALOGUE,
    DECOMPOSED,
    ENGINE_ASSIGNED,
    FUNCTIONAL,
    LEGAL_OPS,
    LOWERED,
    NO_DYNAMIC_CONTROL_FLOW,
    NO_HOST_READ,
    SHAPES_GUARDED,
    STATIC,
    TYPED,
    WELL_FORMED,
    Invariant,
    Violation,
)
from gaudicc.kernels import rms_norm
from gaudicc.nodes import is_op
from gaudicc.passes import STATIC as STATIC_PASSES
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets import load_target

aten = torch.ops.aten


def found(invariant: Invariant, program: Program) -> list[Violation]:
    return [v for _, module in program.graphs() for v in invariant.violations(program, module)]


def program_of(function: Callable[..., Any], *args: Tensor, dynamic: bool = False) -> Program:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    shapes = {"x": {0: Dim("n", min=2, max=9)}} if dynamic else None
    program = capture(Model().eval(), args or (torch.randn(4, 4),), dynamic_shapes=shapes)
    program.target = load_target("gaudi3")
    return program


def first_op(program: Program) -> fx.Node:
    found: fx.Node = next(node for node in program.root.graph.nodes if is_op(node))
    return found


def emit(program: Program, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Puts an op on the program's input, beside what is there."""
    node = first_op(program)
    return Rewriter(program.root).emit(op, node.args[0], *args, like=node, **kwargs)


def test_a_compiled_program_satisfies_all_that_its_passes_ensure(make_stack: Callable[..., nn.Module]) -> None:
    compiled = gaudicc.compile(make_stack(3), (torch.randn(2, 8),))
    static = compiled.static_program()
    ensured = frozenset().union(*(step.ensures for step in STATIC_PASSES))
    assert {LEGAL_OPS, LOWERED, STATIC, ENGINE_ASSIGNED} <= ensured
    for invariant in CATALOGUE:
        assert not found(invariant, static), invariant.name


def test_names_are_unique_and_documented() -> None:
    names = [invariant.name for invariant in CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name for name in names)
    assert all(invariant.summary for invariant in CATALOGUE)


def method_call() -> Program:
    program = program_of(torch.relu)
    node = first_op(program)
    with program.root.graph.inserting_before(node):
        program.root.graph.call_method("relu", (node.args[0],)).meta["val"] = node.meta["val"]
    return program


def tensor_attribute() -> Program:
    program = program_of(torch.relu)
    program.root.register_buffer("hidden", torch.ones(1))
    with program.root.graph.inserting_before(first_op(program)):
        program.root.graph.get_attr("hidden")
    return program


def lost_input() -> Program:
    program = program_of(torch.relu)
    return replace(program, inputs=())


def lost_output() -> Program:
    program = program_of(torch.relu)
    return replace(program, outputs=program.outputs * 2)


def untyped() -> Program:
    program = program_of(torch.relu)
    del first_op(program).meta["val"]
    return program


def mutating() -> Program:
    program = program_of(torch.relu)
    emit(program, aten.add_.Tensor, 1)
    return program


def host_read() -> Program:
    program = program_of(lambda x: x.sum() + 1)
    node = first_op(program)  # no fake value can be computed for such an op, so the rewriter would refuse to create it
    with program.root.graph.inserting_before(node):
        read = program.root.graph.call_function(aten.equal.default, (node.args[0], node.args[0]))
    read.meta.update(node.meta)
    return program


def semantic_op() -> Program:
    program = program_of(torch.relu, torch.randn(4))
    placeholder = first_op(program).args[0]
    emit(program, rms_norm, placeholder, 1e-5, False)
    program.target = None  # the targets known today have a fused kernel for each semantic op there is
    return program


def unengined() -> Program:
    return program_of(torch.relu)


def composite() -> Program:
    return program_of(lambda x: torch.diff(x, dim=1))


def dynamic() -> Program:
    return program_of(torch.relu, dynamic=True)


def unsupported() -> Program:
    return program_of(lambda x: torch.linalg.svd(x)[1])


def without_target() -> Program:
    program = program_of(torch.relu)
    program.target = None
    return program


@pytest.mark.parametrize(
    ("make", "invariant", "reason"),
    [
        (method_call, WELL_FORMED, "call_method relu"),
        (tensor_attribute, WELL_FORMED, "attribute hidden is no region body"),
        (lost_input, WELL_FORMED, "differ from the program's inputs"),
        (lost_output, WELL_FORMED, "returns 1 values, the program declares 2"),
        (untyped, TYPED, "has no fake value"),
        (mutating, FUNCTIONAL, "add_.Tensor writes to its argument"),
        (host_read, NO_HOST_READ, "aten.equal reads a tensor's value on the host"),
        (semantic_op, LOWERED, "gaudicc.rms_norm is a semantic op"),
        (unengined, ENGINE_ASSIGNED, "aten.relu has no engine"),
        (composite, DECOMPOSED, "aten.diff is a composite op"),
        (dynamic, STATIC, "symbolic shape"),
        (dynamic, SHAPES_GUARDED, r"no guard on x.shape\[0\] \(n\)"),
        (unsupported, LEGAL_OPS, "svd on gaudi3"),
        (without_target, LEGAL_OPS, "no target"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_each_invariant_finds_what_it_is_named_for(make: Any, invariant: Invariant, reason: str) -> None:
    violations = found(invariant, make())
    assert violations
    first = violations[0]
    assert re.search(reason, str(first)), str(first)
    if first.node is not None and invariant not in (TYPED, WELL_FORMED):
        assert first.node.op in ("call_function", "placeholder")
        assert "test_invariants.py" in str(first) or first.node.op == "placeholder"


def test_a_branch_decided_at_run_time_is_named() -> None:
    exported = torch.export.export(
        _Cond().eval(), (torch.randn(4),), strict=False
    )  # capture refuses it, so the graph is shown to the predicate as export gives it
    program = program_of(torch.relu)
    (violation,) = NO_DYNAMIC_CONTROL_FLOW.violations(program, exported.graph_module)
    assert "cond decides at run time" in violation.reason


class _Cond(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.relu, torch.neg, (x,))  # type: ignore[no-any-return]
