"""Order of nodes: any graph computes what it did, and parts of rows leave no engine waiting for another's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from gaudicc.fake_values import trace
from gaudicc.machine import Chip, load_chip, vendor_schedule
from gaudicc.machine.fx_order import bring_forward, order_by_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import limits_of

aten = torch.ops.aten


def traced(function: Any, inputs: list[Tensor]) -> fx.GraphModule:
    mode = FakeTensorMode()
    return trace(function, [mode.from_tensor(x) for x in inputs], mode)


STEPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12)


def keeps_values(steps: list[tuple[int, int, int]], order: Callable[[fx.GraphModule, Chip], None]) -> None:
    """Another order of any graph computes the same with the same nodes."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        made = [x, x + 1]
        for op, one, other in steps:
            a, b = made[one % len(made)], made[other % len(made)]
            made.append([a @ b, a + b, a.tanh(), a.t(), torch.cat([a, b])[2:6], aten.linear.default(a, w)][op])
        return made[-1] * made[len(made) // 2]

    inputs = [torch.randn(4, 4), torch.randn(4, 4)]
    module = traced(function, inputs)
    before, names = module(*inputs), {node.name for node in module.graph.nodes}
    order(module, load_chip("gaudi3"))
    module.graph.lint()
    module.recompile()
    assert torch.equal(module(*inputs), before)
    assert {node.name for node in module.graph.nodes} == names


@given(STEPS)
def test_values_stay(steps: list[tuple[int, int, int]]) -> None:
    keeps_values(steps, order_by_schedule)


@settings(max_examples=5)
@given(STEPS)
def test_values_stay_where_long_ops_are_brought_forward(steps: list[tuple[int, int, int]]) -> None:
    def order(module: fx.GraphModule, chip: Chip) -> None:
        took = seconds(module, chip)
        bring_forward(module, chip, lambda graph: seconds(graph, chip))
        assert seconds(module, chip) <= took * (1 + 1e-9)

    keeps_values(steps, order)


def seconds(module: fx.GraphModule, chip: Chip) -> float:
    found = ProgramTasks(chip)
    found.graph(module, {})
    return vendor_schedule(found.tasks, limits_of(chip)).makespan


def test_a_long_way_is_started_first() -> None:
    """Three products, the last of which has much vector work behind it."""

    def function(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        one, other, third = (aten.linear.default(part, w) for part in (x, y, z))
        return one, other, third.tanh().exp().sigmoid().tanh()

    with torch.device("meta"):
        inputs = [torch.empty(1, 1024, 4096).bfloat16() for _ in range(3)]
        weight = torch.empty(4096, 4096).bfloat16()
    module, chip = traced(function, [*inputs, weight]), load_chip("gaudi3")
    before = seconds(module, chip)
    order_by_schedule(module, chip)
    assert seconds(module, chip) < 0.85 * before


def test_what_writes_stays_where_it_is() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return x.exp() @ w - (x + w) * x.tanh()

    inputs = [torch.randn(4, 4), torch.randn(4, 4)]
    module = traced(function, inputs)
    (added,) = module.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    added.target = aten.add_.Tensor
    module.recompile()
    before = module(*(x.clone() for x in inputs))
    order_by_schedule(module, load_chip("gaudi2"))
    module.recompile()
    assert torch.equal(module(*(x.clone() for x in inputs)), before)


def test_a_copy_that_waits_for_nothing_is_made_under_a_product() -> None:
    """The weight of the last product is copied by the TPCs, which wait while the MME does those before it."""

    def function(x: Tensor, w: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
        x = aten.linear.default(aten.linear.default(x, w), w)
        for _ in range(6):
            x = x.tanh()
        return torch.bmm(x, aten.index_select.default(table.transpose(1, 2), 0, chosen))

    with torch.device("meta"):
        x, w, table = (torch.empty(size).bfloat16() for size in ((8, 1024, 4096), (4096, 4096), (8, 4096, 4096)))
        module = traced(function, [x, w, table, torch.empty(8, dtype=torch.int64)])
    chip = load_chip("gaudi3")
    before = seconds(module, chip)
    assert bring_forward(module, chip, lambda graph: seconds(graph, chip)) == 1
    module.graph.lint()
    assert seconds(module, chip) < 0.9 * before
    assert bring_forward(module, chip, lambda graph: seconds(graph, chip)) == 0
