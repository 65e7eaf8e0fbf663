"""assign-engines: every op gets the engine of the target's table, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.invariants import ENGINE_ASSIGNED, verdict_of
from gaudicc.nodes import is_op, op_name
from gaudicc.passes.assign_engines import AssignEngines
from gaudicc.program import Program
from gaudicc.targets import Engine, load_target


def engines(program: Program) -> dict[str, Engine]:
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    return {op_name(node): node.meta["engine"] for node in nodes}


def model(x: Tensor, weight: Tensor) -> Tensor:
    return (torch.mm(x, weight).relu().t() + 1).clone()


def test_products_on_the_mme_the_rest_on_the_tpc_views_nowhere(capture_of: Any, alone: Any) -> None:
    after, record = alone(AssignEngines(), capture_of(model, torch.randn(4, 4), weight=torch.randn(4, 4)))
    assert engines(after) == {
        "aten.mm": Engine.MME, "aten.relu": Engine.TPC, "aten.t": Engine.NONE, "aten.add.Tensor": Engine.TPC,
        "aten.clone": Engine.TPC,
    }  # fmt: skip
    assert record.notes == ("MME 1, TPC 3, none 1",)


def test_only_meta_changes_and_twice_is_once(capture_of: Any, alone: Any, text_of: Any) -> None:
    program = capture_of(model, torch.randn(4, 4), weight=torch.randn(4, 4))
    after, _ = alone(AssignEngines(), program)
    assert text_of(after) == text_of(program)
    again, record = alone(AssignEngines(), after)
    assert not record.modified
    assert not AssignEngines().run(after.copy()).modified
    assert engines(again) == engines(after)


def test_each_op_of_each_graph_has_one(make_stack: Any, alone: Any) -> None:
    from gaudicc.capture import capture

    program = capture(make_stack(3), (torch.randn(2, 8),))
    program.target = load_target("gaudi3")
    unassigned = [v for _, m in program.graphs() for v in ENGINE_ASSIGNED.violations(program, m)]
    assert len(unassigned) == sum(program.count_ops().values())
    after = AssignEngines().run(program).program
    assert not [v for _, m in after.graphs() for v in ENGINE_ASSIGNED.violations(after, m)]


def test_what_was_left_on_the_host_stays_there(capture_of: Any) -> None:
    program = capture_of(lambda x: x.cos().relu(), torch.randn(3))
    cos = next(node for node in program.root.graph.nodes if op_name(node) == "aten.cos")
    cos.meta["engine"] = Engine.HOST
    assert engines(AssignEngines().run(program).program) == {"aten.cos": Engine.HOST, "aten.relu": Engine.TPC}


@pytest.mark.parametrize("chip", ["gaudi2", "gaudi3"])
@given(names=st.lists(st.sampled_from(["relu", "cos", "t", "mm", "clone", "sum"]), min_size=1, max_size=5))
def test_the_table_decides(chip: str, names: list[str], capture_of: Any) -> None:
    steps = {
        "relu": torch.relu, "cos": torch.cos, "t": torch.t, "mm": lambda x: torch.mm(x, x), "clone": torch.clone,
        "sum": lambda x: x.sum(0, keepdim=True).expand(3, 3),
    }  # fmt: skip

    def chain(x: Tensor) -> Tensor:
        for name in names:
            x = steps[name](x)
        return x

    program = capture_of(chain, torch.randn(3, 3))
    program.target = load_target(chip)
    after = AssignEngines().run(program).program
    for node in after.root.graph.nodes:
        if is_op(node):
            assert node.meta["engine"] is verdict_of(node, after).engine
