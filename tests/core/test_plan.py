"""Lowering to plans: where the root graph is cut, what crosses the cuts, and how a plan reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

import gaudicc
from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.compiled import CompiledModel
from gaudicc.errors import LoweringError, UnsupportedOpError
from gaudicc.lower import lower
from gaudicc.nodes import op_name
from gaudicc.plan import Barrier, BufferKind, HostBranch, HostLoop, HostOp, Plan, Record, Ref
from gaudicc.program import Program
from gaudicc.targets import Engine

X = torch.linspace(0.5, 3, 12).view(3, 4)


def only_host(x: Tensor) -> Tensor:
    """Ends in an op that the target does not have and that nothing decomposes."""
    return torch.polygamma(9, x.abs() + 1)


class Between(nn.Module):
    """An op that only the host has (`polygamma`), between two segments, and state written after it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.total: Tensor
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.sum(0))
        y = only_host(self.linear(x))
        return torch.relu(y + self.total)


class OnlyHost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor
        self.register_buffer("last", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        self.last = torch.polygamma(9, x)
        return []


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return only_host(self.linear(x)) + x


class Layers(nn.Module):
    """The host's op inside a body that three layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Several(nn.Module):
    """A host op with several results, of which one is unused and one is returned as it is."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, s, _ = torch.linalg.svd(x, full_matrices=False)
        return u, torch.relu(s)


class Unused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        r: Tensor = torch.linalg.svd(x * 2, full_matrices=False).S
        return r + 1


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def on_host(kind: Callable[[], nn.Module]) -> CompiledModel:
    return gaudicc.compile(made(kind), (X,), on_unsupported="host", verify="numerics")


def kinds(plan: Plan) -> list[str]:
    return [type(step).__name__ for step in plan.steps]


def test_a_program_is_one_record_that_writes_state_itself(make_stack: Callable[..., nn.Module]) -> None:
    plan = gaudicc.compile(make_stack(3, state=True), (torch.randn(2, 8),)).plan()
    (step,) = plan.steps
    assert isinstance(step, Record)
    state = next(name for name, kind in plan.buffers.items() if kind is BufferKind.STATE)
    assert state in step.outputs
    assert plan.writes == ()
    assert [name for name, kind in plan.buffers.items() if kind is BufferKind.INPUT] == ["x"]


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (Between, ["Record", "HostOp", "Record"]),
        (OnlyHost, ["HostOp"]),
        (Layers, ["Record", "HostOp"] * 3 + ["Record"]),
        (Several, ["HostOp", "Record"]),
        (Unused, ["Record", "HostOp", "Record"]),
    ],
)
def test_ops_left_on_the_host_cut_the_graph_and_results_are_equal(
    make: Callable[[], nn.Module], steps: list[str]
) -> None:
    compiled = on_host(make)
    assert kinds(compiled.plan()) == steps
    eager = made(make)
    for factor in (1.0, 0.5, 2.0):
        torch.testing.assert_close(compiled(X * factor), eager(X * factor), rtol=1e-5, atol=1e-5)
    own = {name: compiled._state[name] for name, _ in eager.named_buffers()}
    torch.testing.assert_close(own, dict(eager.named_buffers()))
    assert compiled.stats.host_ops == 3 * steps.count("HostOp")
    assert compiled.stats.replays == 3 * steps.count("Record")
    assert compiled.stats.records == steps.count("Record")


def test_without_on_unsupported_the_op_is_refused_with_its_line() -> None:
    with pytest.raises(UnsupportedOpError, match="polygamma") as caught:
        gaudicc.compile(Between().eval(), (X,))
    assert "test_plan.py" in str(caught.value.where.source)
    assert "on_unsupported='host'" in caught.value.todo


def test_host_ops_say_what_they_cost_and_where_they_are() -> None:
    compiled = on_host(Between)
    (host,) = [step for step in compiled.plan().all_steps() if isinstance(step, HostOp)]
    assert host.bytes_moved == 2 * X.numel() * 4
    assert "test_plan.py" in str(host.source)
    compiled(X)
    assert compiled.stats.host_bytes == host.bytes_moved
    (entry,) = compiled.certificate.buckets[0].host
    assert "polygamma" in entry
    assert "test_plan.py" in entry


def test_segments_are_graphs_of_their_own() -> None:
    graphs = on_host(Between).graph()
    assert isinstance(graphs, dict)
    first, second = graphs.values()
    assert {op_name(n) for n in first.graph.nodes if n.op == "call_function"} >= {"aten.linear", "aten.sum.dim_IntList"}
    assert {op_name(n) for n in second.graph.nodes if n.op == "call_function"} == {"aten.add.Tensor", "aten.relu"}


def test_every_buffer_that_a_step_names_is_declared() -> None:
    for make in (Between, OnlyHost, Layers, Several, Unused):
        plan = on_host(make).plan()
        known = {name for name, kind in plan.buffers.items() if kind is not BufferKind.VALUE}
        for step in plan.all_steps():
            assert isinstance(step, (Record, HostOp))
            reads = step.inputs if isinstance(step, Record) else [arg.name for arg in step.args if isinstance(arg, Ref)]
            assert set(reads) <= known, "read before it is written"
            known |= set(step.outputs)
        assert set(plan.outputs) | {value for _, value in plan.writes} <= known
        assert known == set(plan.buffers)


def test_a_region_stays_whole_where_no_op_of_its_body_is_on_the_host(make_stack: Callable[..., nn.Module]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = make_stack(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.stack(only_host(x))  # type: ignore[no-any-return]

    compiled = gaudicc.compile(Model().eval(), (torch.randn(2, 8),), on_unsupported="host")
    record = compiled.plan().steps[-1]
    assert isinstance(record, Record)
    assert sum("call_region" in node.name for node in record.graph.graph.nodes) == 3


def segment(function: Callable[..., object], *examples: Tensor) -> Program:
    return capture(function, examples)


def test_a_plan_prints_as_a_small_program() -> None:
    graph = segment(lambda x: x * 2, X).root
    record = Record(graph, ("x",), ("y",))
    host = HostOp(torch.ops.aten.i0.default, (Ref("y"),), {}, ("z",), 8, "model.py:3")
    plan = Plan(
        Bucket(("batch",), (2,)),
        {"x": BufferKind.INPUT, "flag": BufferKind.INPUT, "y": BufferKind.VALUE, "z": BufferKind.VALUE},
        (HostBranch("flag", (record, host), (HostLoop((record,), "flag", 4), Barrier(), host)),),
        ("z",),
    )
    assert [type(step).__name__ for step in plan.all_steps()] == [
        "HostBranch", "Record", "HostOp", "HostLoop", "Record", "Barrier", "HostOp",
    ]  # fmt: skip
    assert_expected_inline(
        str(plan),
        """\
plan for batch=2:
  if flag:
    record y <- 1 buffers  # 2 lines
    host z <- aten.i0.default(Ref(name='y'))  # model.py:3
  else:
    repeat while flag, at most 4 times:
      record y <- 1 buffers  # 2 lines
    barrier
    host z <- aten.i0.default(Ref(name='y'))  # model.py:3
  return z""",
    )


def test_what_crosses_a_cut_is_a_tensor() -> None:
    program = segment(lambda x: x + 1, X)
    program.root.graph.output_node().args = ((3,),)
    with pytest.raises(LoweringError, match="output 3 is not a tensor"):
        lower(program, Bucket((), ()))


def test_a_host_op_beside_a_nested_region_is_refused(make_stack: Callable[..., nn.Module]) -> None:
    outer = capture(make_stack(3), (torch.randn(2, 8),))
    body = outer.bodies["block"]
    node = next(node for node in body.graph.nodes if op_name(node) == "aten.relu")
    node.meta["engine"] = Engine.HOST
    body.add_module("inner", capture(lambda x: torch.relu(x), (X,)).root)
    with body.graph.inserting_before(node):
        body.graph.get_attr("inner")
    with pytest.raises(LoweringError, match="beside a nested region"):
        lower(outer, Bucket((), ()))
