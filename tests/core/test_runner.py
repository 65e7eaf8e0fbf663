"""The runner: every kind of step, state that is written once all is done or not at all, and storage that is fresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.errors import LoweringError, StateError
from gaudicc.plan import Barrier, BufferKind, HostBranch, HostLoop, HostOp, Plan, Record, Ref, Step
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.runner import Counters, Runner

aten = torch.ops.aten
X = torch.linspace(-1, 2, 6).view(2, 3)
ONE = torch.tensor([1.0])


def record(
    function: Callable[..., Any], inputs: tuple[str, ...], outputs: tuple[str, ...], *examples: Tensor
) -> Record:
    """A Record of a function; examples default to `X` for each input."""
    return Record(capture(function, examples or tuple(X + i for i in range(len(inputs)))).root, inputs, outputs)


def plan_of(steps: tuple[Step, ...], outputs: tuple[str, ...], **kinds: BufferKind) -> Plan:
    """A plan over the buffers that its steps name; those without a kind are values."""
    names = {name for step in Plan(Bucket((), ()), {}, steps, ()).all_steps() for name in getattr(step, "outputs", ())}
    buffers = {**kinds, **{name: BufferKind.VALUE for name in sorted(names - set(kinds))}}
    return Plan(Bucket((), ()), buffers, steps, outputs)


def runner(plan: Plan, counters: Counters | None = None, bound: Mapping[str, Tensor] | None = None) -> Runner:
    return Runner(plan, bound or {}, CpuDevice(), counters or Counters())


INPUT, BOUND, STATE = BufferKind.INPUT, BufferKind.BOUND, BufferKind.STATE


def test_records_host_ops_and_barriers_in_order() -> None:
    counters = Counters()
    plan = plan_of(
        (
            record(lambda x, w: x * w, ("x", "w"), ("y",)),
            Barrier(),
            HostOp(aten.i0.default, (Ref("y"),), {}, ("z",), 48),
            record(lambda z, x: (z + x, z - x), ("z", "x"), ("a", "b")),
        ),
        ("b", "a"),
        x=INPUT, w=BOUND,
    )  # fmt: skip
    w = torch.full((2, 3), 0.5)
    run = runner(plan, counters, {"w": w})
    for factor in (1.0, 2.0):
        x = X * factor
        b, a = run.run([x])
        torch.testing.assert_close((a, b), (torch.i0(x * w) + x, torch.i0(x * w) - x))
    assert (counters.records, counters.replays, counters.host_ops, counters.host_bytes) == (2, 4, 2, 96)


def test_a_host_op_takes_buffers_inside_lists_and_gives_several() -> None:
    plan = plan_of(
        (
            HostOp(aten.cat.default, ([Ref("x"), Ref("x")],), {"dim": 1}, ("wide",)),
            HostOp(aten.split_with_sizes.default, (Ref("wide"), [2, 4], 1), {}, ("left", "right")),
        ),
        ("right", "left"),
        x=INPUT,
    )
    right, left = runner(plan).run([X])
    wide = torch.cat([X, X], 1)
    assert torch.equal(left, wide[:, :2])
    assert torch.equal(right, wide[:, 2:])


def branch_plan() -> Plan:
    then = (record(lambda x: x * 2, ("x",), ("y",)), HostOp(aten.neg.default, (Ref("y"),), {}, ("z",)))
    otherwise = (record(lambda x: (x + 1, x - 1), ("x",), ("y", "z")),)
    steps = (
        record(lambda x: x.sum().reshape(1) > 0, ("x",), ("flag",)),
        HostBranch("flag", then, otherwise),
        record(lambda y, z: y * z, ("y", "z"), ("out",)),
    )
    return plan_of(steps, ("out",), x=INPUT)


@given(st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6))
def test_a_branch_is_decided_by_each_calls_own_flag(values: list[float]) -> None:
    x = torch.tensor(values).view(2, 3)
    (out,) = BRANCH.run([x])
    expected = (x * 2) * -(x * 2) if x.sum() > 0 else (x + 1) * (x - 1)
    torch.testing.assert_close(out, expected)


BRANCH = runner(branch_plan())


def test_only_the_branch_taken_is_replayed_and_both_are_recorded_at_once() -> None:
    counters = Counters()
    run = runner(branch_plan(), counters)
    assert counters.records == 4
    run.run([X.abs()])
    assert (counters.replays, counters.host_ops) == (3, 1)
    run.run([-X.abs()])
    assert (counters.records, counters.replays, counters.host_ops) == (4, 6, 1)


def loop_plan(limit: int) -> Plan:
    """Doubles `x` until its largest value is 100 or more."""
    body = (record(lambda x: (x * 2, (x * 2).amax().reshape(1) < 100), ("x",), ("x", "more")),)
    return plan_of((HostLoop(body, "more", limit), record(lambda x: x + 0.5, ("x",), ("out",))), ("out",), x=INPUT)


@pytest.mark.parametrize(("start", "trips"), [(60.0, 1), (30.0, 2), (1.0, 7), (200.0, 1)])
def test_a_loop_runs_until_its_flag_is_zero_and_once_at_least(start: float, trips: int) -> None:
    counters = Counters()
    run = runner(loop_plan(7), counters)
    x = torch.full((2, 3), start)
    (out,) = run.run([x])
    torch.testing.assert_close(out, x * 2**trips + 0.5)
    assert counters.replays == trips + 1
    assert torch.equal(x, torch.full((2, 3), start)), "the caller's tensor is not written"


def test_a_loop_without_end_is_given_up() -> None:
    with pytest.raises(StateError, match="did not end within 6 repetitions") as caught:
        runner(loop_plan(6)).run([torch.ones(2, 3)])
    assert "maximum" in caught.value.todo


def test_a_loop_inside_a_branch_inside_a_loop() -> None:
    halve = (record(lambda x: (x / 2, (x / 2).amax().reshape(1) > 10), ("x",), ("x", "big")),)
    body = (
        record(lambda x, n: (x.amax().reshape(1) > 10, n + 1, n + 1 < 3), ("x", "n"), ("big", "n", "again"), X, ONE),
        HostBranch("big", (HostLoop(halve, "big", 20),), (record(lambda x: x * 100, ("x",), ("x",)),)),
    )
    plan = plan_of((HostLoop(body, "again", 5),), ("x", "n"), x=INPUT, n=INPUT)
    x, n = runner(plan).run([torch.ones(2, 3), torch.zeros(1)])
    # 1 -> 100 -> 6.25 -> 625, three times through the outer loop
    assert (x.unique().item(), n.item()) == (625.0, 3.0)


def test_state_is_written_when_all_steps_are_done() -> None:
    s, t = torch.zeros(2, 3), torch.ones(2, 3)
    steps = (
        record(lambda x, s: (x + s, s * 1), ("x", "s"), ("new", "copy")),
        HostOp(aten.neg.default, (Ref("new"),), {}, ("out",)),
    )
    plan = plan_of(steps, ("out", "s"), x=INPUT, s=STATE, t=STATE)
    plan = Plan(plan.bucket, plan.buffers, plan.steps, plan.outputs, writes=(("s", "new"), ("t", "s")))
    run = runner(plan, bound={"s": s, "t": t})
    out, old = run.run([X])
    torch.testing.assert_close(s, X)
    assert not t.any(), "the new value of t is the value that s had before"
    assert not old.any(), "an output that is state is the value from before the call"
    torch.testing.assert_close(out, -X)
    old.fill_(7)
    torch.testing.assert_close(s, X)
    run.run([X])
    torch.testing.assert_close((s, t), (2 * X, X))


def test_state_is_as_it_was_when_a_later_step_fails() -> None:
    s = torch.zeros(2, 3)
    steps = (
        record(lambda x, s: s + x, ("x", "s"), ("new",)),
        HostOp(aten.index_select.default, (Ref("new"), 0, Ref("rows")), {}, ("out",)),
    )
    plan = plan_of(steps, ("out",), x=INPUT, rows=INPUT, s=STATE)
    plan = Plan(plan.bucket, plan.buffers, plan.steps, plan.outputs, writes=(("s", "new"),))
    run = runner(plan, bound={"s": s})
    with pytest.raises(IndexError):
        run.run([X, torch.tensor([5])])
    assert not s.any()
    (out,) = run.run([X, torch.tensor([1])])
    torch.testing.assert_close(out, X[1:])
    torch.testing.assert_close(s, X)


class Swap(nn.Module):
    """Exchanges two buffers and returns an old value, with an op of the host in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a: Tensor
        self.b: Tensor
        self.register_buffer("a", torch.zeros(2, 3))
        self.register_buffer("b", torch.ones(2, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        old = self.a.clone()
        self.a.copy_(self.b)
        self.b.copy_(old + torch.polygamma(9, x.abs() + 1))
        return old, self.b


@pytest.mark.parametrize("host", [True, False], ids=["cut", "whole"])
def test_compiled_state_is_eager_state_call_after_call(host: bool) -> None:
    class Whole(Swap):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            old = self.a.clone()
            self.a.copy_(self.b)
            self.b.copy_(old)
            return old, self.a + x

    kind = Swap if host else Whole
    compiled, eager = gaudicc.compile(kind().eval(), (X,), on_unsupported="host"), kind().eval()
    for factor in (1, 2, 3):
        torch.testing.assert_close(compiled(X * factor), eager(X * factor))


def test_an_error_in_a_recording_leaves_state_too() -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps: Tensor
            self.rows: Tensor
            self.register_buffer("steps", torch.zeros(1))
            self.register_buffer("rows", torch.zeros(4, 3))

        def forward(self, x: Tensor, at: Tensor) -> Tensor:
            self.steps.add_(1)
            self.rows.index_copy_(0, at, x)
            return self.rows * self.steps

    compiled, eager = gaudicc.compile(Cache().eval(), (X, torch.tensor([0, 1]))), Cache().eval()
    torch.testing.assert_close(compiled(X, torch.tensor([2, 3])), eager(X, torch.tensor([2, 3])))
    with pytest.raises(StateError):
        compiled(X, torch.tensor([0, 4]))
    torch.testing.assert_close(compiled(X, torch.tensor([1, 0])), eager(X, torch.tensor([1, 0])))


@pytest.mark.parametrize("name", ["x", "w", "s"])
def test_an_output_that_is_no_value_of_a_step_is_copied(name: str) -> None:
    kept = {"w": torch.ones(2, 3), "s": torch.ones(2, 3)}
    plan = plan_of(
        (HostOp(aten.neg.default, (Ref("x"),), {}, ("y",)), Barrier()), (name, "y"), x=INPUT, w=BOUND, s=STATE
    )
    given = X.clone()
    result, _ = runner(plan, bound=kept).run([given])
    result.fill_(9)
    assert torch.equal(given, X)
    assert all(torch.equal(tensor, torch.ones(2, 3)) for tensor in kept.values())


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(LoweringError, match="unknown step str"):
        runner(Plan(Bucket((), ()), {}, ("jump", Barrier()), ()))  # type: ignore[arg-type]
