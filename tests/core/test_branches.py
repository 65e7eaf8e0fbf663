"""Branches cut out of graphs: one side alone is run, and the results are those of both sides and a selection."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gaudicc.buckets import Bucket
from gaudicc.conditions import Facts, conditions_of
from gaudicc.fake_values import trace
from gaudicc.lower import lower
from gaudicc.passes.choose_branches import ChooseBranches
from gaudicc.plan import HostBranch, Plan, Record
from gaudicc.program import InputKind, InputSpec, OutputKind, OutputSpec, Program
from gaudicc.runtime.device import Device, Segment
from gaudicc.runtime.runner import Counters, Runner

aten = torch.ops.aten
Step = tuple[str, int, int, int]


class Direct:
    """Runs a segment as it stands; outputs are fresh, and the ops are counted."""

    name = "cpu"

    def __init__(self) -> None:
        self.ran: list[str] = []

    def record(self, segment: Segment, *, borrow: bool = False) -> Any:
        device, graph = self, segment.graph
        names = [node.name for node in graph.graph.find_nodes(op="placeholder") if node.name not in segment.bound]

        class Recording:
            bytes_held = 0

            def replay(self, *inputs: Tensor) -> tuple[Tensor, ...]:
                device.ran += [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
                given = {**segment.bound, **dict(zip(names, inputs, strict=True))}
                results = graph(*[given[node.name] for node in graph.graph.find_nodes(op="placeholder")])
                # as they are laid out, gaps and repeats too: sums go another way where they are not
                return tuple(r.clone() if any(r is x for x in inputs) else r for r in results)

        return Recording()

    def fetch(self, tensor: Tensor) -> Tensor:
        return tensor


def program_of(function: Any, *inputs: Tensor) -> Program:
    mode = FakeTensorMode()
    root = trace(function, [mode.from_tensor(x) for x in inputs], mode)
    for node in root.graph.find_nodes(op="placeholder"):
        node.target = node.name
    specs = tuple(InputSpec(n.name, InputKind.USER, n.name) for n in root.graph.find_nodes(op="placeholder"))
    count = len(root.graph.output_node().args[0])  # type: ignore[arg-type]
    return Program(root, specs, (OutputSpec(OutputKind.USER),) * count, {}, cast(Any, None))


def planned(program: Program) -> Plan:
    """The plan in which the host decides whatever it can."""
    marked = ChooseBranches("host").run(program.copy()).program
    return lower(marked, Bucket((), ()))


def run(plan: Plan, *inputs: Tensor, device: Direct | None = None) -> tuple[tuple[Tensor, ...], Counters]:
    counters = Counters()
    results = Runner(plan, {}, cast(Device, device or Direct()), counters).run(inputs)
    return results, counters


def same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5))
    )


# -- any graph ------------------------------------------------------------------------------------------------------


def carry_out(steps: list[Step], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Values and conditions made of each other; each step names three of those there are, counted from the last."""
    values, tests = [x, y], [x.sum() > 0]
    for name, a, b, c in steps:
        one, other, test = values[-1 - a % len(values)], values[-1 - b % len(values)], tests[-1 - c % len(tests)]
        if name == "where":
            values.append(torch.where(test, one, other))
        elif name == "broadcast":
            values.append(torch.where(test, one, other.sum()))
        elif name == "unary":
            values.append(one.sin() if c % 2 else one.t().contiguous().t() + 1)
        elif name == "binary":
            values.append(one * other - c)
        elif name == "max":
            values.append(one.max(0).values.expand(3, 3) if c % 2 else one.sort(0).values)
        elif name == "test":
            tests.append(one.mean() > other.mean() - (c % 3) / 2)
        elif name == "not":
            tests.append(test.logical_not())
        else:
            both = aten.logical_and.default if name == "and" else aten.logical_or.default
            tests.append(both(test, tests[-1 - a % len(tests)]))
    return (*values[-1 - steps[0][1] % 3 :], tests[-1])


NAMES = ("where", "where", "where", "broadcast", "unary", "binary", "max", "test", "not", "and", "or")
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), *[st.integers(0, 5)] * 3), min_size=4, max_size=30)


@settings(max_examples=40)
@given(
    STEPS, st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.3, 1.0, float("nan"), float("inf")]), min_size=18, max_size=18)
)
def test_any_graph_gives_the_same_when_the_host_decides(steps: list[Step], numbers: list[float]) -> None:
    x, y = torch.tensor(numbers).view(2, 3, 3)
    program = program_of(lambda x, y: carry_out(steps, x, y), torch.ones(3, 3), torch.ones(3, 3))
    plan = planned(program)
    for inputs in ((x, y), (y, x), (-x, y), (x * 0.1, -y)):
        wanted = program.root(*inputs)
        given, _ = run(plan, *inputs)
        assert all(map(same, given, wanted)), f"\n{program.root.code}\n{plan}"


# -- what is cut out ------------------------------------------------------------------------------------------------


def test_what_one_side_alone_needs_is_run_on_that_side_alone() -> None:
    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        long, short = x.sin().cos().exp(), y.tanh()
        return (torch.where(x.sum() > 0, long + short, short),)

    program = program_of(body, torch.ones(2), torch.ones(2))
    plan = planned(program)
    for sign, left_out in ((1.0, set()), (-1.0, {"sin", "cos", "exp", "add"})):
        device = Direct()
        x, y = torch.full((2,), sign), torch.ones(2)
        (given,), counters = run(plan, x, y, device=device)
        assert same(given, body(x, y)[0])
        assert counters.host_reads == 1
        assert {"sin", "cos", "exp", "add", "tanh"} - {name.split(".")[1] for name in device.ran} == left_out


def test_a_condition_that_is_used_twice_makes_two_branches_around_what_is_always_run() -> None:
    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        test = x.sum() > 0
        x = torch.where(test, x.sin(), y)
        x = (x @ y).tanh()
        return (torch.where(test, x.cos(), x.exp()),)

    plan = planned(program_of(body, torch.ones(2, 2), torch.ones(2, 2)))
    assert [type(step) for step in plan.steps] == [Record, HostBranch, Record, HostBranch]
    for sign in (1.0, -1.0):
        x = torch.full((2, 2), sign)
        (given,), _ = run(plan, x, x + 1)
        assert same(given, body(x, x + 1)[0])


def test_what_is_known_of_a_condition_decides_others() -> None:
    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a, b, c = x.sum() > 0, x.max() > 1, y.sum() > 0
        both, either = torch.logical_and(a, b), torch.logical_or(b, c)
        return torch.where(both, x, y), torch.where(torch.logical_not(either), x, y), torch.where(a & both, y, x)

    graph = program_of(body, torch.ones(2), torch.ones(2)).root.graph
    both, neither, third = conditions_of(graph)
    a, b = both.all_input_nodes
    c = neither.all_input_nodes[0].all_input_nodes[1]
    nodes = (a, b, c, neither, third)
    assert [Facts(both, True).value(node) for node in nodes] == [True, True, None, False, True]
    assert [Facts(neither, True).value(node) for node in (a, b, c, both, third)] == [None, False, False, False, False]
    assert [Facts(a, True).value(node) for node in (b, both, third)] == [None] * 3
    assert Facts(third, False).value(both) is None


@pytest.mark.parametrize("holds", [True, False])
def test_a_side_is_chosen_where_it_can_be_laid_out_like_the_selection(holds: bool) -> None:
    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        test = x.sum() > 0
        return torch.where(test, x.t(), x.t() * 2), torch.where(test, x, x.sum()), torch.where(test, x.double(), y)

    graph = program_of(body, torch.ones(2, 2), torch.ones(2, 2)).root.graph
    (test,) = conditions_of(graph)
    selections = [node for node in graph.nodes if node.target is aten.where.self]
    found = [Facts(test, holds).chosen(node) for node in selections]
    assert found == [node.args[1 if holds else 2] if i < 2 or holds else None for i, node in enumerate(selections)]
