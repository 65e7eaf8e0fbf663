"""eliminate-control-flow: chunks of predicated trips, declared maxima, torch's own operators; bitwise in every form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gaudicc
from gaudicc.errors import DynamicControlFlowError, InputError, LoopOverflowError
from gaudicc.lower import lower
from gaudicc.nodes import call_loop
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.eliminate_control_flow import EliminateControlFlow
from gaudicc.plan import HostBranch, HostLoop, Record
from gaudicc.program import Program
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.cuda import CudaDevice
from gaudicc.runtime.device import Device
from gaudicc.runtime.runner import Counters, Runner
from tests.capture.data_loops import CASES
from tests.capture.test_mend_data_loops import INPUTS, differences
from tests.passes.conftest import Alone, CaptureOf
from tests.runtime.cuda.conftest import Again

FORMS = ("counts_its_trips", "returns_one_of_three", "decodes", "swaps")


def picks(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Walks through a table until it is told to stop: the index after the last trip is out of range."""
    at, seen = torch.zeros((), dtype=torch.int64), torch.zeros(())
    while at < table.shape[0]:
        seen = seen + x[table[at] % 4]
        at = at + 1 + 12 // (table.shape[0] - at)
    return seen


def pipeline(step: EliminateControlFlow) -> tuple[Any, ...]:
    return tuple(step if isinstance(other, EliminateControlFlow) else other for other in DEFAULT_PIPELINE)


def chunked(program: Program, trips: int) -> Program:
    """The same program, whose loops make trips that are not meant to happen as well."""
    program = program.copy()
    for _, module in program.graphs():
        for node in module.graph.nodes:
            if node.target is call_loop and node.args[1] is None:
                node.args = (node.args[0], trips, None, *node.args[3:])
    return program


@pytest.mark.parametrize("name", FORMS)
def test_trips_too_many_change_nothing(name: str, capture_of: CaptureOf, alone: Alone) -> None:
    before = capture_of(CASES[name], torch.tensor(INPUTS[4]))
    after, record = alone(EliminateControlFlow(), before)
    assert "trips a graph" in record.notes[0]
    assert differences(name, after) == []
    assert differences(name, chunked(after, 80)) == []


def test_what_would_fail_after_the_last_trip_is_made_harmless(capture_of: CaptureOf, alone: Alone) -> None:
    table = torch.randint(0, 9, (13,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(4)
    after, _ = alone(EliminateControlFlow(), capture_of(picks, x, table))
    users = [spec.name for spec in after.user_inputs()]
    given = chunked(after, 30).run(dict(zip(users, (x, table), strict=True)))
    assert torch.equal(given[0], picks(x, table))


def test_the_printed_stages_show_what_was_done(capture_of: CaptureOf, alone: Alone, text_of: Any) -> None:
    program = capture_of(CASES["converges"], torch.ones(4))
    assert "while the first is true, 3 carried" in text_of(program)
    after, record = alone(EliminateControlFlow(chunk=5), program)
    assert "while the first is true, 5 trips at a time, 3 carried" in text_of(after)
    assert "aten.where.self(%carried_0, " in text_of(after)
    assert "where" in record.diff()


def test_a_loop_that_holds_another_is_looked_at_after_every_trip(capture_of: CaptureOf, alone: Alone) -> None:
    after, record = alone(EliminateControlFlow(), capture_of(CASES["in_each_other"], torch.ones(4)))
    assert any("1 trips a graph: its trips call another body" in note for note in record.notes)
    assert differences("in_each_other", after) == []


@pytest.mark.parametrize("device", [CpuDevice(), CudaDevice(Again())], ids=["cpu", "cuda's stand-in"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_host_reads_the_flag_once_a_chunk(device: Device, chunk: int) -> None:
    body = CASES["counts_its_trips"]
    model = gaudicc.compile(body, (torch.ones(4),), passes=pipeline(EliminateControlFlow(chunk=chunk)))
    (bucket,) = model.buckets
    program = model.static_program(bucket)
    plan = lower(program, bucket, loops=False)
    assert [type(step) for step in plan.steps] == [Record, HostBranch, Record]
    (loop,) = [step for step in plan.all_steps() if isinstance(step, HostLoop)]
    assert loop.limit is None
    assert "repeat while" in str(plan)
    counters = Counters()
    runner = Runner(plan, program.bound(), device, counters)
    for values, trips in (([1.0] * 4, 10), ([1e-4] * 4, 0), ([0.002] * 4, 1), ([1e6] * 4, 30)):
        counters.replays = 0
        results = runner.run([torch.tensor(values)])
        assert torch.equal(results[0], body(torch.tensor(values)))
        assert counters.replays == 2 + -(-trips // chunk)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4))
def test_compiled_and_eager_agree(values: list[float]) -> None:
    x = torch.tensor(values)
    wanted = CASES["counts_its_trips"](x)
    assert torch.equal(_compiled(None)(x), wanted)


def test_more_trips_than_declared_raise_and_are_never_cut_short() -> None:
    body, model = CASES["counts_its_trips"], _compiled(12)
    for values in ([1.0] * 4, [0.0] * 4, [3.9, 1.0, -2.0, 0.1]):
        assert torch.equal(model(torch.tensor(values)), body(torch.tensor(values)))
    with pytest.raises(LoopOverflowError, match="12 trips") as caught:
        model(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    assert str(caught.value.where.source).startswith("capture/data_loops.py:")
    (bucket,) = model.buckets
    program = model.static_program(bucket)
    assert not any(isinstance(step, HostLoop) for step in lower(program, bucket, loops=False).all_steps())


_MODELS: dict[int | None, gaudicc.CompiledModel] = {}


def _compiled(most: int | None) -> gaudicc.CompiledModel:
    if most not in _MODELS:
        passes = pipeline(EliminateControlFlow(most=most))
        _MODELS[most] = gaudicc.compile(CASES["counts_its_trips"], (torch.ones(4),), passes=passes)
    return _MODELS[most]


def test_options_without_meaning_are_refused() -> None:
    for options in ({"chunk": 0}, {"most": -1}):
        with pytest.raises(InputError, match="chunk is"):
            replace(EliminateControlFlow(), **options)


# -- torch's own operators ------------------------------------------------------------------------------------------

WEIGHT = torch.tensor([0.5, -1.0, 2.0, 0.0])


def own_while_loop(x: torch.Tensor) -> Any:
    start = (torch.tensor(0), x.abs() + 0.5)
    return torch.ops.higher_order.while_loop(lambda i, y: y.sum() < 100, lambda i, y: (i + 1, y * 2), start, ())


def own_cond(x: torch.Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda x: x * WEIGHT, lambda x: x.sin() - 1, (x,))


def own_cond_that_could_fail(x: torch.Tensor) -> Any:
    at = x.nan_to_num(posinf=9.0).sum().long()
    return torch.cond((at >= 0) & (at < 4), lambda x, i: x[i.reshape(1)], lambda x, i: x[:1] + 7 // (i + 100), (x, at))


def own_scan(x: torch.Tensor) -> Any:
    from torch._higher_order_ops.scan import scan

    return scan(lambda c, a: (c + a, c * a), torch.zeros(4), torch.stack([x, x * 2, x.sin()]), dim=0)


@pytest.mark.parametrize("body", [own_while_loop, own_cond, own_cond_that_could_fail, own_scan])
def test_torchs_own_operators(body: Any) -> None:
    model = gaudicc.compile(body, (torch.tensor(INPUTS[2]),))
    for values in INPUTS:
        x = torch.tensor(values)
        if body is own_while_loop and x.isnan().any():
            continue
        for got, wanted in zip(_leaves(model(x)), _leaves(body(x)), strict=True):
            assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0)), values


def _leaves(value: Any) -> list[torch.Tensor]:
    return list(torch.utils._pytree.tree_leaves(value))


def nested(x: torch.Tensor) -> Any:
    inner = lambda x: torch.cond(x[0] > 0, lambda x: x * 2, lambda x: x - 1, (x,))  # noqa: E731
    return torch.cond(x.sum() > 0, inner, lambda x: x.sin(), (x,))


def carries_a_number(x: torch.Tensor) -> Any:
    return torch.ops.higher_order.while_loop(lambda i, y: y.sum() < 9, lambda i, y: (i + 1, y * 2), (0, x), ())


@pytest.mark.parametrize(
    ("body", "why", "todo"), [(nested, "stands in it", "`if`"), (carries_a_number, "number", "tensor")]
)
def test_what_is_refused_is_named(body: Any, why: str, todo: str) -> None:
    with pytest.raises(DynamicControlFlowError) as caught:
        gaudicc.compile(body, (torch.ones(4),))
    assert why in caught.value.what
    assert todo in caught.value.todo
    assert "test_eliminate_control_flow.py:" in str(caught.value.where.source)
